"""Checkpoints: what is written is read, and what is not whole is not used."""

import errno
import json
import os
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.errors import UsageError, UserError
from cifar_jax.workdir import checkpoint, pytrees
from tests.conftest import ROOT

TREE = {"a": jnp.arange(5.0), "b": {"c": jnp.int32(7)}}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def save(folder, *steps, keep=9, keep_every=0):
    writer = pytrees.Writer(folder, keep, keep_every)
    for step in steps:
        writer.save(step, {**TREE, "a": TREE["a"] + step})
    writer.close()


def silent(line):
    raise AssertionError(line)


def test_round_trip(folder):
    save(folder, 3, 8)
    assert checkpoint.newest(folder, silent) == 8
    tree = pytrees.restore(folder, 8, TREE)
    np.testing.assert_array_equal(tree["a"], np.arange(5.0) + 8)
    assert tree["b"]["c"] == 7
    assert tree["b"]["c"].dtype == np.int32


def test_the_newest_and_every_kth_are_kept(folder):
    save(folder, *range(1, 9), keep=2, keep_every=3)
    assert checkpoint.steps(folder) == [3, 6, 7, 8]
    assert all(checkpoint.check(folder / str(step)) == "" for step in (3, 6, 7, 8))


def damage(path):
    """Flips one bit in the largest file of Orbax, which restores that without a word."""
    files = [f for f in path.rglob("*") if f.is_file() and f.name != "manifest.json"]
    file = max(files, key=lambda f: f.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def replace_manifest(path, change):
    """`change` alters its content in place."""
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def swap(path):
    other = path.with_name("1")
    other.rename(path.with_name("x"))
    path.rename(other)
    path.with_name("x").rename(path)


HARMS = [
    (damage, "is damaged"),
    (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
    (lambda path: (path / "manifest.json").write_text(""), "manifest.json is damaged"),
    (lambda path: (path / "manifest.json").write_text("{"), "manifest.json is damaged"),
    (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json is damaged"),
    (lambda path: (path / "manifest.json").write_text("[" * 10**5), "manifest.json is damaged"),
    (lambda path: (path / "manifest.json").write_text("{}"), "manifest.json is damaged"),
    (lambda path: replace_manifest(path, lambda m: m.update(files={})), "no step or no files"),
    (lambda path: replace_manifest(path, lambda m: m.update(step=True)), "no step or no files"),
    (lambda path: replace_manifest(path, lambda m: m["files"].popitem()), "does not belong"),
    (lambda path: replace_manifest(path, lambda m: m["files"].update(x=7)), "no size of x"),
    (
        lambda path: replace_manifest(
            path, lambda m: m["files"].update({"../1/_METADATA": m["files"]["_METADATA"]})
        ),
        "../1/_METADATA is missing",
    ),
    (lambda path: (path / "_METADATA").unlink(), "_METADATA is missing"),
    (lambda path: (path / "_METADATA").write_bytes(b""), "_METADATA is damaged"),
    (lambda path: (path / "more").write_text("x"), "more does not belong to it"),
    (lambda path: (path / "link").symlink_to("/etc/passwd"), "link is a link or a device"),
]


@pytest.mark.parametrize(("harm", "said"), HARMS)
def test_a_harmed_checkpoint_is_passed_over_with_a_word(folder, harm, said):
    save(folder, 1, 2)
    harm(folder / "2")
    lines = []
    assert checkpoint.newest(folder, lines.append) == 1
    assert len(lines) == 1
    assert lines[0].startswith("Checkpoint 2 is damaged and not used: ")
    assert said in lines[0]


def test_exchanged_folders_are_both_found(folder):
    save(folder, 1, 2)
    swap(folder / "2")
    assert checkpoint.check(folder / "1") == "it is the checkpoint of step 2"
    assert checkpoint.check(folder / "2") == "it is the checkpoint of step 1"


def test_what_is_no_checkpoint_is_not_taken_for_one(folder):
    save(folder, 1)
    for name in ("0041", "²", "-3", "7.damaged", "8.unsealed", "x"):
        (folder / name).mkdir()
    (folder / "9").write_text("a file")
    assert checkpoint.steps(folder) == [1]
    assert checkpoint.newest(folder, silent) == 1


def test_what_cannot_be_read_is_neither_damaged_nor_gone(folder, monkeypatch):
    save(folder, 1, 2)

    def fail(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(checkpoint, "_sha256", fail)
    with pytest.raises(UserError, match="/2/.* cannot be read: Input/output error. Nothing was"):
        checkpoint.newest(folder, silent)
    monkeypatch.undo()
    assert checkpoint.newest(folder, silent) == 2


def test_a_bad_sector_is_named_by_its_file(folder, monkeypatch):
    save(folder, 1)

    def fail(file, name):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint.hashlib, "file_digest", fail)
    with pytest.raises(UserError, match=r"/1/\S+ cannot be read: Input/output error"):
        checkpoint.newest(folder, silent)


def test_what_vanishes_meanwhile_is_passed_over_in_silence(folder, monkeypatch):
    save(folder, 1, 2)
    sha256 = checkpoint._sha256

    def vanish(path):
        if path.parts[-2] == "2" and (folder / "2").exists():
            checkpoint.remove(folder, 2)
        return sha256(path)

    monkeypatch.setattr(checkpoint, "_sha256", vanish)
    assert checkpoint.newest(folder, silent) == 1


def test_remains_of_a_killed_writer_are_cleared_away(folder):
    save(folder, 1)
    remains = [
        folder / name for name in ("2.unsealed", "2.unsealed.orbax-checkpoint-tmp", "0.removing")
    ]
    mine = [folder / "2.damaged", folder / "x.unsealed"]
    for path in remains + mine:
        path.mkdir()
    assert checkpoint.newest(folder, silent) == 1
    save(folder, 3)
    assert not any(path.exists() for path in remains)
    assert all(path.exists() for path in mine)


def test_nothing_is_removed_before_the_new_one_is_sealed_and_the_good_one_stays(
    folder, monkeypatch
):
    writer = pytrees.Writer(folder, keep=1)
    order = []
    for name in ("seal", "remove"):
        function = getattr(checkpoint, name)

        def noted(folder, step, name=name, function=function):
            order.append((name, step))
            function(folder, step)

        monkeypatch.setattr(checkpoint, name, noted)
    for step in (1, 2, 3):
        writer.save(step, TREE, good=1 if step > 1 else None)
    writer.close()
    assert checkpoint.steps(folder) == [1, 3]
    assert order == [("seal", 1), ("seal", 2), ("seal", 3), ("remove", 2)]
    assert checkpoint.status(folder).good == 1


def test_all_is_synced_before_the_name_appears(folder, monkeypatch):
    synced = []
    sync = checkpoint.files.sync

    def noted(path):
        synced.append(path)
        sync(path)

    monkeypatch.setattr(checkpoint.files, "sync", noted)
    save(folder, 1)
    names = {str(path.relative_to(folder / "1")) for path in (folder / "1").rglob("*")}
    before = {str(p.relative_to(folder / "1.unsealed")) for p in synced if "1.unsealed" in p.parts}
    assert before == names - {"manifest.json"} | {"."}
    assert synced[-1] == folder


def test_a_clock_that_jumps_costs_a_second_try(folder, monkeypatch):
    save(folder, 1)
    tries = []
    save_ = pytrees.ocp.StandardCheckpointer.save

    def jump(self, path, tree):
        tries.append(path)
        save_(self, path, tree)
        self.wait_until_finished()
        if len(tries) == 1:
            raise TimeoutError("Timeout waiting for key")

    monkeypatch.setattr(pytrees.ocp.StandardCheckpointer, "save", jump)
    save(folder, 2)
    assert len(tries) == 2
    assert checkpoint.newest(folder, silent) == 2


def test_orbax_waits_by_a_clock_that_does_not_jump(folder, monkeypatch):
    times = iter(range(0, 10**9, 3600))
    monkeypatch.setattr(time, "time", lambda: float(next(times)))
    monkeypatch.setattr(pytrees, "_TRIES", 1)
    save(folder, 1, 2, 3)
    assert checkpoint.newest(folder, silent) == 3


def test_a_checkpoint_that_cannot_be_read_back_is_not_sealed(folder, monkeypatch):
    save(folder, 1)
    monkeypatch.setattr(pytrees, "_read", lambda path, tree: {**tree, "a": tree["a"] + 1})
    writer = pytrees.Writer(folder, keep=1)
    writer.save(2, TREE)
    with pytest.raises(UserError, match="what was read back is not what was written"):
        writer.close()
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["1"]


def test_a_path_that_orbax_takes_for_a_pattern_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"a path with '\['"):
        pytrees.Writer(tmp_path / "a[x]" / "checkpoints", keep=1)
    assert list(tmp_path.iterdir()) == []


def test_what_is_set_aside_keeps_its_content_and_gets_a_name_of_its_own(folder):
    save(folder, 1, 2)
    assert checkpoint.set_aside(folder, 2, checkpoint.DAMAGED) == "2.damaged"
    save(folder, 2)
    assert checkpoint.set_aside(folder, 2, checkpoint.DAMAGED) == "2.damaged.2"
    assert checkpoint.steps(folder) == [1]
    assert (folder / "2.damaged" / "manifest.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"finished": "x", "diverged": 3}', "[" * 10**5])
def test_a_torn_status_counts_as_absent(folder, text):
    checkpoint_status = checkpoint.Status()
    folder.mkdir()
    (folder / "status.json").write_text(text)
    assert checkpoint.status(folder) == checkpoint_status
    checkpoint.mark(folder, finished=7)
    assert checkpoint.status(folder) == checkpoint.Status(finished=7)


def test_the_listing_says_what_each_is_worth_without_jax(folder):
    save(folder, 1, 2, 3)
    damage(folder / "2")
    checkpoint.set_aside(folder, 1, checkpoint.DAMAGED)
    command = [sys.executable, "-c", LISTING, str(folder.parent)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("2 damaged: ")
    assert lines[1:] == ["3 whole", "1.damaged set aside", "False"]
    damage(folder / "3")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "has no whole newest checkpoint" in done.stderr


LISTING = (
    "import sys\n"
    "from cifar_jax.workdir import __main__ as listing\n"
    "listing._main(sys.argv[1:])\n"
    "print('jax' in sys.modules)\n"
)


def test_a_folder_has_one_writer_at_a_time(folder):
    writer = pytrees.Writer(folder, keep=1)
    with pytest.raises(UserError, match=rf"Process {os.getpid()} is writing to .*--workdir"):
        pytrees.Writer(folder, keep=1)
    writer.close()
    pytrees.Writer(folder, keep=1).close()


def test_a_deleted_checkpoint_is_file_not_found(folder):
    save(folder, 1)
    with pytest.raises(FileNotFoundError):
        pytrees.restore(folder, 2, TREE)


@pytest.mark.parametrize("like", [{"a": TREE["a"]}, {**TREE, "a": jnp.zeros(4)}])
def test_another_structure_is_refused(folder, like):
    save(folder, 1)
    with pytest.raises(UserError, match="does not hold what this config describes"):
        pytrees.restore(folder, 1, like)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write to .*file/checkpoints: Not a directory"):
        pytrees.Writer(tmp_path / "file" / "checkpoints", keep=1)


def test_a_failed_save_is_reported_and_leaves_the_others(folder, monkeypatch):
    save(folder, 1)
    writer = pytrees.Writer(folder, keep=9)

    def full(folder, step):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "seal", full)
    writer.save(2, TREE)
    with pytest.raises(UserError, match="Checkpoint .*/2 could not be written: .*No space left"):
        writer.close()
    monkeypatch.undo()
    assert checkpoint.newest(folder, lambda line: None) == 1


def test_waiting_skips_to_the_newest_and_ends_with_training(folder):
    save(folder, 1, 2, 3)
    assert checkpoint.wait_for_new(folder, -1, 0.01, silent) == 3
    damage(folder / "3")
    lines = []
    assert checkpoint.wait_for_new(folder, 1, 0.01, lines.append) == 2
    assert "is damaged" in lines[0]
    checkpoint.mark(folder, finished=3)
    assert checkpoint.wait_for_new(folder, 3, 0.01, silent) is None
    checkpoint.mark(folder, finished=None, diverged="The loss is nan.")
    assert checkpoint.wait_for_new(folder, 3, 0.01, silent) is None
    assert checkpoint.status(folder) == checkpoint.Status(diverged="The loss is nan.")


def test_waiting_follows_a_run_that_went_back(folder):
    save(folder, 1, 5)
    assert checkpoint.wait_for_new(folder, -1, 0.01, silent) == 5
    checkpoint.set_aside(folder, 5, checkpoint.SUPERSEDED)
    assert checkpoint.wait_for_new(folder, 5, 0.01, silent) == 1
