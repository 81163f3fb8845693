"""Files: paths as they are typed, whole writes, locks, and JSON of a stranger."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from cifar_jax import files
from cifar_jax.errors import UsageError, reason


def test_a_path_is_absolute_and_knows_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert files.resolve("runs/a[x] 50%", "--workdir") == tmp_path / "runs" / "a[x] 50%"
    assert files.resolve("~/x", "--workdir") == Path("/home/me/x")
    assert files.resolve(tmp_path / "a" / ".." / "b", "--workdir") == tmp_path / "b"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("gs://bucket/x", "is a URL"),
        ("file:/x", "is a URL"),
        ("s3://b", "is a URL"),
        ("a\nb", "control characters"),
        ("~nobody-of-that-name/x", "no such home folder"),
    ],
)
def test_what_is_no_path_is_refused_in_one_line(text, said):
    with pytest.raises(UsageError, match=said) as caught:
        files.resolve(text, "--workdir")
    assert str(caught.value).startswith("--workdir") and "\n" not in str(caught.value)


def test_a_write_is_whole_and_leaves_nothing_else(tmp_path):
    files.write(tmp_path / "x", "one")
    files.write(tmp_path / "x", b"two")
    assert (tmp_path / "x").read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    files.write(tmp_path / "x", "one")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write(tmp_path / "x", "two")
    assert (tmp_path / "x").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_planted_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "x.part").symlink_to(tmp_path / "precious")
    files.write(tmp_path / "x", "one")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError) as caught:
        open(tmp_path / "lock", "ab+", opener=files.no_links)  # noqa: SIM115
    assert caught.value.errno == errno.ELOOP
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_read_that_fails_names_the_file(tmp_path):
    (tmp_path / "x").write_text("1")
    with pytest.raises(OSError) as caught, files.opened(tmp_path / "x"):
        raise OSError(errno.EIO, "Input/output error")  # as a read does
    assert caught.value.filename == str(tmp_path / "x")


def test_locks_hold_and_their_absence_is_said_once(tmp_path, monkeypatch, capsys):
    path = tmp_path / "lock"
    with path.open("w") as one, path.open("w") as two:
        files.lock(one.fileno(), path)
        with pytest.raises(BlockingIOError):
            files.lock(two.fileno(), path, wait=False)

    def unknown(handle, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unknown)
    monkeypatch.setattr(files, "_warned_of", set())
    for _ in range(2):
        files.lock(0, path)
    assert capsys.readouterr().err.count("does not support locks") == 1


@pytest.mark.parametrize(
    "text",
    ["{", "[" * 100_000, '{"a":' * 100_000, "9" * 400, '{"a": NaN}', b"\xff\xfe\x00", "-Infinity"],
)
def test_json_of_a_stranger(text, tmp_path):
    with pytest.raises(ValueError):
        files.parse_json(text)
    (tmp_path / "x").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError):
        files.read_json(tmp_path / "x")


def test_json_has_an_end(tmp_path):
    (tmp_path / "x").write_bytes(b"[" + b" " * (1 << 24) + b"]")
    with pytest.raises(ValueError, match="more than"):
        files.read_json(tmp_path / "x")


def test_a_reason_is_one_line():
    assert reason(OSError(28, "No space left on device")) == "No space left on device"
    assert reason(OSError("ArrayRecord\n said so.")) == "ArrayRecord said so"
    assert reason(KeyError()) == "KeyError"
    assert len(reason(ValueError("x" * 1000))) == 303
