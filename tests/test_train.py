"""The training loop: bit-exact resume, cadence, divergence, signals."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from cifar_jax import models, steps, train
from cifar_jax.data import download, shards, sources, splits
from cifar_jax.errors import Diverged, Interrupted, UsageError, UserError
from cifar_jax.loop import calls, saver, training
from cifar_jax.ops import native
from cifar_jax.telemetry import display
from cifar_jax.telemetry import log as log_lib
from cifar_jax.workdir import checkpoint, description, pytrees, records
from tests.conftest import NUM_TRAIN
from tests.telemetry.test_summaries import values


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The bytes of the state after 6 steps in one go; made by the first test that asks."""
    cache = {}

    def get(config):
        if not cache:
            cache["bytes"] = state_bytes(
                train.train(config, tmp_path_factory.mktemp("whole")).state
            )
        return cache["bytes"]

    return get


def state_bytes(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def test_two_runs_give_the_same_bytes(config, tmp_path, uninterrupted):
    assert state_bytes(train.train(config, tmp_path).state) == uninterrupted(config)


def test_another_seed_gives_others(config, tmp_path, uninterrupted):
    expected = uninterrupted(config)
    config.seed = 1
    assert state_bytes(train.train(config, tmp_path).state) != expected


@pytest.mark.parametrize("last", [0, 1, 2])
def test_a_resumed_run_gives_the_bytes_of_the_uninterrupted_one(
    config, tmp_path, uninterrupted, last, monkeypatch, capsys
):
    expected = uninterrupted(config)
    original = log_lib.Log.note

    def note(self, number, *rest):
        original(self, number, *rest)
        if number == last:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(log_lib.Log, "note", note)
    with pytest.raises(Interrupted, match=r"Stopped by SIGTERM: step \d is saved") as stopped:
        train.train(config, tmp_path)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert checkpoint.status(tmp_path / "checkpoints").finished is None
    assert state_bytes(train.train(config, tmp_path).state) == expected
    assert "Resuming from step" in capsys.readouterr().out
    assert checkpoint.status(tmp_path / "checkpoints").finished == 6


def test_a_signal_between_two_looks_is_not_taken_for_saved(config, tmp_path, monkeypatch):
    """It comes while the loop asks whether a checkpoint is due. The next step carries it to all
    processes, the one after ends; and step 3, which is saved by its number, is between them."""
    original = saver.Saver.due

    def due(self, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, step)

    monkeypatch.setattr(saver.Saver, "due", due)
    with pytest.raises(Interrupted, match="step 5 is saved"):
        train.train(config, tmp_path)
    assert checkpoint.newest(tmp_path / "checkpoints", print) == 5


@pytest.mark.parametrize(
    ("field", "value"),
    [("optim.momentum", 0.9), ("model.name", "resnet18"), ("optim.groups", ({"params": "*"},))],
)
def test_a_resume_that_cannot_work_changes_nothing(config, tmp_path, field, value):
    config.num_steps = 3
    train.train(config, tmp_path)
    before = (tmp_path / "config.json").read_text()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UsageError, match=re.escape(f"{value!r} now")):
        train.train(config, tmp_path)
    assert (tmp_path / "config.json").read_text() == before


