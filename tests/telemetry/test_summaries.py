"""What the writer's thread puts on disk, read back; and disks that refuse."""

import errno
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from cifar_jax.telemetry import summaries
from cifar_jax.workdir import records
from tests.conftest import ROOT


def events(folder):
    """Every event of TensorBoard's files, in their order."""
    for path in sorted(folder.glob("events*"), key=lambda path: int(path.suffix[1:])):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            yield event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[12 + length + 4 :]


def values(workdir, kind="train"):
    """{(tag, step): value} of all summaries."""
    return {
        (value.tag, event.step): value
        for event in events(workdir / "tensorboard" / kind)
        for value in event.summary.value
    }


@pytest.fixture
def writer(tmp_path):
    made = []

    def make(kind="train", **options):
        made.append(summaries.Writer(tmp_path, kind, **options))
        return made[-1]

    yield make
    for one in made:
        if one._thread.is_alive():
            one.close()


def test_scalars_go_to_tensorboard_and_to_one_json_object_a_line(tmp_path, writer):
    for kind in ("train", "eval"):
        one = writer(kind)
        one.scalars(10, {"loss": 4.5})
        one.scalars(20, {"loss": 4.25, "l2": 2.0})
        one.close()
        found = {key: value.simple_value for key, value in values(tmp_path, kind).items()}
        assert found == {("loss", 10): 4.5, ("loss", 20): 4.25, ("l2", 20): 2.0}
    lines = records.read(tmp_path / "metrics.jsonl")
    assert [(r["kind"], r["step"], r["loss"]) for r in lines] == [
        *(("train", 10, 4.5), ("train", 20, 4.25)),
        *(("eval", 10, 4.5), ("eval", 20, 4.25)),
    ]
    assert all(r["time"] > 1e9 for r in lines)


def test_a_histogram_counts_what_is_no_number(tmp_path, writer):
    one = writer()
    one.histogram(5, "a", np.array([[0.0, 1.0], [1.0, np.nan], [np.inf, 4.0]]))
    one.histogram(5, "b", np.array([np.nan]))
    one.histogram(5, "c", np.array([2.0, 2.0]))
    one.close()
    found = values(tmp_path)
    histogram = found["a", 5].histo
    assert (histogram.min, histogram.max, histogram.num, histogram.sum) == (0, 4, 4, 6)
    assert histogram.sum_squares == 18
    assert sum(histogram.bucket) == 4
    assert [n for n in histogram.bucket if n] == [1, 2, 1]
    assert found["not_finite/a", 5].simple_value == 2
    assert found["not_finite/b", 5].simple_value == 1
    assert ("b", 5) not in found
    assert found["c", 5].histo.num == 2


def test_text_pictures_and_hyperparameters(tmp_path, writer):
    one = writer()
    one.text("model", "| a | b |")
    one.image(3, "inputs", lambda: np.zeros((4, 6, 3), np.uint8))
    one.hparams({"optim.name": "sgd", "seed": 1, "eval.layers": ("a",)}, [("eval", "loss")])
    one.close()
    found = values(tmp_path) | values(tmp_path, ".")
    assert found["model/text_summary", 0].tensor.string_val == [b"| a | b |"]
    assert (found["inputs", 3].image.width, found["inputs", 3].image.height) == (6, 4)
    start = found["_hparams_/session_start_info", 0].metadata.plugin_data.content
    assert b"optim.name" in start
    assert b"('a',)" in start
    experiment = found["_hparams_/experiment", 0].metadata.plugin_data.content
    (metric,) = HParamsPluginData.FromString(experiment).experiment.metric_infos
    assert (metric.name.group, metric.name.tag) == ("eval", "loss")


