"""Several networks that train together: each is the run that it would be alone."""

import json
import re
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cifar_jax
from cifar_jax import __main__ as command
from cifar_jax import config as config_lib
from cifar_jax.config import members
from cifar_jax.data import feeds
from cifar_jax.errors import Diverged, UsageError, UserError
from cifar_jax.evaluate import Evaluators, evaluate
from cifar_jax.loop import training
from cifar_jax.predict import export
from cifar_jax.report import page
from cifar_jax.steps import members as step_lib
from cifar_jax.train import train
from cifar_jax.workdir import checkpoint, description, pytrees, records
from tests.conftest import random_images


@pytest.fixture
def several(config):
    config.num_seeds, config.seed = 3, 5
    config.summaries.scalars = 2
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    """(Workdir, result) of three networks after six steps; not to be written to."""
    config = config_lib.recipe("default")
    config.data.dir = str(data_dir)
    config.update(num_seeds=3, seed=5, batch_size=16, num_steps=6, log_every_steps=2)
    config.checkpoint.every_steps = 3
    config.summaries.update(scalars=2, images=0, histograms=0)
    config.eval.batch_size = 16
    workdir = tmp_path_factory.mktemp("several")
    return workdir, train(config, workdir)


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy, to go on with."""
    return shutil.copytree(trained[0], tmp_path / "run")


def leaves(state, number=None):
    if number is not None:
        state = step_lib.member(state, number)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def stored(workdir, number, step):
    """The bytes of a member's checkpoint."""
    folder = description.member(workdir, number) / "checkpoints"
    shapes = pytrees.variable_shapes(folder, step)
    assert shapes
    return sorted(
        (str(p.relative_to(folder)), p.read_bytes())
        for p in (folder / str(step)).rglob("*")
        if p.is_file() and p.name == "manifest.json"
    )


