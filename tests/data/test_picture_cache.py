"""The cache of decoded pictures among several processes, and its limits."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from cifar_jax.data import picture_cache, pictures
from cifar_jax.data.picture_cache import Decoded
from cifar_jax.data.sources import folder as folder_source
from tests.conftest import ROOT

# Decodes once the file `go` is there.
CHILD = """
import os, pathlib, sys, time
from cifar_jax.data import pictures
from cifar_jax.data.sources import folder
root, cache, marks = map(pathlib.Path, sys.argv[1:])
real = pictures._decode
def slow(*args):
    (marks / f"decodes-{os.getpid()}").touch()
    while not (marks / "go").exists():
        time.sleep(0.01)
    return real(*args)
pictures._decode = slow
print(len(pictures.load(folder.find(root, 0.5), (8, 8, 3), "train", cache)))
"""


@pytest.fixture
def started(tmp_path):
    """Three processes that want the same pictures: one decodes, two wait for it."""
    for number in range(8):
        path = tmp_path / "mine" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    (tmp_path / "marks").mkdir()
    command = [sys.executable, "-c", CHILD, *(tmp_path / n for n in ("mine", "cache", "marks"))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, cwd=ROOT, **pipes)]
    try:
        decodes(tmp_path, 1)
        children += [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]
        for child in children[1:]:
            assert child.stderr.readline() == "Another process decodes these pictures: waiting.\n"
        yield children
    finally:
        for child in children:
            child.kill()
            child.communicate()


def decodes(tmp_path, count):
    """Waits until so many processes have begun to decode."""
    until = time.monotonic() + 30
    while len(list((tmp_path / "marks").glob("decodes-*"))) < count:
        assert time.monotonic() < until
        time.sleep(0.01)


def finish(tmp_path, children):
    """Lets the one decode; returns how many did from first to last."""
    (tmp_path / "marks" / "go").touch()
    for child in children:
        out, err = child.communicate(timeout=30)
        assert child.returncode == 0 and out.endswith("\n4\n"), err
    return len(list((tmp_path / "marks").glob("decodes-*")))


def test_of_several_processes_one_decodes(started, tmp_path):
    assert finish(tmp_path, started) == 1


def test_one_that_is_killed_is_replaced_by_one_other(started, tmp_path):
    started[0].kill()
    decodes(tmp_path, 2)
    assert finish(tmp_path, started[1:]) == 2


def test_what_another_one_has_written_meanwhile_is_not_decoded_again(tmp_path, monkeypatch):
    for name in ("a/0", "a/1", "b/0", "b/1"):
        path = tmp_path / "mine" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    listing, shape = folder_source.find(tmp_path / "mine", 0.5), (8, 8, 3)
    pictures.load(listing, shape, "train", tmp_path / "cache")
    monkeypatch.setattr(pictures, "_decode", None)
    real, calls = picture_cache.read, []

    def too_early(*args, **options):
        calls.append(1)
        return None if len(calls) == 1 else real(*args, **options)

    monkeypatch.setattr(picture_cache, "read", too_early)
    assert len(pictures.load(listing, shape, "train", tmp_path / "cache")) == 2


# -- limits --------------------------------------------------------------------------------------


@pytest.fixture
def user(tmp_path):
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def write(cache, user):
    """Writes the entry of a number, as if it were so many seconds past 1970; returns it."""

    def entry(number):
        folder = cache / f"{number:064x}"
        images = {split: np.full((2, 8, 8, 3), number, np.uint8) for split in ("train", "test")}
        with picture_cache.locked(folder, user):
            found = Decoded(images, {"train": {}, "test": {}}, [])
            assert picture_cache.write(folder, found, user)
        os.utime(folder, (number, number))
        return folder

    return entry


def read(folder):
    return picture_cache.read(folder, "train", {"train": 2, "test": 2}, (8, 8, 3))


def kept(cache):
    return sorted(int(path.name, 16) for path in cache.iterdir() if len(path.name) == 64)


def test_the_limits_are_those_of_the_documentation():
    assert (picture_cache.MAX_ENTRIES, picture_cache.MAX_BYTES) == (20, 10 * 2**30)
    assert "the 20 datasets and sizes used last are kept, up to 10 GiB in all" in " ".join(
        (ROOT / "docs" / "your_data.md").read_text().split()
    )


def test_the_least_recently_used_go_first(cache, write, monkeypatch):
    monkeypatch.setattr(picture_cache, "MAX_ENTRIES", 3)
    folders = [write(number) for number in range(1, 4)]
    assert kept(cache) == [1, 2, 3]
    assert read(folders[0]).images["train"].max() == 1  # used now
    write(4)
    assert kept(cache) == [1, 3, 4]
    assert len(list(cache.glob("*.lock"))) == 3
    assert read(folders[1]) is None


def test_the_sizes_have_a_limit_but_for_the_one_that_is_needed(cache, write, monkeypatch):
    size = sum(path.stat().st_size for path in write(1).iterdir())
    monkeypatch.setattr(picture_cache, "MAX_BYTES", 2 * size)
    write(2)
    assert kept(cache) == [1, 2]
    write(3)
    assert kept(cache) == [2, 3]
    monkeypatch.setattr(picture_cache, "MAX_BYTES", size - 1)
    assert read(write(4)) and kept(cache) == [4]


def test_what_is_in_use_stays(cache, write, user, monkeypatch):
    monkeypatch.setattr(picture_cache, "MAX_ENTRIES", 1)
    folder = write(1)
    with picture_cache.locked(folder, user, shared=True):
        write(2)
        assert kept(cache) == [1, 2]
    write(3)
    assert kept(cache) == [3]


def test_those_who_read_share_the_lock(cache, write, user):
    folder = write(1)
    with picture_cache.locked(folder, user, shared=True):
        with picture_cache._lock(folder, wait=False, shared=True):
            pass
        with pytest.raises(BlockingIOError), picture_cache._lock(folder, wait=False):
            pass


def test_what_killed_processes_left_goes_and_what_is_not_ours_stays(cache, write):
    own = write(1)
    left = [own.with_name(f"{own.name}.part-1"), cache / f"{7:064x}.part-77"]
    other = [cache / "mine", cache / f"{7:063x}", cache / f"{7:064x}.tar"]
    for folder in (*left, *other):
        folder.mkdir()
        (folder / "train.npy").touch()
    write(1)
    assert not any(folder.exists() for folder in left) and all(map(os.path.isdir, other))
    assert kept(cache) == [1]


def test_a_cache_that_cannot_be_locked_is_read_all_the_same(cache, write, user, monkeypatch):
    folder = write(1)
    (cache / f"{1:064x}.lock").unlink()
    (cache / f"{1:064x}.lock").symlink_to("elsewhere")  # as for a cache that is not writable
    with picture_cache.locked(folder, user), picture_cache.locked(folder, user):
        assert read(folder)


def test_no_lock_lies_in_the_users_folder(user):
    with picture_cache.locked(user / "cache" / "key", user):
        assert list(user.iterdir()) == []
