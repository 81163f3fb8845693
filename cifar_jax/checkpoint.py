"""Checkpoints: written by Orbax in the background, proven by a manifest of SHA-256 sums.

`folder/<step>/` is one checkpoint. Its manifest is written last; without one, or with one that
does not match, a checkpoint is not used: an interrupted write leaves nothing that looks whole, and
bytes that changed on disk do not become parameters. Knows pytrees, nothing of training.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import multihost

from cifar_jax.errors import UserError

_MANIFEST = "manifest.json"
_FINISHED = "finished"
_LOCK = "writer.lock"  # holds the number of the process
_SEAL_MS = 600_000  # for all processes to have written their part
_SHARED_SECONDS = 90.0  # until a shared file system shows what another machine wrote: NFS, 60
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of what Orbax has not written to the end


class Writer:
    """Saves pytrees under rising steps, and keeps the newest `keep` and every `keep_every`-th.

    It holds `folder` against the writers of other runs until it is closed.
    All processes of a run take part, in one folder that all of them see; the first one seals.
    Raises UserError where `folder` cannot be written or another process is writing it.
    """

    def __init__(self, folder: Path, keep: int, keep_every: int = 0):
        self._folder, self._keep, self._keep_every = folder, keep, keep_every
        self._lock: TextIO | None = None  # of the first process
        try:
            if _first_process():
                self._open()
        except OSError as error:
            raise UserError(f"Cannot write to {folder}: {error.strerror}.") from error
        if jax.process_count() > 1:
            _check_shared(folder)
        self._orbax = ocp.StandardCheckpointer()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self._folder)
        for remains in self._folder.glob(f"*{_UNFINISHED}*"):  # of a process that was killed
            shutil.rmtree(remains)

    def go_on_from(self, step: int | None) -> None:
        """The run goes on from `step`, None: from the start. What stands beyond it is of no use, or
        `step` would be later, and is removed."""
        if _first_process():
            for found in steps(self._folder):
                if step is None or found > step:
                    _remove(self._folder / str(found))

    def save(self, step: int, tree: Any) -> None:
        """Starts to write `tree`; returns once its values are copied.

        Raises UserError where this save, or the one before it, could not be written.
        """
        self.wait()
        path = self._folder / str(step)
        together = multihost.get_barrier_sync_fn()  # does nothing for one process
        try:
            self._orbax.save(path.absolute(), tree)
        except OSError as error:
            raise _not_written(path, error) from error
        self._pending = self._thread.submit(self._seal, path, together)

    def _seal(self, path: Path, together: multihost.BarrierSyncFn) -> None:
        """Waits for the last byte, writes the manifest, removes what need not be kept."""
        try:
            self._orbax.wait_until_finished()
            if _first_process():
                _write_manifest(path)
                for step in steps(self._folder)[: -self._keep]:
                    if not self._keep_every or step % self._keep_every:
                        _remove(self._folder / str(step))
            together(key=f"sealed {path}", timeout_ms=_SEAL_MS)
        except (OSError, ValueError) as error:  # tensorstore reports a full disk as ValueError
            for remains in self._folder.glob(f"{path.name}{_UNFINISHED}*"):
                shutil.rmtree(remains, ignore_errors=True)
            raise _not_written(path, error) from error

    def wait(self) -> None:
        """Returns when the last save is complete. Raises UserError where it failed."""
        if self._pending:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()
            if self._lock:
                self._lock.close()


def _lock(folder: Path) -> TextIO:
    """Holds `folder` for this process, until the file is closed or the process ends."""
    file = (folder / _LOCK).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise UserError(
            f"Process {file.read().strip() or '?'} is writing to {folder}. "
            "Stop it first, or choose another --workdir."
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _first_process() -> bool:
    return jax.process_index() == 0


def _check_shared(folder: Path) -> None:
    """Raises UserError where this process does not see the lock that the first one has written."""
    holder = int(multihost.broadcast_one_to_all(np.int32(os.getpid())))
    end = time.monotonic() + _SHARED_SECONDS
    while not (folder / _LOCK).exists() or (folder / _LOCK).read_text().strip() != str(holder):
        if time.monotonic() > end:
            raise UserError(
                f"Process {jax.process_index()} does not see in {folder} what process 0 writes "
                "there. Choose a --workdir on a file system that all machines share."
            )
        time.sleep(0.1)


def _remove(path: Path) -> None:
    # The manifest first: whoever is reading is told that the rest goes.
    (path / _MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)


def _not_written(path: Path, error: Exception) -> UserError:
    full = "No space left on device"
    reason = full if full in str(error) else _first_line(error)
    return UserError(
        f"Checkpoint {path} could not be written: {reason}. "
        "Earlier ones are untouched; make room there and start again to go on from the last."
    )


def restore(folder: Path, step: int, like: Any) -> Any:
    """The pytree saved at `step`, with the structure and dtypes of `like`, as numpy arrays.

    Raises FileNotFoundError where the checkpoint is gone, and UserError where it holds another
    structure.
    """
    template = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
    path = (folder / str(step)).absolute()
    with ocp.StandardCheckpointer() as reader:
        try:
            tree = reader.restore(path, template)
            for found, wanted in zip(jax.tree.leaves(tree), jax.tree.leaves(template), strict=True):
                if found.shape != wanted.shape:  # which Orbax does not look at
                    raise ValueError(f"an array is {found.shape}, expected {wanted.shape}")
            return tree
        except (ValueError, KeyError, OSError) as error:
            if not (path / _MANIFEST).exists():
                raise FileNotFoundError(path) from error
            raise UserError(
                f"{path} does not hold what this config describes: {_first_line(error)}"
            ) from error


def steps(folder: Path) -> list[int]:
    """The steps of all checkpoints in `folder`, sealed or not, rising."""
    try:
        entries = [path for path in folder.iterdir() if path.name.isdigit() and path.is_dir()]
        return sorted(int(path.name) for path in entries)
    except FileNotFoundError:
        return []


def newest(folder: Path, report: Callable[[str], None]) -> int | None:
    """The last step whose checkpoint is whole, or None; each one passed over is reported."""
    for step in reversed(steps(folder)):
        if problem := check(folder / str(step)):
            report(f"Checkpoint {step} is not used: {problem}.")
        else:
            return step
    return None


def check(path: Path) -> str:
    """What is wrong with the checkpoint at `path`; '' if its files are those of its manifest."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        for name, expected in manifest.items():
            if _sha256(path / name) != expected:
                return f"{name} is damaged"
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(path)} is missing"
    except (ValueError, AttributeError):  # no JSON, or no object
        return f"{_MANIFEST} is damaged"
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    return ""


