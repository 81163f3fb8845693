"""metrics.jsonl under crashes, replacement and several writers."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from cifar_jax.workdir import records
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
        "import sys; from pathlib import Path; from cifar_jax.workdir import records\n"
        "for step in range(100):\n"
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
    assert steps == {"a": list(range(100)), "b": list(range(100))}


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b'{"kind": "train", "step": ' + b"9" * 400 + b"}",
        b'{"kind": "train", "step": 99999999999999999999}',
        b'{"kind": "train", "step": -1}',
        b'{"kind": "train", "step": true}',
        b'{"kind": "train", "step": 1.0}',
        b'{"kind": "train", "step": null}',
        b'{"kind": null, "step": 1}',
        b'{"kind": ["train"], "step": 1}',
        b'{"kind": "train", "step": 1, "loss": "4.5"}',
        b'{"kind": "train", "step": 1, "loss": [4.5]}',
        b'{"kind": "train", "step": 1, "loss": true}',
        b'{"kind": "train", "step": 1, "loss": NaN}',
        b'{"kind": "train", "step": 1, "time": null}',
        b'{"kind": "train", "step": 1, "time": 1e400}',
        b'{"kind": "train", "step": 1, "time": "noon"}',
        b'{"kind": "eval", "step": 1, "dataset": 7}',
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_record_is_passed_over(path, line):
    good = b'{"kind": "train", "step": 7, "time": 1.5, "loss": null}'
    path.write_bytes(b"\n".join([good, line, good]))
    found = records.read(path)
    assert [r["step"] for r in found] == [7, 7]
    assert all(math.isnan(r["loss"]) for r in found)


def test_a_line_without_end_is_passed_over(path, monkeypatch):
    monkeypatch.setattr(records, "_MAX_LINE", 100)
    end = "x" * 100 + json.dumps(record(1))  # whose end alone would be a record
    lines = [json.dumps(record(0)), end, json.dumps(record(2))]
    path.write_text("\n".join(lines))
    assert [r["step"] for r in records.read(path)] == [0, 2]


def check_any_bytes(path, data):
    path.write_bytes(data)
    assert isinstance(records.read(path), list)
    records.append(path, record(5))
    assert records.read(path)[-1] == record(5)


def test_any_bytes_give_a_list(path):
    """Pieces of records in random order; `test_any_bytes_of_hypothesis` looks further."""
    rng = np.random.default_rng(0)
    pieces = [b'{"kind": "a", "step": ', b"1", b"}", b"\n", b'"', b"[", b"null", b", ", b'"x": ']
    pieces += [b"\xff", b"\x00", b"1e999", b"-", b"NaN", b'\\ud800"', b"\r", b"\xef\xbb\xbf"]
    for _ in range(300):
        check_any_bytes(path, b"".join(pieces[n] for n in rng.integers(0, len(pieces), 12)))


def test_any_bytes_of_hypothesis(path):
    hypothesis = pytest.importorskip("hypothesis")
    strategies = hypothesis.strategies
    json_values = strategies.recursive(
        strategies.none()
        | strategies.booleans()
        | strategies.integers()
        | strategies.floats()
        | strategies.text(),
        lambda inner: strategies.lists(inner) | strategies.dictionaries(strategies.text(), inner),
    )
    lines = strategies.fixed_dictionaries({"kind": json_values, "step": json_values})
    texts = strategies.lists(lines.map(json.dumps)).map(lambda all: "\n".join(all).encode())

    @hypothesis.settings(database=None, deadline=None)
    @hypothesis.given(strategies.binary() | texts)
    def check(data):
        check_any_bytes(path, data)

    check()


def test_a_link_in_the_files_place_is_not_followed(path):
    other = path.with_name("other")
    other.write_text('{"kind": "train", "step": 1}\n')
    path.symlink_to(other)
    for change in (
        lambda: records.append(path, record(0)),
        lambda: records.drop(path, lambda _: True),
    ):
        with pytest.raises(OSError, match="symbolic links"):
            change()
    assert other.read_text() == '{"kind": "train", "step": 1}\n'


def test_what_is_dropped_stays_dropped(path, monkeypatch):
    """The new file is on the disk before it takes the old one's place."""
    records.append(path, record(0))
    synced, original = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(handle), original(handle)))
    records.drop(path, lambda _: True)
    assert len(synced) == 2  # of the file, of its folder
