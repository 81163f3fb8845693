"""A new run from the parameters of another: what is taken, what is said, what is refused."""

import contextlib

import jax
import numpy as np
import pytest

from cifar_jax import evaluate, train
from cifar_jax.errors import UsageError, UserError
from cifar_jax.workdir import checkpoint, pytrees, transfer


def variables(seed, classes=10, **more):
    rng = np.random.default_rng(seed)

    def array(*shape):
        return rng.normal(size=shape).astype(np.float32)

    params = {
        "conv": {"kernel": array(3, 3, 2, 4), "bias": array(4)},
        "head": {"kernel": array(4, classes), "bias": array(classes)},
        **more,
    }
    return {"params": params, "batch_stats": {"norm": {"mean": array(4)}}}


@pytest.fixture
def source(tmp_path):
    """A workdir with two checkpoints; their EMA is that of the seeds 1 and 2."""
    with contextlib.closing(pytrees.Writer(tmp_path / "W" / "checkpoints", keep=2)) as writer:
        for step in (1, 2):
            writer.save(step, {"step": np.int32(step), "ema": variables(step), "params": {}})
    return tmp_path / "W"


def test_the_newest_checkpoints_ema_is_taken(source, capsys):
    found = transfer.initialise(variables(0), str(source))
    jax.tree.map(np.testing.assert_array_equal, found, variables(2))
    assert capsys.readouterr().out == f"Initialised from step 2 of {source}: 5 of 5 arrays.\n"


def test_what_does_not_match_stays(source, capsys):
    here = variables(0, classes=3, scale={"bias": np.ones(2, np.float32)})
    found, there = transfer.initialise(here, str(source)), variables(2)
    np.testing.assert_array_equal(
        found["batch_stats"]["norm"]["mean"], there["batch_stats"]["norm"]["mean"]
    )
    for layer, of in (("conv", there), ("head", here), ("scale", here)):
        jax.tree.map(np.testing.assert_array_equal, found["params"][layer], of["params"][layer])
    assert capsys.readouterr().out.splitlines() == [
        f"Initialised from step 2 of {source}: 3 of 6 arrays.",
        "As initialised here: head/bias [3], head/kernel [4, 3], scale/bias [2].",
        "Not taken from there: head/bias [10], head/kernel [4, 10].",
    ]


def test_a_damaged_checkpoint_is_passed_over(source, capsys):
    next((source / "checkpoints" / "2").rglob("manifest.json")).write_text("{}")
    found = transfer.initialise(variables(0), str(source))
    jax.tree.map(np.testing.assert_array_equal, found, variables(1))
    assert "Checkpoint 2 is damaged and not used" in capsys.readouterr().err


def test_what_cannot_work_is_refused(source, tmp_path):
    with pytest.raises(UserError, match="no checkpoint in .*none/checkpoints. Name the workdir"):
        transfer.initialise(variables(0), str(tmp_path / "none"))
    with pytest.raises(UsageError, match="no parameter there has the name and shape of one here"):
        transfer.initialise({"params": {"other": {"kernel": np.zeros(2)}}}, str(source))


@pytest.mark.slow
def test_from_one_dataset_to_another_with_frozen_layers(config, tmp_path, capsys):
    train.train(config, tmp_path / "source")
    rng = np.random.default_rng(0)
    for split, count in (("train", 64), ("test", 16)):
        images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        np.savez(tmp_path / f"{split}.npz", images=images, labels=np.arange(count) % 3)
    config.data.update(name="npz", dir=str(tmp_path))
    config.init_from, config.num_steps = str(tmp_path / "source"), 3
    config.optim.groups = ({"params": "conv*/*", "name": "frozen"},)
    state = train.train(config, tmp_path / "target").state
    taken = pytrees.restore_ema(tmp_path / "source" / "checkpoints", 6)["params"]
    for layer in ("conv1", "conv2"):
        jax.tree.map(np.testing.assert_array_equal, state.params[layer], taken[layer])
    assert (np.asarray(state.params["local3"]["kernel"]) != taken["local3"]["kernel"]).any()
    assert state.params["softmax_linear"]["kernel"].shape == (192, 3)
    assert "8 of 10 arrays" in capsys.readouterr().out
    assert set(evaluate.evaluate(None, tmp_path / "target", once=True)) == {3}

    # It goes on without the source, and --restart needs it again.
    (tmp_path / "source").rename(tmp_path / "gone")
    config.num_steps = 4
    assert int(train.train(config, tmp_path / "target").state.step) == 4
    with pytest.raises(UserError, match="no checkpoint in"):
        train.train(config, tmp_path / "target", restart=True)
    assert checkpoint.steps(tmp_path / "target" / "checkpoints")
