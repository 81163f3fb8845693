"""Decoded pictures on disk, so that a second start does not decode them again.

An entry is a folder, named by its key, with an array for each split and what the decoding found. It
may be deleted at any time. What is not whole in it is decoded again.

Beside it lies its lock: shared by those who read, and held alone by the one who decodes and writes,
or removes. The system frees it when a process ends, however that ends. Once an entry is written,
the 20 used last stay, up to 10 GiB in all, and those in use now.
"""

import contextlib
import dataclasses
import os
import re
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from cifar_jax import files
from cifar_jax.errors import reason

MAX_ENTRIES = 20
MAX_BYTES = 10 << 30
_RECORD = "decoded.json"
_OURS = re.compile(r"([0-9a-f]{64})(\.lock|\.part-\d+)?")  # names in the cache, and the key in them


@dataclasses.dataclass(frozen=True)
class Decoded:
    images: dict[str, np.ndarray]  # by split: uint8 [those that can be read, H, W, C]
    damaged: dict[str, dict[int, str]]  # by split: why a picture cannot be, by its place
    duplicates: list[str]  # test pictures with the content of a training picture: names


@contextlib.contextmanager
def locked(folder: Path, user: Path, *, shared: bool = False) -> Iterator[None]:
    """Holds the lock of the entry `folder`: alone, or `shared` with others. Waits for it, and says
    so on stderr where that is for the one who decodes.

    Without a lock where none can be made, as in a cache that is not writable, or inside the folder
    `user`, which nothing is written to.
    """
    with contextlib.ExitStack() as stack:
        # What is read is checked, lock or not.
        with contextlib.suppress(OSError):
            _check_outside(folder, user)
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(_lock(folder, wait=False, shared=shared))
            except BlockingIOError:
                if shared:
                    print("Another process decodes these pictures: waiting.", file=sys.stderr)
                stack.enter_context(_lock(folder, shared=shared))
        yield


@contextlib.contextmanager
def _lock(folder: Path, *, wait: bool = True, shared: bool = False) -> Iterator[None]:
    """Raises OSError, which without `wait` is BlockingIOError where another process holds it."""
    path = folder.with_name(f"{folder.name}.lock")
    while True:
        # To be written, as NFS wants it for an exclusive lock.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            files.lock(handle, path, wait=wait, shared=shared)
            if files.is_at(path, handle):
                yield
                return
        finally:
            os.close(handle)


def read(
    folder: Path,
    split: str,
    counts: Mapping[str, int],
    shape: tuple[int, ...],
    *,
    report: bool = True,
) -> Decoded | None:
    """The images of `split`, and the record of both. None where they are not there or damaged,
    which a line says with `report`. The entry counts as used now.

    `counts` has the number of listed pictures by split; `shape` is [H, W, C].
    """
    try:
        record = files.read_json(folder / _RECORD)
        damaged = {k: {int(i): str(why) for i, why in record["damaged"][k].items()} for k in counts}
        with files.opened(folder / f"{split}.npy") as file:
            images = np.load(file, allow_pickle=False)
        expected = (counts[split] - len(damaged[split]), *shape)
        if images.dtype != np.uint8 or images.shape != expected:
            raise ValueError("it is of other pictures")
        if _sum(images) != record["sums"][split]:
            raise ValueError("its sum does not match")
        with contextlib.suppress(OSError):  # another user's
            os.utime(folder)
        return Decoded({split: images}, damaged, [str(name) for name in record["duplicates"]])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError) as error:
        if report:
            print(
                f"{folder} cannot be used ({reason(error)}): decoding again.",
                file=sys.stderr,
                flush=True,
            )
        return None


def write(folder: Path, decoded: Decoded, user: Path) -> bool:
    """Writes it whole or not at all, and removes old entries; says so in a line, and returns False,
    where it cannot be written, and where that is inside the folder `user`, which nothing is written
    to. The caller holds the lock."""
    part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    record = {
        "damaged": decoded.damaged,
        "duplicates": decoded.duplicates,
        "sums": {split: _sum(images) for split, images in decoded.images.items()},
    }
    try:
        _check_outside(folder, user)
        for left in _parts(folder):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir(parents=True)
        for split, images in decoded.images.items():
            with (part / f"{split}.npy").open("xb") as file:
                np.save(file, images)
        files.write(part / _RECORD, files.to_json(record))
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        part.rename(folder)
        with contextlib.suppress(OSError):
            _remove_old(folder)
        return True
    except OSError as error:
        print(
            f"The decoded pictures cannot be kept in {folder.parent} ({reason(error)}): the next "
            "start decodes them again.",
            file=sys.stderr,
            flush=True,
        )
        return False
    finally:
        shutil.rmtree(part, ignore_errors=True)  # after Ctrl-C, too


def _sum(images: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(images).data)


def _check_outside(folder: Path, user: Path) -> None:
    """Raises OSError for a `folder` inside `user`."""
    if folder.resolve().is_relative_to(user.resolve()):
        raise OSError("it is inside the folder of the pictures")


# -- old entries ---------------------------------------------------------------------------------


def _remove_old(written: Path) -> None:
    """Removes what is beyond the limits, the least recently used first, and what killed processes
    left; never the entry `written`, nor one that another process has locked."""
    cache = written.parent
    names = (_OURS.fullmatch(path.name) for path in cache.iterdir())
    keys = {name[1] for name in names if name} - {written.name}
    total = _bytes(written)
    for number, folder in enumerate(sorted((cache / key for key in keys), key=_age), 1):
        total += _bytes(folder)
        if number >= MAX_ENTRIES or total > MAX_BYTES or not folder.is_dir():
            with contextlib.suppress(OSError), _lock(folder, wait=False):
                _remove(folder)


def _age(folder: Path) -> float:
    """By which entries are sorted, the one used last first; parts of one that is not there last."""
    try:
        return -folder.stat().st_mtime
    except OSError:
        return 0.0


def _bytes(folder: Path) -> int:
    try:
        return sum(entry.stat().st_size for entry in os.scandir(folder))
    except OSError:  # removed meanwhile
        return 0


def _parts(folder: Path) -> list[Path]:
    return list(folder.parent.glob(f"{folder.name}.part-*"))


def _remove(folder: Path) -> None:
    """The entry, with its parts and its lock, which the caller holds."""
    for each in (folder, *_parts(folder)):
        shutil.rmtree(each, ignore_errors=True)
    folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)
