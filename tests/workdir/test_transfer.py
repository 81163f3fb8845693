"""`config.init_from`: what a new run takes from another one, and what it says of that."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from flax import linen as nn

from cifar_jax import config as config_lib
from cifar_jax import models, train
from cifar_jax.errors import UsageError, UserError
from cifar_jax.loop.training import prepare
from cifar_jax.models.batch_norm import BatchNorm
from cifar_jax.optim import paths
from cifar_jax.workdir import checkpoint, pytrees, transfer
from tests.workdir.test_checkpoint import damage


class Small(nn.Module):
    """Batch statistics, a lower layer and a head, compiled in no time."""

    num_classes: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.Dense(4, name="lower")(images[:, ::8, ::8])
        x = nn.relu(BatchNorm(name="norm")(x, train=train))
        return nn.Dense(self.num_classes, name="head")(x.mean((1, 2)))


LOWER = ["params/lower/bias", "params/lower/kernel"]
NORM = ["batch_stats/norm/mean", "batch_stats/norm/var", "params/norm/bias", "params/norm/scale"]
HEAD = "head/bias ([5] there, [3] here), head/kernel ([4, 5] there, [4, 3] here)"


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models._MODELS, "cnn", Small)
        yield


def configured(folder, classes):
    """4 steps of 8 images of so many classes, with a checkpoint every 2."""
    folder.mkdir()
    rng = np.random.default_rng(classes)
    for split in ("train", "test"):
        images = rng.integers(0, 256, (24, 32, 32, 3), np.uint8)
        np.savez(folder / f"{split}.npz", images=images, labels=np.arange(24) % classes)
    config = config_lib.recipe("default")
    config.data.update(name="npz", dir=str(folder))
    config.update(batch_size=8, num_steps=4, num_devices=1)
    config.optim.weight_decay = 0.0
    config.summaries.update(scalars=0, images=0, histograms=0)
    config.checkpoint.every_steps = 2
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a run with five classes."""
    folder = tmp_path_factory.mktemp("source")
    train.train(configured(folder / "images", 5), folder / "run")
    return folder / "run"


@pytest.fixture
def source(trained, tmp_path):
    """A copy of it, for a test to change."""
    return shutil.copytree(trained, tmp_path / "source")


@pytest.fixture
def config(tmp_path, source):
    """Of a run with three classes that begins with what `source` has."""
    config = configured(tmp_path / "images", 3)
    config.init_from = str(source)
    return config


def learned(source, step=4, ema=True):
    """The variables of a run with five classes, by path."""
    model = models.create("cnn", 5, "float32")
    like = jax.eval_shape(lambda: models.init(model, jax.random.key(0), (24, 24, 3)))
    return paths.flatten(pytrees.restore_variables(source / "checkpoints", step, like, ema=ema))


def same(one, other):
    """The paths of the arrays that have the same bytes in both."""
    one = paths.flatten(one)
    return sorted(p for p in one if np.asarray(one[p]).tobytes() == np.asarray(other[p]).tobytes())


class Begun(Exception):
    """Of a run that has its first state."""


@pytest.fixture
def first_state(monkeypatch):
    """Starts a run, stops it before its first step, and returns the state that it had then."""

    def stop(run, state, *_):
        raise Begun(state)

    def start(*arguments, **options):
        with monkeypatch.context() as patch, pytest.raises(Begun) as begun:
            patch.setattr(train, "run_steps", stop)
            train.train(*arguments, **options)
        return begun.value.args[0]

    return start


def test_other_classes_on_frozen_lower_layers(config, source, tmp_path, capsys):
    config.optim.groups = ({"params": "lower/*", "name": "frozen"},)
    state = train.train(config, tmp_path / "run").state
    assert same(state.variables, learned(source)) == LOWER
    assert same(state.ema, learned(source)) == LOWER
    assert state.params["head"]["kernel"].shape == (4, 3)
    out = capsys.readouterr().out
    assert f"Initialised from {source} at step 4: 6 of 8 arrays.\nNot taken: {HEAD}.\n" in out


def test_a_run_begins_with_the_ema_and_draws_the_rest(config, source, tmp_path, first_state):
    config.optim.groups = ({"params": "lower/kernel", "name": "muon"},)
    there, drawn = learned(source), prepare(config).state.variables
    assert not same(there, learned(source, ema=False))
    state = first_state(config, tmp_path / "run")
    assert int(state.step) == 0
    for variables in (state.variables, state.ema):
        assert same(variables, there) == sorted(LOWER + NORM)
        assert same(variables["params"]["head"], drawn["params"]["head"]) == ["bias", "kernel"]
    # What an optimiser keeps of the initial parameters is of these.
    rms = np.sqrt(np.square(there["params/lower/kernel"]).mean())
    numbers = [float(leaf) for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == ()]
    assert any(number == pytest.approx(rms) for number in numbers)


