"""metrics.jsonl under crashes, replacement and several writers."""

import math
import subprocess
import sys

import pytest

from cifar_jax import records
from tests.conftest import ROOT


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def record(step, kind="train", **values):
    return {"kind": kind, "step": step, **values}


def test_what_is_written_is_read(path):
    written = [record(0, loss=4.68), record(10, loss=1e30), record(10, "eval")]
    for one in written:
        records.append(path, one)
    assert records.read(path) == written
    assert path.read_text().count("\n") == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_null(path, value):
    records.append(path, record(0, loss=value))
    assert path.read_text() == '{"kind": "train", "step": 0, "loss": null}\n'
    (found,) = records.read(path)
    assert math.isnan(found["loss"])
    records.drop(path, lambda _: True)
    assert records.read(path) == []


def test_no_file_is_no_records(path):
    assert records.read(path) == []
    records.drop(path, lambda _: True)
    assert not path.exists()


@pytest.mark.parametrize("torn", ['{"kind": "train", "st', '{"kind": "tr\udcff', "7", "{}", "\x00"])
def test_half_a_line_costs_nothing_else(path, torn):
    records.append(path, record(0))
    with path.open("a", errors="surrogateescape") as file:
        file.write(torn)
    assert records.read(path) == [record(0)]
    records.append(path, record(10))
    assert records.read(path) == [record(0), record(10)]


def test_drop_keeps_the_rest(path):
    for one in (record(0), record(10), record(10, "eval"), record(20)):
        records.append(path, one)
    records.drop(path, lambda r: r["kind"] == "train" and r["step"] >= 10)
    assert records.read(path) == [record(0), record(10, "eval")]
    assert [file.name for file in path.parent.iterdir()] == ["metrics.jsonl"]


def test_several_processes_lose_no_line(path):
    """Two append while this one drops what nobody wrote, which replaces the file every time."""
    code = (
        "import sys; from pathlib import Path; from cifar_jax import records\n"
        "for step in range(300):\n"
        "    records.append(Path(sys.argv[1]), {'kind': sys.argv[2], 'step': step})\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, path, kind], cwd=ROOT) for kind in "ab"
    ]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            records.append(path, record(0, "unwanted"))
        records.drop(path, lambda r: r["kind"] == "unwanted")
    assert all(writer.returncode == 0 for writer in writers)
    steps = {kind: [r["step"] for r in records.read(path) if r["kind"] == kind] for kind in "ab"}
    assert steps == {"a": list(range(300)), "b": list(range(300))}
