"""Pytrees on disk: written by Orbax in the background, read back, and sealed.

The layout on disk, and how it is verified: `checkpoint.py`.
"""

import contextlib
import errno
import importlib
import os
import shutil
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from orbax.checkpoint import multihost

from cifar_jax import files
from cifar_jax.errors import UsageError, UserError, reason
from cifar_jax.workdir import checkpoint

_LOCK = "writer.lock"  # holds the number of the process
_SEAL_MS = 600_000  # for all processes to have written their part
_SHARED_SECONDS = 90.0  # until a shared file system shows what another machine wrote: NFS, 60
_one_at_a_time = threading.Lock()  # Orbax's threads signal each other by names, in all of a process
_TRIES = 3  # Orbax waits by the wall clock, and gives up where that jumps ahead


def _steady_clock() -> None:
    """Where Orbax waits, it looks at the wall clock: a jump ends the wait, or makes it last for
    an hour. (As of orbax-checkpoint 0.12; where it has changed, `_TRIES` is what helps.)"""
    steady = types.SimpleNamespace(**{**vars(time), "time": time.monotonic})
    for name in ("future", "signaling_client"):
        with contextlib.suppress(ImportError):
            module: Any = importlib.import_module(f"orbax.checkpoint._src.futures.{name}")
            module.time = steady


_steady_clock()


class Writer:
    """Saves pytrees under rising steps, and keeps the newest `keep` and every `keep_every`-th.

    It holds `folder` against the writers of other runs until it is closed.
    All processes of a run take part, in one folder that all of them see; the first one seals.
    Raises UserError where `folder` cannot be written or another process is writing it.
    """

    def __init__(self, folder: Path, keep: int, keep_every: int = 0):
        if "[" in str(folder):  # Orbax takes it for a pattern, and finds nothing again
            raise UsageError(
                f"{folder.parent}: checkpoints cannot be restored from a path with '['. Choose "
                "another --workdir."
            )
        self._folder, self._keep, self._keep_every = folder, keep, keep_every
        self._lock: TextIO | None = None  # of the first process
        try:
            if _first_process():
                self._folder.mkdir(parents=True, exist_ok=True)
                self._lock = _lock(self._folder)
                checkpoint.clear_remains(self._folder)
        except OSError as error:
            raise UserError(f"Cannot write to {folder}: {reason(error)}.") from error
        if jax.process_count() > 1:
            _check_shared(folder)
        self._shared = ocp.StandardCheckpointer() if jax.process_count() > 1 else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, step: int, tree: Any, good: int | None = None, best: int | None = None) -> None:
        """Starts to write `tree`; returns once its values are copied.

        `good` and `best` are earlier steps that are kept in any case. Raises UserError where this
        save, or the one before it, could not be written.
        """
        self.wait()
        path = self._folder / f"{step}{checkpoint.UNSEALED}"
        together = multihost.get_barrier_sync_fn()  # does nothing for one process
        if self._shared is None:
            tree = jax.tree.map(lambda x: np.array(x, copy=True), tree)
            write = lambda: _write(path, tree)  # noqa: E731
        else:  # each process its part, all at the same step
            try:
                self._shared.save(path, tree)
            except OSError as error:
                raise _not_written(path, error) from error
            write = self._shared.wait_until_finished
        self._pending = self._thread.submit(self._finish, step, write, together, good, best)

    def _finish(
        self,
        step: int,
        write: Callable[[], None],
        together: multihost.BarrierSyncFn,
        good: int | None,
        best: int | None,
    ) -> None:
        """Waits for the last byte, seals the checkpoint, removes those that need not be kept."""
        try:
            write()
            if _first_process():
                checkpoint.seal(self._folder, step)
                if checkpoint.status(self._folder).good != good:
                    checkpoint.mark(self._folder, good=good)
                for old in checkpoint.steps(self._folder)[: -self._keep]:
                    wanted = self._keep_every and old % self._keep_every == 0
                    if not wanted and old not in (good, best):
                        checkpoint.remove(self._folder, old)
            together(key=f"sealed {self._folder / str(step)}", timeout_ms=_SEAL_MS)
        except (OSError, ValueError) as error:  # tensorstore reports a full disk as ValueError
            for remains in self._folder.glob(f"{step}{checkpoint.UNSEALED}*"):
                shutil.rmtree(remains, ignore_errors=True)
            raise _not_written(self._folder / str(step), error) from error

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
            if self._shared:
                with contextlib.suppress(OSError):  # of a full disk, reported before
                    self._shared.close()
            if self._lock:
                self._lock.close()


def _write(path: Path, tree: Any) -> None:
    """Writes numpy arrays and reads them back. Raises OSError or ValueError."""
    with _one_at_a_time:
        _write_alone(path, tree)


