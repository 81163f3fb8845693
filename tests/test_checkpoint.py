"""Checkpoints: what is written is read, and what is not whole is not used."""

import os

import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import checkpoint
from cifar_jax.errors import UserError

TREE = {"a": jnp.arange(5.0), "b": {"c": jnp.int32(7)}}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def save(folder, *steps, keep=9, keep_every=0):
    writer = checkpoint.Writer(folder, keep, keep_every)
    writer.go_on_from(checkpoint.newest(folder, print))
    for step in steps:
        writer.save(step, {**TREE, "a": TREE["a"] + step})
    writer.close()


def silent(line):
    raise AssertionError(line)


def test_round_trip(folder):
    save(folder, 3, 8)
    assert checkpoint.newest(folder, silent) == 8
    tree = checkpoint.restore(folder, 8, TREE)
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


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (damage, "is damaged"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda path: (path / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json is damaged"),
        (lambda path: (path / "_METADATA").unlink(), "_METADATA is missing"),
    ],
)
def test_a_harmed_checkpoint_is_passed_over_with_a_word(folder, harm, said):
    save(folder, 1, 2)
    harm(folder / "2")
    lines = []
    assert checkpoint.newest(folder, lines.append) == 1
    assert len(lines) == 1
    assert lines[0].startswith("Checkpoint 2 is not used: ")
    assert said in lines[0]
    save(folder, 2)  # the resumed run comes by again
    assert checkpoint.newest(folder, silent) == 2


def test_remains_of_a_killed_writer_are_cleared_away(folder):
    save(folder, 1)
    remains = folder / "2.orbax-checkpoint-tmp"
    remains.mkdir()
    assert checkpoint.newest(folder, silent) == 1
    save(folder, 3)
    assert not remains.exists()


def test_a_broken_later_checkpoint_does_not_cost_the_good_one(folder):
    """With keep=1 it would otherwise be the newest, and the one just written the one to remove."""
    save(folder, 3, 6)
    (folder / "6" / "manifest.json").unlink()
    writer = checkpoint.Writer(folder, keep=1)
    assert checkpoint.steps(folder) == [3, 6]  # to be looked at while no other can write
    writer.go_on_from(3)
    assert checkpoint.steps(folder) == [3]  # what stands beyond will be written again
    writer.save(5, TREE)
    writer.close()
    assert checkpoint.steps(folder) == [5]
    assert checkpoint.newest(folder, silent) == 5


def test_a_folder_has_one_writer_at_a_time(folder):
    writer = checkpoint.Writer(folder, keep=1)
    with pytest.raises(UserError, match=rf"Process {os.getpid()} is writing to .*--workdir"):
        checkpoint.Writer(folder, keep=1)
    writer.close()
    checkpoint.Writer(folder, keep=1).close()


def test_a_deleted_checkpoint_is_file_not_found(folder):
    save(folder, 1)
    with pytest.raises(FileNotFoundError):
        checkpoint.restore(folder, 2, TREE)


@pytest.mark.parametrize("like", [{"a": TREE["a"]}, {**TREE, "a": jnp.zeros(4)}])
def test_another_structure_is_refused(folder, like):
    save(folder, 1)
    with pytest.raises(UserError, match="does not hold what this config describes"):
        checkpoint.restore(folder, 1, like)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write to .*file/checkpoints: Not a directory"):
        checkpoint.Writer(tmp_path / "file" / "checkpoints", keep=1)


def test_a_failed_save_is_reported_and_leaves_the_others(folder, monkeypatch):
    save(folder, 1)
    writer = checkpoint.Writer(folder, keep=9)

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_manifest", full)
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
    checkpoint.mark_finished(folder, 3)
    assert checkpoint.finished(folder) == 3
    assert checkpoint.wait_for_new(folder, 3, 0.01, silent) is None
    checkpoint.mark_finished(folder, None)
    assert checkpoint.finished(folder) is None
