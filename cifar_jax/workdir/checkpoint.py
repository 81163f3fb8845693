"""The folder of a run's checkpoints: which there are, and whether each is whole.

    python -m cifar_jax.workdir WORKDIR      # verifies them

`folder/<step>/` is one checkpoint, and appears only when it is sealed: it was read back, all its
files and names are on disk, and so is a manifest of their SHA-256 sums and its step. What does not
match its manifest is damaged; it is not used, and a training run that skips it renames it to
`<step>.damaged`. Nothing here is deleted but what retention no longer keeps and what a killed
process left unfinished. Needs no JAX, and knows nothing of training.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cifar_jax import files
from cifar_jax.errors import UserError, reason

MANIFEST = "manifest.json"
STATUS = "status.json"
UNSEALED, _REMOVING = ".unsealed", ".removing"  # what a killed process may leave behind
DAMAGED, SUPERSEDED = ".damaged", ".superseded"  # what is set aside
_STEP = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)

Report = Callable[[str], object]


def steps(folder: Path) -> list[int]:
    """The steps of all checkpoints in `folder`, whole or not, rising. Raises UserError where the
    folder cannot be read."""
    try:
        entries = [path.name for path in folder.iterdir() if _STEP.fullmatch(path.name)]
        return sorted(int(name) for name in entries if (folder / name).is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(folder, error) from error


def newest(folder: Path, report: Report) -> int | None:
    """The last step whose checkpoint is whole, or None; each damaged one is reported.

    Raises UserError where one cannot be read now, and so may be whole or damaged.
    """
    for step in reversed(steps(folder)):
        try:
            problem = check(folder / str(step))
        except FileNotFoundError:  # removed by retention meanwhile
            continue
        if not problem:
            return step
        report(f"Checkpoint {step} is damaged and not used: {problem}.")
    return None


def choose(folder: Path, wanted: int | str | None, report: Report) -> int | None:
    """The step of the checkpoint that is `wanted`: a step, "best", or None for the newest whole
    one, which may be None.

    Raises UserError for a step that is not there or damaged, and where none is known as the best.
    """
    if wanted is None:
        return newest(folder, report)
    step = status(folder).best if wanted == "best" else wanted
    if step is None:
        raise UserError(
            f"No checkpoint in {folder} is marked as the best. Train with "
            "--config.checkpoint.keep_best=validation, or name a step."
        )
    try:
        problem = check(folder / str(step))
    except FileNotFoundError:
        problem = f"there is none; there are {', '.join(map(str, steps(folder))) or 'none'}"
    if problem:
        raise UserError(f"Checkpoint {step} in {folder}: {problem}.")
    return int(step)


def check(path: Path) -> str:
    """What is damaged in the checkpoint at `path`; '' if its files match its manifest.

    Raises FileNotFoundError where the checkpoint is gone, and UserError where it cannot be read.
    """
    try:
        return _problem(path)
    except OSError as error:
        if not path.exists():
            raise FileNotFoundError(path) from error
        if isinstance(error, FileNotFoundError):
            return f"{Path(error.filename).relative_to(path)} is missing"
        raise _unreadable(Path(error.filename or path), error) from error


def _problem(path: Path) -> str:
    sizes = dict(_files(path))
    links = [name for name, size in sizes.items() if size < 0]
    if links:
        return f"{links[0]} is a link or a device, not a file"
    try:
        step, sums = _read_manifest(path / MANIFEST)
    except ValueError as error:
        return f"{MANIFEST} is damaged ({reason(error)})"
    if str(step) != path.name:
        return f"it is the checkpoint of step {step}"
    del sizes[MANIFEST]
    if unknown := sizes.keys() - sums.keys():
        return f"{min(unknown)} does not belong to it"
    for name, (size, digest) in sums.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != size or _sha256(path / name) != digest:
            return f"{name} is damaged"
    return ""


def _read_manifest(path: Path) -> tuple[int, dict[str, tuple[int, str]]]:
    """The step, and size and SHA-256 of each file. Raises ValueError where that is not there."""
    found = files.read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
        raise ValueError("it is not a list of files")
    if type(found.get("step")) is not int or not found["files"]:
        raise ValueError("it has no step or no files")
    sums = {}
    for name, entry in found["files"].items():
        if not isinstance(entry, dict) or type(entry.get("bytes")) is not int:
            raise ValueError(f"it has no size of {name}")
        sums[name] = entry["bytes"], str(entry.get("sha256"))
    return found["step"], sums


def _files(path: Path) -> Iterator[tuple[str, int]]:
    """Name and size of every file below `path`; -1 for what is neither file nor folder."""

    def give_up(error: OSError) -> None:
        raise error

    for folder, names, found in os.walk(path, onerror=give_up):
        for name in names + found:
            entry = Path(folder, name)
            if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
                yield str(entry.relative_to(path)), -1
            elif entry.is_file() and not name.startswith("."):  # .nfs…, .DS_Store
                yield str(entry.relative_to(path)), entry.stat().st_size


def _sha256(path: Path) -> str:
    with files.opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be read: {reason(error)}. Nothing was changed: make it readable, and start "
        "again with the same command."
    )


def wait_for_new(folder: Path, after: int, seconds: float, report: Report) -> int | None:
    """Looks every `seconds` for a whole checkpoint later than `after`, and returns the newest.

    Returns None where there will be none, because training has ended. A run that went back to an
    earlier step, by --from_step or --restart, is followed.
    """
    while True:
        state = status(folder)  # asked first: the last checkpoint precedes the mark
        present = steps(folder)
        if present and present[-1] < after:
            after = -1
        for step in reversed([step for step in present if step > after]):
            try:
                problem = check(folder / str(step))
            except FileNotFoundError:
                continue
            if not problem:
                return step
            report(f"Checkpoint {step} is damaged and not used: {problem}.")
            after = max(after, step)
        if state.finished is not None or state.diverged:
            return None
        time.sleep(seconds)


# -- what the writing process does ---------------------------------------------------------------


def seal(folder: Path, step: int) -> None:
    """Makes `<step>.unsealed`, which is complete, the checkpoint of `step`: its files, then the
    manifest, then its name survive a power cut, in that order. Raises OSError."""
    path = folder / f"{step}{UNSEALED}"
    sums = {name: {"bytes": size, "sha256": _sha256(path / name)} for name, size in _files(path)}
    files.sync_tree(path)
    files.write(path / MANIFEST, files.to_json({"step": step, "files": sums}))
    path.rename(folder / str(step))
    files.sync(folder)


def remove(folder: Path, step: int) -> None:
    """For retention: the name goes first, so that what is left is not taken for a checkpoint."""
    going = folder / f"{step}{_REMOVING}"
    (folder / str(step)).rename(going)
    shutil.rmtree(going, ignore_errors=True)


def clear_remains(folder: Path) -> None:
    """Removes what a killed process left half written or half removed."""
    for path in folder.iterdir():
        step, _, rest = path.name.partition(".")
        if _STEP.fullmatch(step) and f".{rest}".startswith((UNSEALED, _REMOVING)):
            shutil.rmtree(path)


def set_aside(folder: Path, step: int, suffix: str) -> str:
    """Renames a checkpoint that the run will not use, and returns its new name."""
    name, number = f"{step}{suffix}", 1
    while (folder / name).exists():
        number += 1
        name = f"{step}{suffix}.{number}"
    (folder / str(step)).rename(folder / name)
    files.sync(folder)
    return name


def has_any(folder: Path) -> bool:
    """Whether there is, or was set aside as damaged, any checkpoint."""
    return bool(steps(folder)) or any(f"{DAMAGED}" in name for name in all_set_aside(folder))


def all_set_aside(folder: Path) -> list[str]:
    """The names of all checkpoints that were set aside, sorted."""
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(n for n in names if re.match(r"[0-9]+(\.damaged|\.superseded)", n))


# -- the run's status ----------------------------------------------------------------------------


class Status(NamedTuple):
    """The state of training, as in status.json."""

    good: int | None = None  # the last checkpoint that later steps have proven good
    finished: int | None = None  # the step at which training has ended
    diverged: str = ""  # the line with which it has stopped
    best: int | None = None  # the checkpoint of the best accuracy, where the run keeps that
    best_accuracy: float | None = None
    evaluated: int | None = None  # the last checkpoint that was compared with it
    worse: int = 0  # evaluated since the best one


def status(folder: Path) -> Status:
    """Raises UserError where it cannot be read. One that a crash left torn counts as absent: the
    next step of a run writes it anew."""
    try:
        found = files.read_json(folder / STATUS)
    except (FileNotFoundError, ValueError):
        return Status()
    except OSError as error:
        raise _unreadable(folder / STATUS, error) from error
    known = found if isinstance(found, dict) else {}

    def whole_number(name: str) -> int | None:
        return known[name] if type(known.get(name)) is int else None

    diverged, accuracy = known.get("diverged"), known.get("best_accuracy")
    return Status(
        whole_number("good"),
        whole_number("finished"),
        " ".join(diverged.split()) if isinstance(diverged, str) else "",
        whole_number("best") if isinstance(accuracy, float) else None,
        accuracy if isinstance(accuracy, float) else None,
        whole_number("evaluated"),
        whole_number("worse") or 0,
    )


def mark(folder: Path, **changes: Any) -> None:
    """Changes fields of the status. Raises OSError."""
    files.write(folder / STATUS, files.to_json(status(folder)._replace(**changes)._asdict()))