def _write_alone(path: Path, tree: Any) -> None:
    for attempt in range(_TRIES):
        writer = ocp.StandardCheckpointer()
        try:
            writer.save(path, tree)
            writer.wait_until_finished()
            break
        except TimeoutError:
            if attempt == _TRIES - 1:
                raise
            shutil.rmtree(path, ignore_errors=True)
        finally:
            with contextlib.suppress(OSError, TimeoutError):  # what follows from the first error
                writer.close()
    for found, wanted in zip(
        jax.tree.leaves(_read(path, tree)), jax.tree.leaves(tree), strict=True
    ):
        if found.tobytes() != wanted.tobytes():
            raise OSError(errno.EIO, "what was read back is not what was written")


def restore_variables(folder: Path, step: int, like: dict[str, Any], *, ema: bool) -> Any:
    """The variables of the checkpoint `step`, "params" and the model's state by collection, as
    `like`: their EMA, or without `ema` the raw ones. Raises as `restore` does."""
    if ema:
        return restore(folder, step, {"ema": like}, partial=True)["ema"]
    model_state = {name: tree for name, tree in like.items() if name != "params"}
    wanted = {"params": like["params"], "model_state": model_state}
    found = restore(folder, step, wanted, partial=True)
    return {"params": found["params"], **found["model_state"]}


def variable_shapes(folder: Path, step: int) -> dict[str, tuple[int, ...]]:
    """The shapes of what `restore_variables` can restore of the EMA, by path as
    "params/conv1/kernel". Raises as `restore` does."""
    path = (folder / str(step)).absolute()
    with _reading(path), _reader() as reader:
        saved = traverse_util.flatten_dict(_metadata(reader, path)["ema"], sep="/")
        return {name: tuple(array.shape) for name, array in saved.items()}


def _read(path: Path, template: Any) -> Any:
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(path, template)


def _read_part(path: Path, template: dict[str, Any]) -> Any:
    """The part of a saved pytree that `template`, nested dicts, describes."""
    with _reader() as reader:
        saved = traverse_util.flatten_dict(_metadata(reader, path), sep=".")
        for name, wanted in traverse_util.flatten_dict(template, sep=".").items():
            if name not in saved:  # Orbax would leave there what is in the memory
                raise ValueError(f"it has no {name}")
            if saved[name].shape != wanted.shape:
                raise ValueError(f"{name} is {saved[name].shape}, expected {wanted.shape}")
        as_arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), template)
        wanted = ocp.args.PyTreeRestore(template, restore_args=as_arrays, partial_restore=True)
        return reader.restore(path, args=wanted)


def _reader() -> ocp.Checkpointer:
    """For parts of a pytree; it waits for no other process, so that one of them may read alone."""
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _metadata(reader: ocp.Checkpointer, path: Path) -> Any:
    """The saved pytree, with its shapes in place of its arrays."""
    metadata = reader.metadata(path).item_metadata
    if metadata is None:
        raise ValueError("it has no metadata")
    return metadata.tree


def restore(folder: Path, step: int, like: Any, *, partial: bool = False) -> Any:
    """The pytree saved at `step`, with the structure and dtypes of `like`, as numpy arrays.

    With `partial`, `like` are nested dicts, and the rest of what was saved is ignored. Raises
    FileNotFoundError where the checkpoint is gone, and UserError where it cannot be read or holds
    another structure.
    """
    template = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
    path = (folder / str(step)).absolute()
    with _reading(path):
        tree = _read_part(path, template) if partial else _read(path, template)
        for found, wanted in zip(jax.tree.leaves(tree), jax.tree.leaves(template), strict=True):
            if found.shape != wanted.shape:  # which Orbax does not look at
                raise ValueError(f"an array is {found.shape}, expected {wanted.shape}")
        return tree


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns the errors of Orbax into those that `restore` names."""
    try:
        yield
    except (ValueError, KeyError, OSError, TimeoutError) as error:
        if not path.exists():
            raise FileNotFoundError(path) from error
        raise UserError(
            f"{path} does not hold what this config describes: {reason(error)}"
        ) from error


def _lock(folder: Path) -> TextIO:
    """Holds `folder` for this process, until the file is closed or the process ends."""
    path = folder / _LOCK
    file = open(path, "a+", opener=files.no_links)  # noqa: SIM115 (held until close)
    try:
        files.lock(file.fileno(), path, wait=False)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(20).strip()
        raise UserError(
            f"Process {holder if holder.isdecimal() else '?'} is writing to {folder}. "
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


def _not_written(path: Path, error: Exception) -> UserError:
    full = "No space left on device"
    if full in str(error):
        problem, remedy = full, "make room there"
    else:
        problem, remedy = reason(error), "fix that"
    return UserError(
        f"Checkpoint {path} could not be written: {problem}. "
        f"Earlier ones are untouched; {remedy} and start again to go on from the last."
    )
