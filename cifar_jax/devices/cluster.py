"""Several processes as one run: how they meet, and what they say when one is lost.

Start and collectives are those of jax.distributed, and so is the store of keys and values through
which the processes talk here. When one is lost, jax.distributed ends the others by itself, with a
stack trace; `_Watch` is there to say it before that, in one line and with the reason.
"""

import contextlib
import logging
import os
import socket
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax._src import distributed  # for the store alone, which has no public name
from ml_collections import ConfigDict

from cifar_jax.devices import replicas
from cifar_jax.errors import UsageError, UserError

_PERIOD = 1.0  # seconds between two signs of life
_SUSPECT_SECONDS = 5.0  # without one, after a collective has failed
_BACKSTOP_SECONDS = 15  # until jax.distributed ends a process that could not say why itself
_ALIVE, _VERDICT, _SUSPECT = "cifar_jax/alive/", "cifar_jax/verdict/", "cifar_jax/suspect/"
_END_MS = 3_600_000  # for the slowest to write what it still has to write
_MACHINE = ("data.dir", "data.shards")  # what may differ from process to process

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def joined(
    config: ConfigDict, coordinator: str, num_processes: int, process_id: int
) -> Iterator[None]:
    """Within it, this process is one of those of the run, if `config.cluster` or `coordinator` say
    so; what is '' or negative is left to JAX's detection of Slurm, Kubernetes or Open MPI.

    What is raised within ends the process here and now, and tells the others why, for they wait in
    a collective: a UserError keeps its line and exit code.
    """
    if not (config.cluster or coordinator):
        if num_processes >= 0 or process_id >= 0:
            raise UsageError("--num_processes and --process_id need --coordinator=HOST:PORT.")
        yield
        return
    _join(config, coordinator, num_processes, process_id)
    watch = _Watch(config.heartbeat_seconds)
    watch.start()
    try:
        _check_devices()
        _check_same(config)
        yield
    except BaseException as error:
        if not (isinstance(error, UserError) and error.everywhere):
            watch.leave(error)
        watch.end()
        raise
    watch.end()


def _join(config: ConfigDict, coordinator: str, num_processes: int, process_id: int) -> None:
    if coordinator:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise UsageError(f"--coordinator={coordinator}, expected HOST:PORT.")
        if not config.cluster and not 0 <= process_id < num_processes:
            raise UsageError(
                f"--process_id={process_id} of --num_processes={num_processes}: expected both with "
                "--coordinator, and an id from 0 to the number of processes - 1."
            )
        if process_id == 0:
            _check_port(coordinator, int(port))
    # It would take SIGTERM away from the training loop, which has its own way to agree.
    jax.config.update("jax_enable_preemption_service", False)
    late = threading.Timer(config.join_seconds, _end_late, (config, coordinator, process_id))
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            coordinator or None,
            num_processes if num_processes >= 0 else None,
            process_id if process_id >= 0 else None,
            initialization_timeout=int(config.join_seconds) + _BACKSTOP_SECONDS,
            heartbeat_timeout_seconds=int(config.heartbeat_seconds) + _BACKSTOP_SECONDS,
            shutdown_timeout_seconds=int(config.heartbeat_seconds),
        )
    except Exception as error:  # each of JAX's detections fails in its own way
        # Nothing was detected; what else there is, as a name not known yet, may pass.
        kind = UsageError if isinstance(error, ValueError) else UserError
        raise kind(
            f"The processes could not be joined: {_first_line(error)} Expected Slurm, "
            "Kubernetes or Open MPI, or else --coordinator=HOST:PORT --num_processes=N "
            "--process_id=I."
        ) from error
    finally:
        late.cancel()
    if jax.process_index():  # one process speaks for all; errors have a stream of their own
        sys.stdout.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _check_port(coordinator: str, port: int) -> None:
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise UserError(
            f"Process 0 cannot listen at {coordinator}: {error.strerror}. "
            "Choose another port for all processes."
        ) from error


def _end_late(config: ConfigDict, coordinator: str, process_id: int) -> None:
    """The coordination service would end the process without an address or a hint."""
    where = coordinator or distributed.global_state.coordinator_address or ""
    problem = "not all processes have joined"
    if where and process_id != 0:
        host, _, port = where.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            problem = f"it cannot be reached ({error.strerror or error})"
    _end(
        f"The coordinator {where or '?'} was waited for {config.join_seconds:g} s "
        f"(config.join_seconds), but {problem}. It is process 0's: check that all processes run, "
        "that they have the same address, and that its port is open.",
        UserError.exit_code,
    )


def _check_devices() -> None:
    counts = [len(jax.local_devices(process_index=i)) for i in range(jax.process_count())]
    for process, count in enumerate(counts):
        if count != counts[0]:
            raise UsageError(
                f"Process 0 has {counts[0]} devices and process {process} has {count}, expected "
                "the same number for all."
            )