def test_each_is_the_run_of_its_seed_alone(several, trained, tmp_path):
    _, result = trained
    (alone,) = (own for own in members(several) if own.seed == 6)
    assert alone.num_seeds == 1
    expected = train(alone, tmp_path / "alone").state
    for found, wanted in zip(leaves(result.state, 1), leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert np.abs(leaves(result.state, 0)[1] - leaves(result.state, 1)[1]).max() > 1e-3
    of_alone = [r for r in records.read(tmp_path / "alone" / records.FILE) if r["kind"] == "train"]
    path = description.member(trained[0], 1) / records.FILE
    of_member = [r for r in records.read(path) if r["kind"] == "train"]
    assert [r["step"] for r in of_member] == [r["step"] for r in of_alone] == [0, 2, 4]
    for found, wanted in zip(of_member, of_alone, strict=True):
        assert found.keys() == wanted.keys()
        for name in ("loss", "l2", "learning_rate", "gradient_norm/conv1"):
            assert found[name] == pytest.approx(wanted[name], rel=1e-5)


def test_a_member_is_a_workdir_that_can_go_on_alone(several, workdir):
    own = members(several)[2]
    own.num_steps = 7
    state, _ = train(own, description.member(workdir, 2))
    assert int(state.step) == 7
    assert description.load(description.member(workdir, 2)).seed == 7


@pytest.mark.slow
def test_two_devices_give_the_same(several, trained, tmp_path):
    several.num_devices = 2
    found = train(several, tmp_path / "run").state
    for one, other in zip(leaves(found), leaves(trained[1].state), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_kill_between_two_checkpoints_costs_no_bit(several, trained, workdir, capsys):
    shutil.rmtree(description.member(workdir, 1) / "checkpoints" / "6")
    for number in range(3):
        checkpoint.mark(description.member(workdir, number) / "checkpoints", finished=None)
    found = train(several, workdir)
    said = capsys.readouterr().out
    assert said.count("Resuming") == 1
    assert f"Resuming from step 3 in {workdir / description.MEMBERS}\n" in said
    for one, other in zip(leaves(found.state), leaves(trained[1].state), strict=True):
        np.testing.assert_array_equal(one, other)
    lines = records.read(description.member(workdir, 0) / records.FILE)
    assert [r["step"] for r in lines if r["kind"] == "train"] == [0, 2, 4]


def test_a_finished_run_is_not_begun_again_and_may_be_longer(several, workdir, capsys):
    train(several, workdir)
    assert "already ended at step 6" in capsys.readouterr().out
    several.num_steps = 8
    state, last = train(several, workdir)
    assert int(state.step) == 8
    assert last == description.member(workdir, 0) / "checkpoints" / "8"


def test_another_number_of_networks_is_another_run(several, workdir):
    several.num_seeds = 2
    with pytest.raises(UsageError, match="num_seeds"):
        train(several, workdir)


def test_one_that_diverges_is_marked_and_the_others_go_on(
    several, trained, tmp_path, monkeypatch, capsys
):
    first_state = training.first_state

    def broken(step, data, seed):
        state = first_state(step, data, seed)
        scale = 1e30 if seed == 6 else 1.0
        return state.replace(params=jax.tree.map(lambda leaf: leaf * scale, state.params))

    monkeypatch.setattr(training, "first_state", broken)
    found = train(several, tmp_path / "run")
    assert "Network 1 goes on no more: The loss is" in capsys.readouterr().out
    for number in (0, 2):
        for one, other in zip(
            leaves(found.state, number), leaves(trained[1].state, number), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    states = [
        checkpoint.status(description.member(tmp_path / "run", n) / "checkpoints") for n in range(3)
    ]
    assert [bool(state.diverged) for state in states] == [False, True, False]
    assert [state.finished for state in states] == [6, None, 6]
    several.eval.views = 2
    with Evaluators(several, tmp_path / "run") as evaluators:
        evaluators.evaluate(6)
    assert re.search(
        r"\n2 seeds: 0.\d+ ± .*\n2 seeds over 2 views: 0.\d+ ± ", capsys.readouterr().out
    )
    several.num_steps = 7  # a resumed run leaves it out as well
    assert int(train(several, tmp_path / "run").state.step) == 7


def test_where_all_diverge_so_does_the_run(several, tmp_path, monkeypatch):
    first_state = training.first_state
    monkeypatch.setattr(
        training,
        "first_state",
        lambda *args: jax.tree.map(lambda leaf: leaf * jnp.nan, first_state(*args)).replace(
            step=jnp.int32(0), opt_state=first_state(*args).opt_state
        ),
    )
    with pytest.raises(Diverged, match="All 3 networks have diverged"):
        train(several, tmp_path / "run")


def test_all_are_evaluated_and_so_is_their_ensemble(trained, tmp_path, capsys):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    by_step = evaluate(None, workdir, once=True)
    out = capsys.readouterr().out.splitlines()
    each = [cifar_jax.load(description.member(workdir, number)) for number in range(3)]
    together = cifar_jax.load(workdir)
    images, _ = random_images(37, seed=1)
    probabilities = np.stack([own(images) for own in each])
    np.testing.assert_allclose(together(images), probabilities.mean(0), atol=1e-6)
    _, labels = random_images(37, seed=1)
    accuracies = (probabilities.argmax(-1) == labels).mean(-1)
    assert by_step == {6: pytest.approx(accuracies.mean())}
    assert [line.partition(": ")[2] for line in out[:4]] == [
        *(f"precision @ 1 = {a:.3f} (seed {5 + n})" for n, a in enumerate(accuracies)),
        f"precision @ 1 = {(together(images).argmax(-1) == labels).mean():.3f} "
        "(ensemble of 3 networks)",
    ]
    assert out[4] == f"3 seeds: {accuracies.mean():.4f} ± {accuracies.std(ddof=1):.4f}"
    own = [r for r in records.read(workdir / "members" / "2" / records.FILE) if r["kind"] == "eval"]
    assert [r["accuracy"] for r in own] == [pytest.approx(accuracies[2])]
    assert [r["kind"] for r in records.read(workdir / records.FILE)] == ["eval"]


def test_an_evaluation_waits_for_the_last_of_their_checkpoints(trained, tmp_path, monkeypatch):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    config = description.load(workdir)
    config.eval.poll_seconds = 0.001
    path = description.member(workdir, 2) / "checkpoints" / "6"
    path.rename(tmp_path / "later")
    with Evaluators(config, workdir) as evaluators:
        with pytest.raises(FileNotFoundError, match="members/2/checkpoints/6"):
            evaluators._wait_for(6)
        monkeypatch.setattr("time.sleep", lambda seconds: (tmp_path / "later").rename(path))
        evaluators._wait_for(6)


def test_one_of_them_is_named_by_its_number(trained, tmp_path):
    workdir, _ = trained
    assert command._member(str(workdir), 2) == workdir / "members" / "2"
    with pytest.raises(UsageError, match="--member=3, but .* holds 3 networks"):
        command._member(str(workdir), 3)
    with pytest.raises(UserError, match="holds 3 networks. Name one with --member, from 0 to 2"):
        export.run(workdir, tmp_path / "all.stablehlo")


@pytest.mark.slow
def test_the_report_has_their_mean(trained, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    text = page.make([workdir]).read_text()
    assert "±" in text
    assert json.loads((workdir / "config.json").read_text())["config"]["num_seeds"] == 3


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_seeds": 0}, "config.num_seeds = 0, expected more than 0"),
        ({"seed": 2**32 - 2}, "config.seed = 4294967296, expected less than"),
        ({"data.validation": 0.1}, "config.data.validation = 0.1 does not go with"),
        ({"shard_optimizer": True}, "config.shard_optimizer = True does not go with"),
        ({"init_from": "~/other"}, "config.init_from = '~/other' does not go with"),
        ({"sweep": "optim.learning_rat=1,2"}, "Unknown field in config.sweep 'optim.learning_rat'"),
        ({"sweep": "batch_size=16,32"}, "batch_size would need another program for each value"),
        ({"sweep": "optim.ema_decay=0.9,high"}, "optim.ema_decay=0.9,high, expected numbers"),
        (
            {"sweep": "optim.ema_decay=0.9,1.5"},
            "config.optim.ema_decay = 1.5, expected less than 1",
        ),
        (
            {"sweep": "optim.ema_decay=0.9,0.99 & optim.weight_decay=0.1"},
            "have 2 and 1 values",
        ),
        (
            {"sweep": "optim.learning_rate=0.1,0.2", "optim.name": "adamw"},
            "neither groups nor a decoupled decay",
        ),
        ({"data.placement": "host"}, "config.data.placement = 'host' does not go with"),
    ],
)
def test_what_does_not_go_together_is_refused(several, tmp_path, changes, problem):
    several.update_from_flattened_dict(changes)
    with pytest.raises(UsageError, match=problem):
        train(several, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_more_than_memory_holds_are_refused_with_the_largest_number(several, tmp_path, monkeypatch):
    monkeypatch.setattr(feeds, "free_mib", lambda devices: 40)
    with pytest.raises(UserError, match=r"40 MiB are free. Train at most 2 together."):
        train(several, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_sweep_is_the_product_of_its_parts(several):
    several.num_seeds = 2
    several.sweep = (
        "optim.learning_rate=0.1,0.05 & optim.ema_decay=0.9,0.99; optim.weight_decay=0,1"
    )
    found = [
        (own.optim.learning_rate, own.optim.ema_decay, own.optim.weight_decay, own.seed)
        for own in members(several)
    ]
    assert found == [
        (rate, ema, decay, seed)
        for rate, ema in ((0.1, 0.9), (0.05, 0.99))
        for decay in (0.0, 1.0)
        for seed in (5, 6)
    ]
    assert {(own.num_seeds, own.sweep) for own in members(several)} == {(1, "")}


def test_one_of_a_sweep_is_the_run_of_its_values_alone(several, tmp_path, capsys):
    several.update(num_seeds=1, log_every_steps=100)
    several.sweep = (
        "optim.learning_rate=0.05,0.1,0.2 & optim.weight_decay=0.1,0.004,0 "
        "& optim.label_smoothing=0.1,0,0.2 & optim.ema_decay=0.5,0.9999,0"
    )
    state = train(several, tmp_path / "run").state
    expected = train(members(several)[2], tmp_path / "alone").state
    for one, other in zip(leaves(state, 2), leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    found, wanted = (
        [r for r in records.read(path / records.FILE) if r["kind"] == "train"][-1]
        for path in (description.member(tmp_path / "run", 2), tmp_path / "alone")
    )
    for name in ("loss", "l2", "learning_rate", "gradient_norm/local3"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-5), name
    evaluate(None, tmp_path / "run", once=True)
    out = capsys.readouterr().out
    assert (
        "learning_rate 0.1, weight_decay 0.004, label_smoothing 0, ema_decay 0.9999, 1 seed: "
        in out
    )


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["default", "airbench94"])
def test_all_at_once_as_on_gpus_they_are_the_same(recipe, data_dir, monkeypatch):
    """By vmap, which CPUs are not asked for."""
    config = config_lib.recipe(recipe)
    config.data.dir = str(data_dir)
    config.update(num_seeds=2, batch_size=16, num_steps=4, num_devices=1, dtype="float32")
    configs = members(config_lib.resolve(config))
    run = training.prepare(configs[0])
    states = [training.first_state(run.step, run.data, own.seed) for own in configs]
    images, labels, _ = run.data.load()
    dataset = {"image": jnp.asarray(images), "label": jnp.asarray(labels, jnp.int32)}
    batch = {
        "index": jnp.arange(32, dtype=jnp.int32).reshape(2, 16),
        "epoch": jnp.zeros((2, 16), jnp.int32),
    }
    step = partial(step_lib.train_step, single=run.step, configs=configs, mesh=run.mesh)

    def run_once():
        return jax.jit(lambda state, batch: step(state, batch, dataset))(
            step_lib.stack(states), batch
        )

    wanted, metrics, _ = run_once()
    monkeypatch.setattr(step_lib, "_one_by_one", lambda mesh: False)
    found, again, _ = run_once()
    np.testing.assert_allclose(again["loss"], metrics["loss"], rtol=1e-5)
    for one, other in zip(leaves(found), leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)
