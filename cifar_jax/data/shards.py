"""A split as ArrayRecord files, of which any image can be read without those before it.

    FOLDER/train/shards.json
    FOLDER/train/train-00000-of-00004.array_record

A record is the label, int32 in little endian, and the image's bytes, uint8 [H, W, C]. shards.json
has the format's version, the dataset's name, the shape, the class names, mean and deviation by
channel, and of each file the images, the bytes and a checksum of its ends, so that one of another
place or folder is found when it is opened. The files carry a checksum of every record, so that a
damaged one is found when it is read. Earlier versions wrote no name, mean and deviation.
"""

import contextlib
import itertools
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from cifar_jax import files
from cifar_jax.data.dataset import (
    CHANNELS,
    MAX_SIDE,
    Examples,
    Moments,
    Sums,
    read_all,
    read_moments,
    text,
    whole_number,
)
from cifar_jax.data.progress import Report
from cifar_jax.errors import UserError, reason

FORMAT = 2
MANIFEST = "shards.json"
_SUFFIX = ".array_record"
_MAX_BYTES = 1 << 50  # of a file
_LABEL_BYTES = 4
_FILE_FIELDS = ("images", "bytes", "ends")  # ends: see `_ends`
_REPORT_EVERY = 1_000  # images
# A record by itself, as no read wants its neighbours; images hardly compress.
_WRITE = "group_size:1,uncompressed"
# Without reading ahead, which random access would throw away.
_READ, _BUFFER_BYTES = "readahead_buffer_size:0", 1 << 15