def wait_for_new(
    folder: Path, after: int, seconds: float, report: Callable[[str], None]
) -> int | None:
    """Looks every `seconds` for a whole checkpoint later than `after`, and returns the newest.

    Returns None where there will be none, because training has ended.
    """
    while True:
        ended = finished(folder) is not None  # asked first: the last checkpoint precedes the mark
        later = [step for step in steps(folder) if step > after]
        # Only a sealed one is looked into: the newest may be in the making.
        sealed = [step for step in later if (folder / str(step) / _MANIFEST).exists()]
        for step in reversed(sealed):
            problem = check(folder / str(step))
            if not problem:
                return step
            report(f"Checkpoint {step} is not used: {problem}.")
            after = max(after, step)
        if ended:
            return None
        time.sleep(seconds)


def mark_finished(folder: Path, step: int | None) -> None:
    """Says that `step` is the last one training will write; None: that training goes on."""
    if not _first_process():
        return
    if step is None:
        (folder / _FINISHED).unlink(missing_ok=True)
    else:
        _write_atomically(folder / _FINISHED, f"{step}\n")


def finished(folder: Path) -> int | None:
    """The step at which training has ended, or None."""
    try:
        return int((folder / _FINISHED).read_text())
    except FileNotFoundError:
        return None


def _write_manifest(path: Path) -> None:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    sums = {str(file.relative_to(path)): _sha256(file) for file in files}
    _write_atomically(path / _MANIFEST, json.dumps(sums, indent=1))


def _write_atomically(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