def test_a_mark_of_an_earlier_end_is_taken_away(config, tmp_path):
    """Though no checkpoint is left: a follower would take it for the end of this run."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    checkpoint.mark(folder, finished=3)
    seen = []
    train.train(
        config, tmp_path, after_checkpoint=lambda _: seen.append(checkpoint.status(folder).finished)
    )
    assert seen == [None, None]
    assert checkpoint.status(folder).finished == 6


def test_an_end_that_was_not_marked_is_marked(config, tmp_path):
    """Else an evaluation beside it would wait for ever."""
    train.train(config, tmp_path)
    checkpoint.mark(tmp_path / "checkpoints", finished=None)
    train.train(config, tmp_path)
    assert checkpoint.status(tmp_path / "checkpoints").finished == 6


def test_a_start_beside_another_changes_nothing(config, tmp_path):
    train.train(config, tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    config.optim.learning_rate = 0.7
    with (
        contextlib.closing(pytrees.Writer(tmp_path / "checkpoints", keep=1)),
        pytest.raises(UserError, match="is writing to"),
    ):
        train.train(config, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


def test_the_metrics_before_a_checkpoint_are_read_before_it(config, tmp_path, monkeypatch):
    """A checkpoint whose last loss nobody looked at could be of a run that had diverged."""
    read = []
    monkeypatch.setattr(log_lib.Log, "_read", lambda self, number, *_: read.append(number))
    train.train(config, tmp_path, after_checkpoint=lambda step: read.append(f"saved {step}"))
    assert read == [0, 1, 2, "saved 3", 3, 4, 5, "saved 6"]


def test_several_steps_in_a_call_are_the_same_steps(config, tmp_path, uninterrupted, capsys):
    """Six steps as a call of 2 and a single one, up to each checkpoint at a multiple of 3."""
    one = uninterrupted(config)
    capsys.readouterr()
    config.steps_per_call = 2
    state = train.train(config, tmp_path).state
    for several, single in zip(jax.tree.leaves(state), one, strict=True):
        single = np.frombuffer(single, several.dtype).reshape(several.shape)
        # Where two values of a pooling are as good as equal, rounding decides who wins.
        assert np.linalg.norm(several - single) <= 1e-2 * np.linalg.norm(single)
    assert checkpoint.steps(tmp_path / "checkpoints") == [3, 6]
    lines = [line for line in capsys.readouterr().out.splitlines() if ": step " in line]
    assert [re.search(r"step (\d+)", line)[1] for line in lines] == ["0", "2", "4"]


@pytest.mark.slow
def test_scalars_of_steps_within_a_call_are_those_of_single_steps(config, tmp_path):
    config.summaries.update({"scalars": 2, "images": 6, "histograms": 0})
    config.checkpoint.every_steps = 6
    found = []
    for name, config.steps_per_call in (("single", 1), ("whole", 6)):
        train.train(config, tmp_path / name)
        written = records.read(tmp_path / name / "metrics.jsonl")
        found.append({r["step"]: r for r in written if r["kind"] == "train"})
    single, whole = found
    assert list(whole) == list(single) == [0, 2, 4]
    for step, record in single.items():
        assert whole[step].keys() == record.keys()
        for name in ("loss", "learning_rate", "gradient_norm/conv1/kernel", "update_norm"):
            if name in record:
                assert whole[step][name] == pytest.approx(record[name], rel=1e-2), (step, name)


def test_a_loss_that_diverges_within_a_call_has_its_step(config, tmp_path):
    config.optim.learning_rate, config.steps_per_call = 1e20, 2
    with pytest.raises(UserError, match=r"loss is (nan|inf) at step 1; it was finite in the"):
        train.train(config, tmp_path)


@pytest.fixture
def clock(monkeypatch):
    """A clock that shows the given times, one after the other."""

    def show(*times):
        looks = iter(times)
        monkeypatch.setattr(log_lib, "time", types.SimpleNamespace(monotonic=lambda: next(looks)))

    return show


@pytest.fixture
def a_log(config, tmp_path):
    config.summaries.scalars = 2
    log = log_lib.Log(config, tmp_path, UserError, display.Display(6, 0), 0)
    yield log
    log.close()


def metrics(count):
    one = np.ones(count)
    values = {"loss": one, "cross_entropy": one, "l2": 0 * one, "learning_rate": one}
    return {**values, "dead": np.zeros((count, 0), bool)}


@pytest.mark.parametrize(
    ("cadence", "shortest", "following"),
    [
        ((10, 100, 100), 10, {0: 10, 9: 10, 10: 20, 95: 100}),
        ((10, 15, 0), 10, {0: 10, 10: 15, 15: 20, 29: 30}),
        ((0, 0, 7), 7, {0: 7, 13: 14}),
        ((0, 0, 0), math.inf, {0: math.inf}),
    ],
)
def test_a_call_ends_before_the_next_step_that_tells(a_log, cadence, shortest, following):
    names = ("scalars", "images", "histograms")
    a_log._config.summaries.update(dict(zip(names, cadence, strict=True)))
    assert {number: a_log.next_due(number) for number in following} == following
    assert all(a_log.detail(step) for step in following.values() if step < math.inf)
    between = range(1, int(min(shortest, 10)))
    assert not any(a_log.detail(step) for step in between)


def test_scalars_may_lie_within_a_call(a_log):
    a_log._config.summaries.update({"scalars": 10, "images": 100, "histograms": 0})
    assert a_log.next_due(0, 50) == a_log.next_due(50, 50) == 100
    assert a_log.next_due(5, 50) == 10  # scalars are at equal distances from a call's first step
    assert a_log.next_due(0, 15) == 10


def test_the_time_of_a_call_is_shared_by_its_steps(a_log, clock, capsys):
    clock(0.0, 1.0, 9.0)  # start, steps 0 and 1, steps 2 to 5
    told = {"scalars": {}}
    a_log._config.summaries.scalars = 0
    with a_log:
        a_log.note(0, metrics(2), told)
        a_log.note(2, metrics(4), told)
        a_log.flush()
    lines = re.findall(r"step (\d).*; (\S+) sec/batch", capsys.readouterr().out)
    assert lines == [("0", "0.500"), ("2", "1.250"), ("4", "2.000")]


def test_the_time_of_saving_is_not_the_steps(a_log, clock, capsys):
    clock(0.0, 10.0, 110.0, 112.0)  # start, pause, its end, the metrics
    with a_log:
        with a_log.paused():
            pass
        a_log.note(0, metrics(1), {"scalars": {}})
        a_log.flush()
    assert "12.000 sec/batch" in capsys.readouterr().out


def test_the_share_of_time_that_waits_for_data(a_log, clock, tmp_path):
    clock(0.0, 8.0)  # start, the metrics
    with a_log:
        a_log.fed(2.0, 0.5)
        a_log.note(0, metrics(1), {"scalars": {"gradient_norm": np.float32(3)}})
        a_log.flush()
    a_log.close()
    (*_, found) = records.read(tmp_path / "metrics.jsonl")
    assert (found["data_wait"], found["data_fill"]) == (0.25, 0.5)
    assert found["seconds_per_batch"] == 8.0
    assert (found["gradient_norm"], found["loss_average"]) == (3.0, 1.0)


@pytest.mark.parametrize("placement", ["host", "stream"])
def test_images_give_the_same_bytes_wherever_they_are(config, tmp_path, uninterrupted, placement):
    expected = uninterrupted(config)
    data = sources.load(config.data, "train")
    shards.write(tmp_path / "shards", "train", data, num_shards=3)
    config.data.update(placement=placement, shards=str(tmp_path / "shards"), num_threads=2)
    assert state_bytes(train.train(config, tmp_path / "run").state) == expected
    stored = description.load(tmp_path / "run")
    assert stored.data.shards == str(tmp_path / "shards")
    config.data.update(placement="device", shards="")  # a resume may have them elsewhere
    train.train(config, tmp_path / "run")


def test_a_damaged_shard_stops_the_run_and_says_which(config, tmp_path):
    data = sources.load(config.data, "train")
    shards.write(tmp_path / "shards", "train", data, num_shards=1)
    (file,) = (tmp_path / "shards" / "train").glob("*.array_record")
    content = bytearray(file.read_bytes())
    content[70_000] ^= 1
    file.write_bytes(content)
    config.data.update(placement="stream", shards=str(tmp_path / "shards"), num_threads=2)
    with pytest.raises(UserError, match=r"train-00000-of-00001.array_record"):
        train.train(config, tmp_path / "run")


def test_a_damaged_last_checkpoint_costs_steps_but_no_bit(config, tmp_path, uninterrupted, capsys):
    config.num_steps = 5
    train.train(config, tmp_path)
    folder = tmp_path / "checkpoints"
    assert checkpoint.steps(folder) == [3, 5]
    (folder / "5" / "manifest.json").unlink()
    config.num_steps = 6
    assert state_bytes(train.train(config, tmp_path).state) == uninterrupted(config)
    out = capsys.readouterr().out
    assert "Checkpoint 5 is damaged and not used: manifest.json is missing." in out
    assert "Resuming from step 3" in out


def test_console_lines_and_scalars_come_by_cadence(config, tmp_path, capsys):
    config.summaries.update(scalars=3, histograms=6)
    train.train(config, tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if ": step " in line]
    speed = r"\(\d+\.\d examples/sec; \d+\.\d{3} sec/batch\)"
    for line, step in zip(lines, (0, 2, 4), strict=True):
        assert re.fullmatch(rf"\S+ \S+: step {step}, loss = \d\.\d\d {speed}", line)
    assert "loss = 4.6" in lines[0] or "loss = 4.7" in lines[0]
    start, *found = records.read(tmp_path / "metrics.jsonl")
    assert (start["kind"], start["step"]) == ("start", 0)
    assert [record["step"] for record in found] == [0, 3]
    losses = {
        f"{name}{kind}" for name in ("loss", "cross_entropy", "l2") for kind in ("", "_average")
    }
    norms = {"gradient_norm", "parameter_norm/conv1", "update_ratio/local4", "sparsity/pool1"}
    rest = {
        "accuracy",
        "learning_rate",
        "examples_per_second",
        "seconds_per_batch",
        "data_wait",
        "data_fill",
    }
    assert losses | norms | rest < set(found[0])
    assert "sparsity/pool1" not in found[1]  # comes with the histograms


def test_a_resumed_run_continues_the_curves(config, tmp_path):
    """No step twice, none missing, and the averages go on."""
    config.summaries.scalars = 1
    train.train(config, tmp_path / "whole")
    config.num_steps = 5
    train.train(config, tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "5")
    config.num_steps = 6
    train.train(config, tmp_path / "parts")
    whole, parts = (
        [r for r in records.read(tmp_path / name / "metrics.jsonl") if r["kind"] == "train"]
        for name in ("whole", "parts")
    )
    assert [r["step"] for r in parts] == [r["step"] for r in whole] == list(range(6))
    assert [r["loss"] for r in parts] == [r["loss"] for r in whole]
    averages = [[r["loss_average"] for r in run] for run in (parts, whole)]
    np.testing.assert_allclose(*averages, rtol=0.05)
    assert averages[0][3] != parts[3]["loss"]


@pytest.mark.parametrize("kind", ["scalars", "images", "histograms"])
def test_each_kind_can_be_off(config, tmp_path, kind):
    config.num_steps = 1
    config.summaries.update(scalars=1, images=1, histograms=1)
    config.summaries[kind] = 0
    train.train(config, tmp_path)
    tags = {tag for tag, _ in values(tmp_path)}
    assert ("loss" in tags) is (kind != "scalars")
    assert ({"inputs", "filters"} <= tags) is (kind != "images")
    wanted = {"params/conv1/kernel", "gradients/local4/bias", "activations/norm2"}
    assert (wanted <= tags) is (kind != "histograms")
    assert "model/text_summary" in tags


@pytest.mark.slow
def test_a_trace_of_the_steps_asked_for(config, tmp_path, capsys):
    config.profile.steps = (2, 4)
    train.train(config, tmp_path)
    (line,) = re.findall(r"The trace is in (\S+): tensorboard", capsys.readouterr().out)
    names = {path.name for path in Path(line).iterdir()}
    assert any(name.endswith(".xplane.pb") for name in names)
    assert any("perfetto" in name for name in names)


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
    assert seen == [2, 3, 3]  # what is wished with a step is done after the next


def test_a_loss_that_diverges_stops_the_run(config, tmp_path):
    config.optim.learning_rate = 1e20
    with pytest.raises(
        UserError,
        match=r"The (loss is (nan|inf) at step \d|parameters are no longer finite).* "
        r"There is no good checkpoint yet.*learning_rate",
    ):
        train.train(config, tmp_path)
    assert checkpoint.steps(tmp_path / "checkpoints") == []


def check(log, losses, dead):
    """Feeds the log with losses, and bools [steps, layers]."""
    log._layers = ["conv1", "conv2", "local3"]
    for number, (loss, row) in enumerate(zip(losses, dead, strict=True)):
        log._check(number, loss, np.array(row))
        log._averages["loss"].update(loss)


ALIVE = [False, False, False]


def test_a_loss_that_grows_without_end_is_divergence_and_a_peak_is_not(a_log):
    a_log._bound = 40.0
    check(a_log, [4.0, 4.0, 60.0, 4.0, 4.0], [ALIVE] * 5)
    assert not a_log.healthy  # for the checkpoint after that peak
    with pytest.raises(UserError, match=r"average loss is 2.13e\+13 at step 0, more than 40"):
        check(a_log, [1e14], [ALIVE])


def test_a_dead_network_is_divergence_once_it_lasts(a_log):
    a_log._log_every = 3
    dead = [True, True, False]
    check(a_log, [2.3] * 5, [dead, dead, ALIVE, dead, dead])
    assert not a_log.healthy
    a_log._dead_since = {}
    with pytest.raises(
        UserError, match=r"No gradient reaches conv1 and conv2 in the steps 0 to 2: .*sparsity 1"
    ):
        check(a_log, [2.3] * 3, [dead] * 3)


def test_no_gradient_anywhere_is_a_loss_of_zero(a_log):
    a_log._log_every = 1
    check(a_log, [0.0] * 3, [[True] * 3] * 3)
    assert a_log.healthy


def test_divergence_that_is_to_go_on_is_said_once(a_log, capsys):
    a_log._config.divergence.action = "continue"
    a_log._bound = 40.0
    check(a_log, [math.nan, 1e9, math.inf], [ALIVE] * 3)
    out = capsys.readouterr().out
    assert out.count("Training goes on, as config.divergence.action says.") == 1
    assert not a_log.healthy


@pytest.mark.parametrize("action", ["stop", "continue"])
def test_a_good_checkpoint_outlives_divergence(config, tmp_path, action):
    """Finite to the end, at a rate at which the network dies or its weights grow without end."""
    config.optim.learning_rate = 3.0
    config.checkpoint.update(every_steps=1, keep=1)
    config.divergence.action = action
    config.num_steps = 25
    folder = tmp_path / "checkpoints"
    if action == "stop":
        with pytest.raises(Diverged, match=r"The last good checkpoint is \d+, in .*--from_step="):
            train.train(config, tmp_path)
        assert checkpoint.status(folder).diverged
    else:
        train.train(config, tmp_path)
        assert checkpoint.status(folder).finished == 25
    good = checkpoint.status(folder).good
    assert good in checkpoint.steps(folder) and checkpoint.check(folder / str(good)) == ""
    assert good < 6


def test_an_end_takes_the_mark_of_an_earlier_divergence_away(config, tmp_path):
    train.train(config, tmp_path)
    checkpoint.mark(tmp_path / "checkpoints", finished=None, diverged="The loss is nan.")
    train.train(config, tmp_path)  # has ended already
    assert checkpoint.status(tmp_path / "checkpoints")[1:3] == (6, "")


def test_the_first_loss_is_that_of_the_tutorial(config):
    config.divergence.factor = 1.0
    assert training.prepare(config).loss_bound() == pytest.approx(4.68, abs=0.01)


def test_the_explicit_words_rename_what_lies_beyond(config, tmp_path, uninterrupted, capsys):
    folder = tmp_path / "checkpoints"
    train.train(config, tmp_path)
    assert checkpoint.steps(folder) == [3, 6]
    with pytest.raises(UserError, match="--from_step=4: there is none; there are 3, 6, in"):
        train.train(config, tmp_path, from_step=4)
    assert state_bytes(train.train(config, tmp_path, from_step=3).state) == uninterrupted(config)
    assert (folder / "6.superseded").is_dir() and checkpoint.steps(folder) == [3, 6]
    assert state_bytes(train.train(config, tmp_path, restart=True).state) == uninterrupted(config)
    assert "Checkpoint 6 is kept as" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        *("3", "6", "6.superseded", "3.superseded", "6.superseded.2")
    }


def test_where_no_checkpoint_can_be_used_nothing_is_changed(config, tmp_path):
    config.num_steps = 3
    train.train(config, tmp_path)
    manifest = tmp_path / "checkpoints" / "3" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text("{}")
    for _ in range(2):
        with pytest.raises(UserError, match=r"3 is damaged .* --restart begins at step 0"):
            train.train(config, tmp_path)
        assert checkpoint.steps(tmp_path / "checkpoints") == [3]
    manifest.write_text(text)
    assert int(train.train(config, tmp_path).state.step) == 3


def test_a_file_that_cannot_be_read_stops_the_resume_and_costs_nothing(
    config, tmp_path, monkeypatch
):
    config.num_steps = 4
    train.train(config, tmp_path)

    def fail(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint, "_sha256", fail)
    with pytest.raises(UserError, match=r"/4/\S+ cannot be read: Permission denied. Nothing was"):
        train.train(config, tmp_path)
    assert checkpoint.steps(tmp_path / "checkpoints") == [3, 4]


def test_a_start_that_makes_no_step_leaves_the_record_as_it_is(config, tmp_path):
    train.train(config, tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    config.optim.learning_rate = 0.5
    train.train(config, tmp_path)  # has ended already
    assert (tmp_path / "config.json").read_bytes() == before
    config.num_steps = 7
    train.train(config, tmp_path)
    (change,) = json.loads((tmp_path / "config.json").read_text())["changes"]
    assert change["step"] == 6
    assert change["was"] == {"config.num_steps": 6, "config.optim.learning_rate": 0.1}
    assert change["is"] == {"config.num_steps": 7, "config.optim.learning_rate": 0.5}


def test_a_workdir_deleted_meanwhile_is_whole_again_with_the_next_checkpoint(config, tmp_path):
    workdir, seen = tmp_path / "run", []

    def delete(step):
        if not seen:
            shutil.rmtree(workdir)
        seen.append(step)

    train.train(config, workdir, after_checkpoint=delete)
    assert checkpoint.newest(workdir / "checkpoints", print) == 6
    assert (workdir / "config.json").exists()


def test_the_time_of_a_step_is_taken_before_the_next_is_compiled(config, tmp_path, monkeypatch):
    """Else it would seem to have taken none: it ends while the compiler works."""
    order = []
    for module, name in ((log_lib.Log, "flush"), (calls, "compile_steps")):
        original = getattr(module, name)

        def noted(*arguments, name=name, original=original):
            order.append(name)
            return original(*arguments)

        monkeypatch.setattr(module, name, noted)
    config.summaries.scalars = 4
    config.num_steps = 2
    train.train(config, tmp_path)
    compiled = [n for n, name in enumerate(order) if name == "compile_steps"]
    assert len(compiled) == 2
    assert all(order[n - 1] == "flush" for n in compiled)


def test_parameters_that_are_not_finite_are_never_saved(config, tmp_path, monkeypatch):
    """The loss is of the step before: the update may have spoilt what it does not show yet."""
    config.num_steps = 3
    train.train(config, tmp_path)
    original = steps.train_step

    def spoilt(*arguments, **bound):
        new, *rest = original(*arguments, **bound)
        return new.replace(params=jax.tree.map(lambda p: p * np.nan, new.params)), *rest

    monkeypatch.setattr(steps, "train_step", spoilt)
    config.num_steps = 4
    with pytest.raises(UserError, match=r"after step 3. The last good checkpoint is 3, in"):
        train.train(config, tmp_path)
    assert checkpoint.steps(tmp_path / "checkpoints") == [3]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optim.decay_params", ("lokal4/kernel",), "Did you mean 'local4/kernel'"),
        ("inputs.size", (40, 40), r"size = \(40, 40\) is larger than the images, 32x32"),
        ("data.dir", "/nowhere/at/all", "Cannot store|Cannot download"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    config, tmp_path, field, value, message, monkeypatch
):
    monkeypatch.setattr(download, "OPEN_SECONDS", 0.1)
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


def test_a_workdir_of_other_images_is_left_alone(config, tmp_path, data_dir):
    """In another folder there may be others; it is no part of the config that is compared."""
    train.train(config, tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_text()
    assert json.loads(before)["dataset"]["sizes"] == {"train": NUM_TRAIN}
    shutil.copytree(data_dir, tmp_path / "fewer")
    file = tmp_path / "fewer" / "cifar-10-batches-bin" / "data_batch_5.bin"
    file.write_bytes(file.read_bytes()[:-3073])
    config.data.dir = str(tmp_path / "fewer")
    config.num_steps = 9
    with pytest.raises(UsageError, match="number of training images 90 there, 89 now"):
        train.train(config, tmp_path / "run")
    assert (tmp_path / "run" / "config.json").read_text() == before


@pytest.mark.slow
def test_images_that_are_held_out_are_not_trained_on(config, tmp_path):
    """They may be of any content, wherever the images are."""
    config.data.validation = 0.2
    expected = state_bytes(train.train(config, tmp_path / "run").state)
    data = sources.load(config.data, "train")
    data.images[splits.validation_indices(config.seed, NUM_TRAIN, 18)] = 0
    shards.write(tmp_path / "shards", "train", data, num_shards=3)
    config.data.update(shards=str(tmp_path / "shards"), num_threads=2)
    dataset = description.load_dataset(tmp_path / "run")
    assert dataset.sizes == {"train": 72, "validation": 18}
    for placement in ("device", "host", "stream"):
        config.data.placement = placement
        assert state_bytes(train.train(config, tmp_path / placement).state) == expected
        assert description.load_dataset(tmp_path / placement) == dataset


def test_a_workdir_that_cannot_be_written(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot use the workdir .*file/run.*--workdir=DIR"):
        train.train(config, tmp_path / "file" / "run")


def test_half_precision_on_a_cpu_is_remarked_upon(config, monkeypatch):
    assert models.remarks("float32") == []
    config.dtype = "bfloat16"
    monkeypatch.setattr(native, "reason", lambda dtype: "no C++ compiler is installed")
    (remark,) = models.remarks("bfloat16")
    assert remark == "bfloat16 is computed in float32 here: no C++ compiler is installed."
    assert training.prepare(config).step.keywords["model"].dtype == "float32"
    monkeypatch.setattr(native, "reason", lambda dtype: None)
    assert models.remarks("bfloat16") == []
    assert training.prepare(config).step.keywords["model"].dtype == "bfloat16"


def test_growing_images_need_a_model_for_any_size(config):
    config.inputs.curriculum = ((1, 20),)
    with pytest.raises(UsageError, match="CNN has other parameters for images of 20x20"):
        training.prepare(config)
