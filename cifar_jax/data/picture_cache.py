"""Decoded pictures on disk, so that a second start does not decode them again.

A folder for each key holds an array for each split, and what the decoding found. It may be deleted
at any time. What is not whole in it is decoded again.
"""

import dataclasses
import os
import shutil
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cifar_jax import files
from cifar_jax.errors import reason

_RECORD = "decoded.json"


@dataclasses.dataclass(frozen=True)
class Decoded:
    images: dict[str, np.ndarray]  # by split: uint8 [those that can be read, H, W, C]
    damaged: dict[str, dict[int, str]]  # by split: why a picture cannot be, by its place
    duplicates: list[str]  # test pictures with the content of a training picture: names


def read(
    folder: Path, split: str, counts: Mapping[str, int], shape: tuple[int, ...]
) -> Decoded | None:
    """The images of `split`, and the record of both. None where they are not there or damaged.

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
        return Decoded({split: images}, damaged, [str(name) for name in record["duplicates"]])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError) as error:
        print(
            f"{folder} cannot be used ({reason(error)}): decoding again.",
            file=sys.stderr,
            flush=True,
        )
        return None


def write(folder: Path, decoded: Decoded, user: Path) -> bool:
    """Writes it whole or not at all; says so in a line, and returns False, where it cannot be, and
    where that is inside the folder `user`, which nothing is written to."""
    part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    record = {
        "damaged": decoded.damaged,
        "duplicates": decoded.duplicates,
        "sums": {split: _sum(images) for split, images in decoded.images.items()},
    }
    try:
        if folder.resolve().is_relative_to(user.resolve()):
            raise OSError("it is inside the folder of the pictures")
        part.mkdir(parents=True)
        for split, images in decoded.images.items():
            with (part / f"{split}.npy").open("xb") as file:
                np.save(file, images)
        files.write(part / _RECORD, files.to_json(record))
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        part.rename(folder)
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
