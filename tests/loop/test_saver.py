"""What a checkpoint must not hold, and which ones are kept."""

import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import train
from cifar_jax.errors import UsageError
from cifar_jax.loop import saver
from cifar_jax.workdir import checkpoint


@pytest.mark.parametrize(("value", "expected"), [(1.0, True), (np.nan, False), (-np.inf, False)])
def test_all_finite(value, expected):
    assert bool(saver.all_finite({"a": jnp.ones(3), "b": jnp.array([0.0, value])})) is expected


@pytest.fixture
def early(config):
    """Seven checkpoints, of which the best and the newest are kept."""
    config.update(num_steps=7, log_every_steps=10)
    config.data.validation = 0.2
    config.checkpoint.update(every_steps=1, keep=1, keep_best="validation")
    return config


def accuracies(seen, values=(0.1, 0.3, 0.2, 0.3, 0.25, 0.4, 0.1)):
    def after_checkpoint(step):
        seen.append(step)
        return values[step - 1]

    return after_checkpoint


def test_the_best_checkpoint_is_kept_beside_the_newest(early, tmp_path):
    train.train(early, tmp_path, accuracies([]))
    status = checkpoint.status(tmp_path / "checkpoints")
    assert (status.best, status.best_accuracy, status.evaluated, status.worse) == (6, 0.4, 7, 1)
    assert {6, 7} <= set(checkpoint.steps(tmp_path / "checkpoints")) <= {5, 6, 7}
    assert not checkpoint.check(tmp_path / "checkpoints" / "6")


def test_a_run_out_of_patience_ends_and_has_ended(early, tmp_path, capsys):
    early.stop.patience = 3
    seen = []
    train.train(early, tmp_path, accuracies(seen))
    assert seen == [1, 2, 3, 4, 5]
    message = "has not improved for 3 checkpoints: the best one is 2, with 0.300."
    assert (
        f"Training ends at step 5. The accuracy (validation) {message}" in capsys.readouterr().out
    )
    folder = tmp_path / "checkpoints"
    assert checkpoint.status(folder).finished == 5
    assert {2, 5} <= set(checkpoint.steps(folder))
    train.train(early, tmp_path, accuracies(seen))
    assert "already ended at step 5. The accuracy" in capsys.readouterr().out
    early.stop.patience = 4  # goes on from where it was
    train.train(early, tmp_path, accuracies(seen))
    assert checkpoint.status(folder).best == 6
    assert checkpoint.status(folder).finished == 7


def test_an_evaluation_that_a_kill_cut_short_is_done_again(early, tmp_path):
    early.stop.patience = 3

    def killed(step):
        if step == 4:
            raise KeyboardInterrupt
        return accuracies([])(step)

    with pytest.raises(KeyboardInterrupt):
        train.train(early, tmp_path, killed)
    seen = []
    train.train(early, tmp_path, accuracies(seen))
    assert seen == [4, 5]
    assert checkpoint.status(tmp_path / "checkpoints").finished == 5


def test_a_run_that_goes_back_compares_anew(early, tmp_path):
    early.checkpoint.keep = 9
    train.train(early, tmp_path, accuracies([]))
    train.train(early, tmp_path, accuracies([]), from_step=3)
    assert checkpoint.status(tmp_path / "checkpoints").best == 6
    train.train(early, tmp_path, accuracies([], [0.0] * 7), restart=True)
    assert checkpoint.status(tmp_path / "checkpoints").best == 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.validation", 0.0, "config.data.validation = 0"),
        ("checkpoint.keep_best", "tset", "Unknown config.checkpoint.keep_best 'tset'"),
        ("checkpoint.keep_best", "", "config.stop.patience = 1 needs the accuracy"),
        ("seed", 0, "needs evaluations while it trains"),
    ],
)
def test_what_cannot_be_compared_is_refused(early, tmp_path, field, value, message):
    early.stop.patience = 1
    early.update_from_flattened_dict({field: value})
    with pytest.raises(UsageError, match=message):
        train.train(early, tmp_path)
    assert not list(tmp_path.iterdir())