def test_a_resumed_run_takes_back_what_comes_again(tmp_path, writer):
    first, other = writer(resumed_at=0), writer("eval")
    for step in (0, 10, 20):
        first.scalars(step, {"loss": 1.0})
        other.scalars(step, {"precision_at_1": 0.5})
    first.close()
    other.close()
    again = writer(resumed_at=10)
    again.scalars(10, {"loss": 2.0})
    again.close()
    found = [
        (r["step"], r["loss"]) for r in records.read(tmp_path / "metrics.jsonl") if "loss" in r
    ]
    assert found == [(0, 1.0), (10, 2.0)]
    kinds = [r["kind"] for r in records.read(tmp_path / "metrics.jsonl")]
    assert kinds.count("eval") == 3
    assert kinds.count("start") == 2
    (*_, start) = (
        e for e in events(tmp_path / "tensorboard" / "train") if e.HasField("session_log")
    )
    assert (start.step, start.session_log.status) == (10, event_pb2.SessionLog.START)


def test_a_full_disk_costs_one_warning(tmp_path, writer, monkeypatch, capsys):
    monkeypatch.setattr(summaries, "RETRY_SECONDS", 0.0)
    full = True
    original = records.append

    def append(path, record):
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, record)

    monkeypatch.setattr(records, "append", append)
    one = writer()
    for step in range(3):
        one.scalars(step, {"loss": 1.0})
    one.close()
    full = False
    two = writer()
    two.scalars(7, {"loss": 1.0})
    two.close()
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Summaries cannot be written to" in error
    assert "No space left on device. Training goes on without." in error
    assert [r["step"] for r in records.read(tmp_path / "metrics.jsonl")] == [7]


def test_a_folder_that_vanishes_is_said_and_made_again(tmp_path, writer, monkeypatch, capsys):
    monkeypatch.setattr(summaries, "RETRY_SECONDS", 0.0)
    one = writer()
    for step in range(3):
        one.scalars(step, {"loss": 1.0})
        one._put(one._flush)
        done = summaries.threading.Event()
        one._put(done.set)
        assert done.wait(10)
        if step == 0:
            shutil.rmtree(tmp_path / "tensorboard")
    one.close()
    assert capsys.readouterr().err.count("its folder of events is gone") == 1
    assert ("loss", 2) in values(tmp_path)


def test_a_failure_is_not_tried_again_at_once(tmp_path, writer, monkeypatch, capsys):
    """Else a full disk would be filled with empty files."""
    tries = []

    def append(path, record):
        tries.append(record)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(records, "append", append)
    one = writer()
    for step in range(5):
        one.scalars(step, {"loss": 1.0})
    one.close()
    assert len(tries) == 1
    capsys.readouterr()


