"""metrics.jsonl: every scalar of a run, one JSON object a line.

    pandas.read_json("runs/tutorial/metrics.jsonl", lines=True)

A record has `kind` ("train", "eval" or "eval_train", and "start" where a run began or was resumed),
`step`, `time` in seconds since 1970, and its values by name. Training and evaluation may be
different processes, and both write: each line is written whole and under a lock.
"""

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

FILE = "metrics.jsonl"
Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    """All records; what is not one, such as the half line of a crash, is passed over.

    JSON has no NaN and no infinity: they are written as null, and read as NaN.
    """
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return []
    return [record for line in text.splitlines() if (record := _parse(line))]


def _parse(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not (isinstance(record, dict) and isinstance(record.get("step"), int) and "kind" in record):
        return None
    return {name: math.nan if value is None else value for name, value in record.items()}


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
    """Takes out the records that are `unwanted`; the file is replaced at once or not at all."""
    if not path.exists():
        return
    with _locked(path):
        records = read(path)
        kept = [record for record in records if not unwanted(record)]
        if len(kept) == len(records):
            return
        part = path.with_name(f"{path.name}.part")
        part.write_text("".join(map(_line, kept)))
        part.replace(path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """The file, held by nobody else; not one that has been replaced while we waited for it."""
    while True:
        with path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _same_file(file, path):
                yield file
                return


def _same_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