class Shards:
    """A split on disk. Threads may share it; a file is opened when it is first read."""

    def __init__(self, folder: Path):
        """Raises UserError where shards.json or a file is missing, or a file has another size."""
        self._folder = folder
        manifest = _read_manifest(folder)
        self.shape: tuple[int, int, int] = manifest["shape"]
        self.class_names: tuple[str, ...] = manifest["class_names"]
        self.name: str | None = manifest["name"]
        self.moments: Moments | None = manifest["moments"]
        self._record_bytes = _LABEL_BYTES + int(np.prod(self.shape))
        self._paths = [folder / name for name in manifest["files"]]
        counts = [file["images"] for file in manifest["files"].values()]
        self._starts = np.cumsum([0, *counts])  # of each file's images, and their end
        self._ends = [file["ends"] for file in manifest["files"].values()]
        self._readers: list[Any] = [None] * len(self._paths)
        for path, file in zip(self._paths, manifest["files"].values(), strict=True):
            _check_size(path, file["bytes"])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The images uint8 [n, H, W, C] and labels int32 [n] of `indices` [n], in any order.

        Raises IndexError outside of the split, UserError for a damaged or vanished file.
        """
        order = np.argsort(indices)  # records of one file together, and in their order
        ordered = indices[order]
        if len(ordered) and not 0 <= ordered[0] <= ordered[-1] < len(self):
            raise IndexError(f"images {ordered[0]} to {ordered[-1]} of {len(self)}")
        bounds = np.searchsorted(ordered, self._starts)
        records: list[bytes] = []
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            places = ordered[bounds[number] : bounds[number + 1]] - self._starts[number]
            records += self._read_file(number, places)
        # All at once: nothing here may be done image by image in Python.
        data = np.frombuffer(b"".join(records), np.uint8).reshape(-1, self._record_bytes)
        images = np.empty((len(ordered), *self.shape), np.uint8)
        images[order] = data[:, _LABEL_BYTES:].reshape(images.shape)
        labels = np.empty(len(ordered), np.int32)
        labels[order] = np.ascontiguousarray(data[:, :_LABEL_BYTES]).view("<i4")[:, 0]
        if (wrong := np.flatnonzero((labels < 0) | (labels >= len(self.class_names)))).size:
            found = f"image {indices[wrong[0]]} has the label {labels[wrong[0]]}"
            expected = f"0 to {len(self.class_names) - 1}"
            raise _damaged(self._folder / MANIFEST, found, expected)
        return images, labels

    def load(self) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """All images, labels and the class names, for a split that fits into memory."""
        return read_all(self)

    def _open_file(self, number: int) -> Any:
        path, expected = self._paths[number], int(np.diff(self._starts)[number])
        reader = _reader(path)
        if reader.num_records() != expected:
            raise ValueError(f"it has {reader.num_records():,} records and not {expected:,}")
        if _ends(reader) != self._ends[number]:
            raise ValueError(f"it is another file than {MANIFEST} describes")
        return reader

    def _read_file(self, number: int, places: np.ndarray) -> list[bytes]:
        path = self._paths[number]
        try:
            if self._readers[number] is None:  # for two threads at once, twice: one is dropped
                self._readers[number] = self._open_file(number)
            records = self._readers[number].read(places.tolist())
        except (RuntimeError, ValueError, OSError, IndexError) as error:
            raise _damaged(path, reason(error), "undamaged records") from error
        if len(records) != len(places) or set(map(len, records)) != {self._record_bytes}:
            expected = f"{self._record_bytes:,} bytes each"
            raise _damaged(path, "it has records of another length", expected)
        return records


def _reader(path: Path) -> Any:
    return ArrayRecordReader(str(path), _READ, file_reader_buffer_size=_BUFFER_BYTES)


def _ends(reader: Any) -> int:
    """The CRC-32 of the first and the last record: those of all would be the whole file."""
    count = reader.num_records()
    return zlib.crc32(b"".join(reader.read([0, count - 1]))) if count else 0


def open(folder: Path, split: str) -> Shards:
    """The split 'train' or 'test' of a folder that `prepare` wrote; raises as `Shards` does."""
    return Shards(folder / split)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = files.read_json(path)
        if manifest["format"] != FORMAT:
            found = manifest["format"]
            raise _damaged(path, f"it is of format {found!r}", f"format {FORMAT}")
        height, width, channels = (whole_number(n, 1, MAX_SIDE) for n in manifest["shape"])
        if channels not in CHANNELS:
            raise ValueError(f"{channels} is not a number of channels")
        described = {
            _plain(name): {key: whole_number(file[key], 0, _MAX_BYTES) for key in _FILE_FIELDS}
            for name, file in manifest["files"].items()
        }
        names = tuple(map(text, manifest["class_names"]))
        name = text(manifest["name"]) if "name" in manifest else None
        measured = "mean" in manifest or "std" in manifest
        moments = read_moments(manifest, channels) if measured else None
    except FileNotFoundError as error:
        raise _damaged(path, "there is no such file", "what describes the shards") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}. Make it readable.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"it is not a description of shards ({reason(error)})"
        raise _damaged(path, problem, "what prepare wrote") from error
    return {
        "name": name,
        "shape": (height, width, channels),
        "class_names": names,
        "moments": moments,
        "files": described,
    }


def _plain(name: str) -> str:
    """A file's name that does not lead out of its folder."""
    if Path(name).name != name or name == "..":
        raise ValueError(f"{name[:40]} is not a file of this folder")
    return name


def _check_size(path: Path, expected: int) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        problem = error.strerror or str(error)
        raise _damaged(path, problem, f"a file of {expected:,} bytes") from error
    if size != expected:
        raise _damaged(path, f"it has {size:,} bytes", f"{expected:,}")


def _damaged(path: Path, problem: str, expected: str) -> UserError:
    folder = path.parent.parent  # of all splits
    return UserError(
        f"{path}: {problem}, expected {expected}. Delete {folder} and make it again, from the "
        f"source it came from: python -m cifar_jax.data.prepare --source=SOURCE --out={folder}"
    )


# -- writing -------------------------------------------------------------------------------------


