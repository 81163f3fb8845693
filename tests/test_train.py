"""The training loop: bit-exact resume, cadence, divergence, signals."""

import json
import os
import re
import signal
import types

import jax
import numpy as np
import pytest

from cifar_jax import checkpoint, steps, summaries, train
from cifar_jax.errors import UsageError, UserError


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The bytes of the state after 6 steps in one go; made by the first test that asks."""
    cache = {}

    def get(config):
        if not cache:
            cache["bytes"] = state_bytes(train.train(config, tmp_path_factory.mktemp("whole")))
        return cache["bytes"]

    return get


def state_bytes(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def test_two_runs_give_the_same_bytes(config, tmp_path, uninterrupted):
    assert state_bytes(train.train(config, tmp_path)) == uninterrupted(config)


def test_another_seed_gives_others(config, tmp_path, uninterrupted):
    expected = uninterrupted(config)
    config.seed = 1
    assert state_bytes(train.train(config, tmp_path)) != expected


@pytest.mark.parametrize("stop", [0, 2, 4])
def test_a_resumed_run_gives_the_bytes_of_the_uninterrupted_one(
    config, tmp_path, uninterrupted, stop, monkeypatch, capsys
):
    expected = uninterrupted(config)
    original = train._Log.note

    def note(self, number, metrics):
        original(self, number, metrics)
        if number == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train._Log, "note", note)
    with pytest.raises(train.Interrupted, match=r"Stopped by SIGTERM: step \d is saved") as stopped:
        train.train(config, tmp_path)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert checkpoint.finished(tmp_path / "checkpoints") is None
    assert state_bytes(train.train(config, tmp_path)) == expected
    assert "Resuming from step" in capsys.readouterr().out
    assert checkpoint.finished(tmp_path / "checkpoints") == 6


def test_a_signal_between_two_looks_is_not_taken_for_saved(config, tmp_path, monkeypatch):
    """It comes while the loop asks whether a checkpoint is due: the next step sees it."""
    original = train._Saver.due

    def due(self, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, step)

    monkeypatch.setattr(train._Saver, "due", due)
    with pytest.raises(train.Interrupted, match="step 3 is saved"):
        train.train(config, tmp_path)
    assert checkpoint.newest(tmp_path / "checkpoints", print) == 3


def test_the_second_signal_does_what_it_did_before():
    before = signal.getsignal(signal.SIGINT)
    with train._Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("field", "value"), [("optim.momentum", 0.9), ("dtype", "float16"), ("model.name", "other")]
)
def test_a_resume_that_cannot_work_changes_nothing(config, tmp_path, field, value):
    config.num_steps = 3
    train.train(config, tmp_path)
    before = (tmp_path / "config.json").read_text()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UsageError, match=f"{field} is .* there, {value!r} now"):
        train.train(config, tmp_path)
    assert (tmp_path / "config.json").read_text() == before


def test_a_mark_of_an_earlier_end_is_taken_away(config, tmp_path):
    """Though no checkpoint is left: a follower would take it for the end of this run."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    checkpoint.mark_finished(folder, 3)
    seen = []
    train.train(
        config, tmp_path, after_checkpoint=lambda _: seen.append(checkpoint.finished(folder))
    )
    assert seen == [None, None]
    assert checkpoint.finished(folder) == 6


def test_the_metrics_before_a_checkpoint_are_read_before_it(config, tmp_path):
    """A checkpoint whose last loss nobody looked at could be of a run that had diverged."""
    read = []

    class Log(train._Log):
        def _tell(self, number, values):
            read.append(number)

    config.log_every_steps = 1
    original, train._Log = train._Log, Log
    try:
        train.train(config, tmp_path, after_checkpoint=lambda step: read.append(f"saved {step}"))
    finally:
        train._Log = original
    assert read == [0, 1, 2, "saved 3", 3, 4, 5, "saved 6"]


def test_several_steps_in_a_call_are_the_same_steps(config, tmp_path, uninterrupted, capsys):
    """Six steps as a call of 2 and a single one, up to each checkpoint at a multiple of 3."""
    one = uninterrupted(config)
    capsys.readouterr()
    config.steps_per_call = 2
    state = train.train(config, tmp_path)
    for several, single in zip(jax.tree.leaves(state), one, strict=True):
        single = np.frombuffer(single, several.dtype).reshape(several.shape)
        np.testing.assert_allclose(several, single, rtol=1e-5, atol=1e-6)
    assert checkpoint.steps(tmp_path / "checkpoints") == [3, 6]
    lines = [line for line in capsys.readouterr().out.splitlines() if ": step " in line]
    assert [re.search(r"step (\d+)", line)[1] for line in lines] == ["0", "2", "4"]


def test_a_loss_that_diverges_within_a_call_has_its_step(config, tmp_path):
    config.optim.learning_rate, config.steps_per_call = 1e20, 2
    with pytest.raises(UserError, match=r"loss is (nan|inf) at step 1; it was finite in the"):
        train.train(config, tmp_path)


def test_the_time_of_a_call_is_shared_by_its_steps(config, tmp_path, monkeypatch, capsys):
    looks = iter([0.0, 1.0, 9.0])  # start, steps 0 and 1, steps 2 to 5
    monkeypatch.setattr(train, "time", types.SimpleNamespace(monotonic=lambda: next(looks)))
    log = train._Log(config, tmp_path, None)
    with summaries.Display(6, 0) as display:
        log.start(display, 0)
        log.note(0, {"loss": np.ones(2)})
        log.note(2, {"loss": np.ones(4)})
        log.flush()
    log.close()
    lines = re.findall(r"step (\d).*; (\S+) sec/batch", capsys.readouterr().out)
    assert lines == [("0", "0.500"), ("2", "1.250"), ("4", "2.000")]


