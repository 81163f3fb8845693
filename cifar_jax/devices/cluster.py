"""Several processes as one run: how it starts, and how it ends.

Start, time-outs and collectives are those of jax.distributed. When a process is lost, a collective
fails in the others, which print a line; where none fails, because the lost one only hangs or
was the first, jax.distributed ends them after `heartbeat_seconds`, with a stack trace of its own.
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
from ml_collections import ConfigDict

from cifar_jax.devices import replicas
from cifar_jax.errors import UsageError, UserError, reason

_LAST_SECONDS = 3.0  # for the others to end by themselves, before the first process does
_BACKSTOP_SECONDS = 15  # until jax.distributed ends a process that could not say why itself
_END_SECONDS = 3_600  # for the slowest to write what it still has to write
_MACHINE = ("data.dir", "data.shards")  # what may differ from process to process

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def joined(
    config: ConfigDict, coordinator: str, num_processes: int, process_id: int
) -> Iterator[None]:
    """A context in which this process is one of several of the run, if `config.cluster` or
    `coordinator` ask for it; what is '' or negative is left to JAX's detection of Slurm,
    Kubernetes or Open MPI.

    What is raised within ends the process here and now, for the others wait in a collective and it
    would wait for them: a UserError keeps its line and exit code. What every process raises at the
    same step is raised here, too.
    """
    if not (config.cluster or coordinator):
        if num_processes >= 0 or process_id >= 0:
            raise UsageError("--num_processes and --process_id need --coordinator=HOST:PORT.")
        yield
        return
    _join(config, coordinator, num_processes, process_id)
    try:
        _check_devices()
        _check_same(config)
        yield
    except BaseException as error:
        if not (isinstance(error, UserError) and error.everywhere):
            _leave(error)
        jax.distributed.shutdown()
        raise
    jax.distributed.shutdown()  # waits for all processes to be here


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
    # It would take SIGTERM from the training loop, where the processes agree on it by themselves.
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
            heartbeat_timeout_seconds=max(1, int(config.heartbeat_seconds)),
            shutdown_timeout_seconds=_END_SECONDS,
        )
    except Exception as error:  # each of JAX's detections fails in its own way
        # Nothing was detected; what else there is, as a name not known yet, may pass.
        kind = UsageError if isinstance(error, ValueError) else UserError
        raise kind(
            f"The processes could not be joined: {reason(error)}. Expected Slurm, "
            "Kubernetes or Open MPI, or else --coordinator=HOST:PORT --num_processes=N "
            "--process_id=I."
        ) from error
    finally:
        late.cancel()
    if jax.process_index():  # process 0 alone prints; errors go to stderr, from each
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
    problem = "not all processes have joined"
    if coordinator and process_id != 0:
        host, _, port = coordinator.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            problem = f"it cannot be reached ({error.strerror or error})"
    where = coordinator or "that the cluster names"
    print(
        f"The coordinator {where} was waited for {config.join_seconds:g} s "
        f"(config.join_seconds), but {problem}. It is process 0's: check that all processes run, "
        "that they have the same address, and that its port is open.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(UserError.exit_code)


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


def _leave(error: BaseException) -> None:
    """Ends the process because of `error`, in a line if it can be one."""
    if _is_lost_connection(error):
        error = UserError(
            f"Process {jax.process_index()} has lost the connection to another one: "
            f"{reason(error)}. Start all processes again to go on from the last checkpoint."
        )
    expected = isinstance(error, UserError | KeyboardInterrupt)
    if not expected or _log.isEnabledFor(logging.DEBUG):
        traceback.print_exception(error)
    if isinstance(error, UserError):
        print(error, file=sys.stderr, flush=True)
    if (
        jax.process_index() == 0
    ):  # or jax.distributed aborts the others before they say why they end
        time.sleep(_LAST_SECONDS)
    sys.stdout.flush()
    os._exit(getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1))


def _is_lost_connection(error: BaseException) -> bool:
    """While a function is being dispatched, JAX makes a ValueError of it."""
    own = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")  # errors of this process
    raised = isinstance(error, jax.errors.JaxRuntimeError) and not str(error).startswith(own)
    return raised or "Gloo" in str(error)