def test_a_resumed_run_needs_its_source_no_more(config, source, tmp_path, capsys):
    config.num_steps = 2
    first = train.train(config, tmp_path / "run").state
    shutil.rmtree(source)
    config.num_steps = 4
    for init_from in (str(source), "elsewhere"):
        config.init_from = init_from
        state = train.train(config, tmp_path / "run", from_step=2).state
        assert int(state.step) == 4 and not same(state.variables, paths.flatten(first.variables))
    out = capsys.readouterr().out
    assert out.count("Initialised") == 1
    assert "init_from" not in out
    with pytest.raises(UsageError, match="has no config.json"):
        train.train(config, tmp_path / "run", restart=True)


def test_a_restart_takes_again_from_its_own_workdir_too(config, source, tmp_path, first_state):
    train.train(config, tmp_path / "run")
    state = first_state(config, tmp_path / "run", restart=True)
    assert same(state.variables, learned(source)) == sorted(LOWER + NORM)
    config = configured(tmp_path / "five", 5)
    config.update(init_from=str(source), num_steps=6)
    config.data.dir = str(tmp_path / "five")
    there = learned(source)
    assert len(same(first_state(config, source, restart=True).variables, there)) == 8


def test_the_newest_whole_checkpoint_is_taken(source, capsys):
    damage(source / "checkpoints" / "4")
    variables = paths.unflatten(learned(source, 2))
    blank = jax.tree.map(np.zeros_like, variables)
    assert len(same(transfer.take(source, blank), paths.flatten(variables))) == 8
    out = capsys.readouterr().out
    assert f"{source}: Checkpoint 4 is damaged and not used: " in out
    assert f"Initialised from {source} at step 2: 8 of 8 arrays.\n" in out
    assert "Not taken" not in out


def test_a_checkpoint_that_retention_removes_gives_way_to_the_next(source, monkeypatch, capsys):
    found, restore = [], pytrees.restore_variables

    def removed(folder, step, *arguments, **options):
        found.append(step)
        if step == 4:
            checkpoint.remove(folder, 4)
        return restore(folder, step, *arguments, **options)

    blank = jax.tree.map(np.zeros_like, paths.unflatten(learned(source, 2)))
    monkeypatch.setattr(pytrees, "restore_variables", removed)
    transfer.take(source, blank)
    assert found == [4, 2]
    assert "at step 2" in capsys.readouterr().out


def kernels(**shapes):
    return {"params": {name: {"kernel": np.zeros(shape)} for name, shape in shapes.items()}}


@pytest.mark.parametrize(
    ("variables", "nearest"),
    [
        (kernels(lower=(3, 5), new=(2,)), "lower/kernel ([3, 4] there, [3, 5] here)."),
        (kernels(conv1=(3,), conv2=(3,)), "there are batch_stats/norm/mean, batch_stats/norm/var,"),
        (kernels(conv1=(3,), conv2=(3,)), "norm/scale, here conv1/kernel, conv2/kernel."),
    ],
)
def test_where_nothing_fits_it_says_why(source, variables, nearest):
    with pytest.raises(UsageError, match=f"of a run of 'cnn',.*{re.escape(nearest)}"):
        transfer.take(source, variables)


def test_a_line_names_a_few_arrays(source, capsys):
    variables = kernels(lower=(3, 4), **{f"conv{number}": (3,) for number in range(9)})
    transfer.take(source, variables)
    out = capsys.readouterr().out
    assert ": 1 of 10 arrays.\nNot taken: conv0/kernel (not there), " in out
    assert out.endswith("conv7/kernel (not there), and 8 more.\n")


def test_only_a_workdir_with_a_checkpoint_is_one_to_begin_with(config, source, tmp_path):
    shutil.rmtree(source / "checkpoints")
    for init_from, message in (
        (source, "has no whole checkpoint"),
        (source / "nowhere", "has no config.json, expected the workdir of a run"),
        ("gs://bucket/run", "is a URL"),
    ):
        config.init_from = str(init_from)
        with pytest.raises(UsageError, match=f"config.init_from.*{message}"):
            train.train(config, tmp_path / "run")
    (source / "config.json").write_text(json.dumps({"config": {}}))
    config.init_from = str(source)
    with pytest.raises(UserError, match="was made by an earlier version"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