def _check_same(config: ConfigDict) -> None:
    """Raises UsageError, on every process, where one has another config than process 0."""
    fields = {
        k: v
        for k, v in traverse_util.flatten_dict(config.to_dict(), sep=".").items()
        if k not in _MACHINE
    }

    def differs(values: list[Any]) -> np.ndarray:
        hashes = [zlib.crc32(repr(value).encode()) for value in values]
        every = replicas.gather(np.array(hashes, np.uint32))
        return every != every[0]

    if differs([sorted(fields)]).any():
        raise UsageError("The processes run different versions of cifar_jax.")
    for process, different in enumerate(differs(list(fields.values()))):
        if different.any():
            named = [name for name, yes in zip(fields, different, strict=True) if yes]
            raise UsageError(
                f"Process {process} has another config than process 0: {', '.join(named)}. "
                "Start all processes with the same --config and flags."
            )


def _end(line: str, code: int) -> None:
    """Ends the process without waiting for its threads, which wait for other processes."""
    print(line, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


class _Watch(threading.Thread):
    """Gives signs of life, and ends this process when the first process says that one is lost.

    The first process alone looks at the signs of all, so that nothing grows with the square of
    their number. A process that ends with an error says so itself.
    """

    def __init__(self, seconds: float):
        super().__init__(name="watch", daemon=True)
        self._seconds = seconds
        self._client: Any = distributed.global_state.client
        self._index, self._stopped = jax.process_index(), threading.Event()
        self._signs: dict[str, tuple[str, float]] = {}  # of a process: the last, and when it came

    def end(self) -> None:
        """Waits for all processes to be here, however long one still writes, and leaves the run."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # shutdown has a line for it
            self._client.wait_at_barrier("cifar_jax/end", _END_MS)
        self._stopped.set()
        self.join()
        jax.distributed.shutdown()

    def leave(self, error: BaseException) -> None:
        """Ends the process because of `error`, and tells the others."""
        if _is_lost_connection(error):
            reason = _first_line(error)
            print(f"Process {self._index} waits for another in vain: {reason}", file=sys.stderr)
            self._set(f"{_SUSPECT}{self._index}", "1")
            time.sleep(self._seconds + _BACKSTOP_SECONDS)  # the verdict ends this process
        self._stopped.set()
        if isinstance(error, UserError):
            line, code = str(error), error.exit_code
        elif isinstance(error, KeyboardInterrupt):
            line, code = "Interrupted.", getattr(error, "exit_code", 130)
        else:
            line, code = f"{type(error).__name__}: {error}", 1
        if not isinstance(error, UserError | KeyboardInterrupt) or _log.isEnabledFor(logging.DEBUG):
            traceback.print_exception(error)
        self._condemn(f"Process {self._index} on {_me()} has stopped: {line}", code)
        self._let_others_hear()
        _end(line, code)

    def run(self) -> None:
        number = 0
        while not self._stopped.wait(_PERIOD):
            number += 1
            try:
                self._set(f"{_ALIVE}{self._index}", f"{number} {_me()}")
                if self._index == 0:
                    self._look()
                verdicts = self._client.key_value_dir_get(_VERDICT)
            except jax.errors.JaxRuntimeError:
                return  # the first process is gone: jax.distributed ends this one
            if verdicts and not self._stopped.is_set():
                self._let_others_hear()
                code, _, line = verdicts[0][1].partition(" ")
                _end(line, int(code))

    def _look(self) -> None:
        now = time.monotonic()
        for name, sign in self._client.key_value_dir_get(_ALIVE):
            if self._signs.get(name, ("", 0.0))[0] != sign:
                self._signs[name] = sign, now
        suspected = bool(self._client.key_value_dir_get(_SUSPECT))
        limit = min(self._seconds, _SUSPECT_SECONDS) if suspected else self._seconds
        for name, (sign, seen) in self._signs.items():
            if now - seen > limit:
                process, where = name.rsplit("/", 1)[-1], sign.partition(" ")[2]
                self._condemn(
                    f"Process {process} on {where} was lost: no sign of life for {now - seen:.0f} "
                    "s. Start all processes again to go on from the last checkpoint.",
                    UserError.exit_code,
                )

    def _condemn(self, line: str, code: int) -> None:
        """All processes end with this line and exit code."""
        self._set(f"{_VERDICT}1", f"{code} {line}")

    def _set(self, key: str, value: str) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another verdict came first
            self._client.key_value_set(key, value, allow_overwrite=not key.startswith(_VERDICT))

    def _let_others_hear(self) -> None:
        if self._index == 0:  # the store ends with this process
            time.sleep(3 * _PERIOD)


def _is_lost_connection(error: BaseException) -> bool:
    """While a function is being dispatched, JAX makes a ValueError of it."""
    own = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")  # this process's own trouble
    raised = isinstance(error, jax.errors.JaxRuntimeError) and not str(error).startswith(own)
    return raised or "Gloo" in str(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _me() -> str:
    return f"{socket.gethostname()} (pid {os.getpid()})"