def test_what_is_a_mistake_of_ours_is_raised(writer):
    one = writer()
    one.image(0, "broken", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        one.close()


def test_the_average_is_the_tutorials():
    """Zero at first, and made up for: v / (1 - 0.9^n)."""
    average, biased = summaries.Average(), 0.0
    for n, value in enumerate((4.0, 2.0, 3.0), start=1):
        biased = 0.9 * biased + 0.1 * value
        assert math.isclose(average.update(value), biased / (1 - 0.9**n))
    average.restart(3.0)
    assert math.isclose(average.update(4.0), 3.1)


def test_warnings_name_the_workdir(tmp_path, capsys):
    one = summaries.Writer(tmp_path / "gone", "train")
    one.scalars(0, {"loss": 1.0})
    one.close()
    assert re.search(r"written to \S*gone: No such file", capsys.readouterr().err)


@pytest.fixture
def stuck(writer):
    """A writer whose disk takes nothing until the event is set."""
    one, go = writer(), threading.Event()
    one._put(go.wait)
    while one._queue.qsize():
        time.sleep(0.001)
    yield one, go
    go.set()


def test_what_waits_for_a_slow_disk_is_bounded(tmp_path, stuck, monkeypatch, capsys):
    monkeypatch.setattr(summaries, "MAX_BYTES", 1000)
    monkeypatch.setattr(summaries, "MAX_WAITING", 20)
    one, go = stuck
    for step in range(10):
        one.histogram(step, "weights", np.zeros(50, np.float32))  # 200 bytes each
        one.image(step, "inputs", lambda: np.zeros((4, 6, 3), np.uint8), 200)
        one.scalars(step, {"loss": 1.0})
    assert one._bytes == 1000
    assert capsys.readouterr().err == (
        "Summaries come faster than they can be written: images and histograms are thinned out.\n"
    )
    for step in range(10, 30):
        one.scalars(step, {"loss": 1.0})
    scalars_too = "Summaries come faster than they can be written: scalars are left out.\n"
    assert capsys.readouterr().err == scalars_too
    go.set()
    one.close()
    assert one._bytes == 0
    found = values(tmp_path)
    assert sum(tag in ("weights", "inputs") for tag, _ in found) == 5
    assert [r["step"] for r in records.read(tmp_path / "metrics.jsonl")] == list(range(15))


def test_one_that_is_larger_than_the_bound_is_written(tmp_path, writer, monkeypatch):
    monkeypatch.setattr(summaries, "MAX_BYTES", 100)
    one = writer()
    one.histogram(0, "weights", np.zeros(50, np.float32))
    one.close()
    assert ("weights", 0) in values(tmp_path)


def test_close_gives_up_after_some_seconds(stuck, capsys):
    one, _ = stuck
    start = time.monotonic()
    one.close(0.05)
    assert time.monotonic() - start < 5
    assert capsys.readouterr().err == "The last summaries were not written within 0.05 s.\n"


@pytest.mark.parametrize("kind", ["eval", "eval_train"])
def test_an_evaluation_says_that_it_goes_on(tmp_path, capsys, kind):
    one = summaries.Writer(tmp_path / "gone", kind)
    one.scalars(0, {"loss": 1.0})
    one.close()
    assert "No such file or directory. Evaluation goes on without." in capsys.readouterr().err


def test_what_is_no_number_is_null_and_no_point_of_a_curve(tmp_path, writer, caplog):
    one = writer()
    with caplog.at_level(logging.WARNING):
        one.scalars(1, {"loss": 2.0, "a": math.nan, "b": math.inf})
        one.close()
    assert caplog.text == ""
    assert set(values(tmp_path)) == {("loss", 1)}
    assert '"a": null, "b": null' in (tmp_path / "metrics.jsonl").read_text()


def test_the_same_measurement_replaces_itself_alone(tmp_path, writer):
    def measure(step, value, kind="eval", **facts):
        one = writer(kind)
        one.scalars(step, {"value": value}, facts)
        one.close()

    old = writer("eval")
    old.scalars(3, {"value": 0.0})  # without facts
    old.close()
    measure(6, 1.0, dataset="a", images=5)
    measure(9, 2.0, dataset="a", images=5)
    measure(6, 3.0, dataset="a", images=7)
    measure(6, 4.0, dataset="b", images=5)
    measure(6, 5.0, kind="other", dataset="a", images=5)
    measure(6, 6.0, dataset="a", images=5)
    measure(3, 7.0, dataset="a", images=5)
    found = sorted((r["value"], r["step"]) for r in records.read(tmp_path / "metrics.jsonl"))
    assert found == [(2.0, 9), (3.0, 6), (4.0, 6), (5.0, 6), (6.0, 6), (7.0, 3)]


def test_names_of_any_bytes(tmp_path, writer):
    odd = "caf\udce9 \x00 \n"
    one = writer()
    one.scalars(1, {f"precision_at_1/{odd}": 0.5})
    one.text("model", odd)
    one.hparams({"data.dir": odd}, [("eval", "loss")])
    one.close()
    assert len(values(tmp_path)) == 2
    (record,) = records.read(tmp_path / "metrics.jsonl")
    assert record[f"precision_at_1/{odd}"] == 0.5


def test_pytorch_is_not_imported_where_it_is_installed(tmp_path):
    (tmp_path / "torch.py").write_text("print('imported')\n")
    code = (
        "import pathlib\n"
        "pathlib.Path('run').mkdir()\n"
        "from cifar_jax.telemetry.summaries import Writer\n"
        "writer = Writer(pathlib.Path('run'), 'train')\n"
        "writer.scalars(1, {'loss': 2.0})\n"
        "writer.close()\n"
        "print('written')\n"
        "import torch\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.stdout.split() == ["written", "imported"], done.stderr
    assert list((tmp_path / "run").rglob("events*"))