def write(
    folder: Path,
    split: str,
    examples: Examples,
    num_shards: int,
    progress: Report = lambda done, total: None,
    name: str | None = None,
) -> None:
    """Writes `examples` to `folder`/`split`, whole or not at all, and holds one at a time.

    `name` is the dataset's. There are never more files than images. Raises UserError where the disk
    is full or not writable, and where complete shards, or anything else, are there already.
    """
    bounds = np.linspace(0, len(examples), min(num_shards, len(examples)) + 1, dtype=int)
    sums = Sums()
    coming = _added(examples, sums)
    with appearing(folder / split) as part:
        written = {}
        for number, (start, end) in enumerate(itertools.pairwise(bounds)):
            path = part / f"{split}-{number:05}-of-{len(bounds) - 1:05}{_SUFFIX}"
            for done in _write_file(path, itertools.islice(coming, int(end - start))):
                progress(int(start) + done, len(examples))
            written[path.name] = {
                "images": int(end - start),
                "bytes": path.stat().st_size,
                "ends": _ends(_reader(path)),
            }
        mean, std = sums.moments()
        manifest = {
            "format": FORMAT,
            **({} if name is None else {"name": name}),
            "shape": examples.shape,
            "class_names": list(examples.class_names),
            "mean": mean,
            "std": std,
            "files": written,
        }
        files.write(part / MANIFEST, files.to_json(manifest))


def _added(examples: Examples, sums: Sums) -> Iterator[tuple[np.ndarray, int]]:
    for image, label in examples:
        sums.add(image[np.newaxis])
        yield image, label


def _write_file(path: Path, examples: Iterable[tuple[np.ndarray, int]]) -> Iterator[int]:
    """Writes one file, and gives now and then how many of its images are written."""
    done = 0
    try:
        writer = ArrayRecordWriter(str(path), _WRITE)
        for image, label in examples:
            if done % _REPORT_EVERY == 0:
                yield done
            writer.write(np.array(label, "<i4").tobytes() + image.tobytes())
            done += 1
        writer.close()
    except RuntimeError as error:  # what ArrayRecord makes of the system's errors
        raise OSError(reason(error)) from error
    yield done


@contextlib.contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Gives a folder FOLDER.part to write into, which becomes `folder` where the block ends well.

    What an interrupted start left is removed first. Raises UserError where `folder` holds complete
    shards or anything else, where another process is writing it, and for a disk that is full or
    not writable.
    """
    part = folder.with_name(f"{folder.name}.part")
    try:
        _check_replaceable(folder)
        _check_ours(part)
        part.mkdir(parents=True, exist_ok=True)
        with _lock(part):
            _clear(part)
            try:
                yield part
                files.sync_tree(part)
                if folder.exists():
                    shutil.rmtree(folder)
                part.rename(folder)
                files.sync(folder.parent)
            except BaseException:  # Ctrl-C, too
                shutil.rmtree(part, ignore_errors=True)
                raise
    except OSError as error:
        raise UserError(
            f"Cannot write to {folder}: {reason(error)}. Expected a writable folder "
            "with free space: make one there or choose another."
        ) from error


def _check_replaceable(folder: Path) -> None:
    """Raises UserError for a folder that holds something of worth."""
    _check_ours(folder)
    manifests = list(folder.rglob(MANIFEST))
    complete = False
    with contextlib.suppress(UserError):
        for manifest in manifests:
            Shards(manifest.parent)
        complete = bool(manifests)
    if complete:
        raise UserError(
            f"{folder} already holds shards, expected a new folder. Delete it to make them again, "
            "or choose another one."
        )


def _check_ours(folder: Path) -> None:
    """Raises UserError for what is not a folder, or holds other files than this module writes."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, expected a new folder. Choose another one.")
    for path in folder.rglob("*"):
        if not (path.is_dir() or path.name == MANIFEST or path.suffix == _SUFFIX):
            raise UserError(
                f"{folder} holds {path.relative_to(folder)}, expected a new folder, or one that "
                "holds nothing but shards. Choose another one."
            )


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Holds `folder` against other processes; the system lets go of it where this one is killed."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        files.lock(handle, folder, wait=False)
        yield
    except BlockingIOError as error:
        raise UserError(f"{folder}: another process is writing there. Wait for its end.") from error
    finally:
        os.close(handle)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