def test_the_time_of_saving_is_not_the_steps(config, tmp_path, monkeypatch, capsys):
    looks = iter([0.0, 10.0, 110.0, 112.0])  # start, pause, its end, the metrics
    monkeypatch.setattr(train, "time", types.SimpleNamespace(monotonic=lambda: next(looks)))
    log = train._Log(config, tmp_path, None)
    with summaries.Display(6, 0) as display:
        log.start(display, 0)
        with log.paused():
            pass
        log.note(0, {"loss": np.array([1.0])})
        log.flush()
    log.close()
    assert "12.000 sec/batch" in capsys.readouterr().out


def test_a_damaged_last_checkpoint_costs_steps_but_no_bit(config, tmp_path, uninterrupted, capsys):
    config.num_steps = 5
    train.train(config, tmp_path)
    folder = tmp_path / "checkpoints"
    assert checkpoint.steps(folder) == [3, 5]
    (folder / "5" / "manifest.json").unlink()
    config.num_steps = 6
    assert state_bytes(train.train(config, tmp_path)) == uninterrupted(config)
    out = capsys.readouterr().out
    assert "Checkpoint 5 is not used: manifest.json is missing." in out
    assert "Resuming from step 3" in out


def test_console_lines_and_scalars_come_by_cadence(config, tmp_path, capsys):
    train.train(config, tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if ": step " in line]
    speed = r"\(\d+\.\d examples/sec; \d+\.\d{3} sec/batch\)"
    for line, step in zip(lines, (0, 2, 4), strict=True):
        assert re.fullmatch(rf"\S+ \S+: step {step}, loss = \d\.\d\d {speed}", line)
    assert "loss = 4.6" in lines[0] or "loss = 4.7" in lines[0]
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 2, 4]
    assert {"loss", "cross_entropy", "l2", "precision", "learning_rate"} < set(records[0])


def test_checkpoints_come_by_steps_and_at_the_end(config, tmp_path):
    seen = []
    config.num_steps, config.checkpoint.every_steps = 5, 2
    config.checkpoint.keep, config.checkpoint.keep_every_steps = 1, 4
    train.train(config, tmp_path, after_checkpoint=seen.append)
    assert seen == [2, 4, 5]
    assert checkpoint.steps(tmp_path / "checkpoints") == [4, 5]
    train.train(config, tmp_path, after_checkpoint=seen.append)  # has ended: the last one again
    assert seen == [2, 4, 5, 5]


def test_checkpoints_come_by_minutes(config, tmp_path):
    seen = []
    config.num_steps, config.checkpoint.every_steps = 3, 0
    config.checkpoint.every_minutes = 1e-9  # passed before any step has ended
    train.train(config, tmp_path / "often", after_checkpoint=seen.append)
    config.checkpoint.every_minutes = 60.0
    train.train(config, tmp_path / "seldom", after_checkpoint=seen.append)
    assert seen == [1, 2, 3, 3]


def test_a_loss_that_diverges_stops_the_run(config, tmp_path):
    config.optim.learning_rate = 1e20
    with pytest.raises(
        UserError,
        match=r"The (loss is (nan|inf) at step \d|parameters are no longer finite).* "
        r"The last good checkpoint does not exist yet.*learning_rate",
    ):
        train.train(config, tmp_path)
    assert checkpoint.steps(tmp_path / "checkpoints") == []


def test_parameters_that_are_not_finite_are_never_saved(config, tmp_path, monkeypatch):
    """The loss is of the step before: the update may have spoilt what it does not show yet."""
    config.num_steps = 3
    train.train(config, tmp_path)
    original = steps.train_step

    def spoilt(state, batch, **bound):
        new, metrics = original(state, batch, **bound)
        return new.replace(params=jax.tree.map(lambda p: p * np.nan, new.params)), metrics

    monkeypatch.setattr(steps, "train_step", spoilt)
    config.num_steps = 4
    with pytest.raises(UserError, match=r"after step 3. The last good checkpoint is 3, in"):
        train.train(config, tmp_path)
    assert checkpoint.steps(tmp_path / "checkpoints") == [3]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optim.decay_layers", ("local3", "lokal4"), "'lokal4'. Did you mean 'local4'"),
        ("augment.crop_size", 40, "crop_size = 40 is larger than the images, 32x32"),
        ("data.dir", "/nowhere/at/all", "Cannot store|Cannot download"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    config, tmp_path, field, value, message, monkeypatch
):
    monkeypatch.setattr(train.sources.download, "OPEN_SECONDS", 0.1)
    config.update_from_flattened_dict(
        {field: value if field != "data.dir" else str(tmp_path / "d")}
    )
    with pytest.raises(UserError, match=message):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_workdir_of_another_run_is_left_alone(config, tmp_path):
    train.train(config, tmp_path)
    before = (tmp_path / "config.json").read_text()
    config.seed = 1
    with pytest.raises(UsageError, match="seed is 0 there, 1 now"):
        train.train(config, tmp_path)
    assert (tmp_path / "config.json").read_text() == before


def test_a_workdir_that_cannot_be_written(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot use the workdir .*file/run.*--workdir=DIR"):
        train.train(config, tmp_path / "file" / "run")
