"""The binary layout of the CIFAR-10 and CIFAR-100 pages, read and written.

A record is the label bytes (CIFAR-10: one; CIFAR-100: coarse, then fine) and 3,072 pixel bytes: the
red, green and blue planes of 32x32 pixels, row by row. A file is nothing but records.
"""

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cifar_jax.errors import UserError, reason

SIZE = 32
_PIXELS = 3 * SIZE * SIZE
_AT_ONCE = 500  # records


def read(
    paths: Sequence[Path], num_classes: int, label_bytes: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Reads `paths` in order: images uint8 [N, 32, 32, 3] and labels int32 [N].

    Of several label bytes the last counts (CIFAR-100's fine label). Raises UserError for a file
    that is missing, empty or no whole number of records, and for a label out of range.
    """
    length = label_bytes + _PIXELS
    counts = [path.stat().st_size // length if path.is_file() else 0 for path in paths]
    images = np.empty((sum(counts), SIZE, SIZE, 3), np.uint8)
    labels = np.empty(sum(counts), np.int32)

    def fill(path: Path, end: int, count: int) -> None:
        """A few records at a time, so that they are in the cache once."""
        records = _records(path, length)[:count]
        for first in range(0, count, _AT_ONCE):
            some = records[first : first + _AT_ONCE]
            place = slice(end - count + first, end - count + first + len(some))
            planes = some[:, label_bytes:].reshape(-1, 3, SIZE, SIZE)
            images[place] = planes.transpose(0, 2, 3, 1)
            labels[place] = some[:, label_bytes - 1]

    with ThreadPoolExecutor() as threads:
        list(threads.map(fill, paths, np.cumsum(counts).tolist(), counts))
    if (wrong := np.flatnonzero(labels >= num_classes)).size:
        path, record = _locate(paths, int(wrong[0]), length)
        raise UserError(
            f"{path}: record {record} has label {labels[wrong[0]]}, expected 0 to "
            f"{num_classes - 1}. The file is damaged or of another dataset: replace it."
        )
    return images, labels


def _records(path: Path, length: int) -> np.ndarray:
    try:
        with path.open("rb") as file:  # a folder or a pipe in its place fails here
            data = np.fromfile(file, np.uint8)
    except OSError as error:
        raise UserError(
            f"{path}: {reason(error)}. Expected a file of {length:,}-byte records: put it there."
        ) from error
    if not data.size or data.size % length:
        raise UserError(
            f"{path} has {data.size:,} bytes, expected a multiple of {length:,}. It is truncated "
            "or not such a file: replace it by the publisher's."
        )
    return data.reshape(-1, length)


def _locate(paths: Sequence[Path], record: int, length: int) -> tuple[Path, int]:
    """The file that holds the `record`-th of all records, and its number there."""
    for path in paths:
        count = path.stat().st_size // length
        if record < count:
            break
        record -= count
    return path, record


def write(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes images uint8 [N, 32, 32, 3] and labels [N] below 256 as CIFAR-10 records."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), _PIXELS)
    data = np.concatenate([labels.astype(np.uint8)[:, None], planes], axis=1)
    path.write_bytes(data.tobytes())  # whose errors have a reason, other than those of tofile


def read_names(path: Path, num_classes: int) -> tuple[str, ...]:
    """The class names, one a line; the classes' numbers where the file is missing."""
    try:
        names = tuple(line for line in path.read_text().splitlines() if line.strip())
    except FileNotFoundError:
        names = tuple(str(n) for n in range(num_classes))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({reason(error)}); expected a class name a line."
        ) from error
    if len(names) != num_classes:
        raise UserError(f"{path} names {len(names)} classes, expected {num_classes}.")
    return names


def write_folder(
    folder: Path,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    names: Sequence[str],
) -> None:
    """Writes a folder in CIFAR-10's layout; it appears whole or not at all."""
    part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    try:
        part.mkdir(parents=True)
        write(part / "data_batch_1.bin", *train)
        write(part / "test_batch.bin", *test)
        (part / "batches.meta.txt").write_text("\n".join(names) + "\n")
        part.rename(folder)
    except BaseException as error:  # Ctrl-C, too
        shutil.rmtree(part, ignore_errors=True)
        # Where another process was first, its folder has the same content.
        if not (isinstance(error, OSError) and folder.is_dir()):
            raise
