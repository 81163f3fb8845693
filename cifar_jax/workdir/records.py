"""metrics.jsonl: every scalar of a run, one JSON object a line.

    pandas.read_json("runs/tutorial/metrics.jsonl", lines=True)

A record has `kind`, `step`, `time` in seconds since 1970, and its values by name. The kinds:
"start", where a run began or was resumed; "train"; "eval" of the test images; "eval_train" and
"eval_validation" of those splits; "eval_<digest>" of images that are not the run's, by the first
digits of their hash. Training and evaluation may be different processes, and both write: each line
is written whole and under a lock. The file is untrusted: what is not a record is skipped.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from cifar_jax import files

FILE = "metrics.jsonl"
Record = dict[str, Any]

_TEXTS = ("kind", "parameters", "split", "dataset")  # all other values are numbers
_MAX_LINE = 1 << 24  # bytes
_END_OF_TIME = 1e11  # seconds since 1970, the year 5138: a later clock is wrong


def read(path: Path) -> list[Record]:
    """All records; what is not one, such as the half line of a crash, is skipped.

    JSON has no NaN and no infinity: they are written as null, and read as NaN.
    """
    try:
        with path.open("rb") as file:
            return [record for line in _lines(file) if (record := _parse(line))]
    except FileNotFoundError:
        return []


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Line by line: a file may be larger than the memory, even in a single line."""
    whole = True
    while line := file.readline(_MAX_LINE):
        begins, whole = whole, line.endswith(b"\n") or len(line) < _MAX_LINE
        if begins and whole:
            yield line


def _parse(line: bytes) -> Record | None:
    try:
        record = files.parse_json(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not {"kind", "step"} <= record.keys():
        return None
    if not all(_fits(name, value) for name, value in record.items()):
        return None
    return {name: math.nan if value is None else value for name, value in record.items()}


def _fits(name: str, value: Any) -> bool:
    if name in _TEXTS:
        return isinstance(value, str)
    if name == "step":
        return type(value) is int and 0 <= value < 2**63  # as TensorBoard has it
    if name == "time":
        return type(value) in (int, float) and 0 <= value < _END_OF_TIME
    return value is None or type(value) in (int, float)


def _line(record: Mapping[str, Any]) -> str:
    def valid(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps({name: valid(value) for name, value in record.items()}) + "\n"


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Adds one line. Raises OSError where that is not possible."""
    with _locked(path) as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
        torn = bool(end) and file.read(1) != b"\n"  # by a crash: its half line ends here
        file.write(("\n" * torn + _line(record)).encode())


def drop(path: Path, unwanted: Callable[[Record], bool]) -> None:
    """Takes out the records that are `unwanted`; the file is replaced at once or not at all.

    Raises OSError where that is not possible.
    """
    if not path.exists():
        return
    with _locked(path):
        records = read(path)
        kept = [record for record in records if not unwanted(record)]
        if len(kept) == len(records):
            return
        files.write(path, "".join(map(_line, kept)))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """The file, held by nobody else; not one that has been replaced while we waited for it."""
    while True:
        with open(path, "ab+", opener=files.no_links) as file:
            files.lock(file.fileno(), path)
            if _same_file(file, path):
                yield file
                return


def _same_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.fstat(file.fileno()).st_ino == path.lstat().st_ino
    except FileNotFoundError:
        return False
