"""Several processes of main.py on this machine, as one run: to try it out, and for the tests.

    python launch/local.py --processes=2 -- --config=configs/quickstart.py --workdir=runs/two

What stands after `--` goes to main.py. When a process is lost, the others end by themselves, some
with a stack trace of JAX's; with --restarts all are then started again and go on from the last
checkpoint. Ctrl-C and SIGTERM reach
every process, which saves and ends; the third kills.
"""

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

_MAIN = Path(__file__).parent.parent / "main.py"
_FINAL = (0, 2, 3, 130, 143)  # done; usage error, diverged: would come again; saved at a signal
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> int:
    options = _parse()
    signals: list[int] = []  # received, in order; _Job passes them on
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: signals.append(number))
    restart = 0
    while True:
        code = _Job(options, signals).wait()
        if signals or code in _FINAL:
            return code
        if restart == options.restarts:
            _say("Start all processes again to go on from the last checkpoint.")
            return code
        restart += 1
        _say(
            f"Starting all {options.processes} processes again "
            f"(restart {restart} of {options.restarts})."
        )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--devices", type=int, default=1, help="of each process (1)")
    parser.add_argument("--restarts", type=int, default=0, help="after a process was lost (0)")
    parser.add_argument("--grace", type=float, default=60, help="s for the others to end (60)")
    parser.add_argument("--program", type=Path, default=_MAIN, help="instead of main.py")
    parser.add_argument("arguments", nargs="*", help="of main.py, after --")
    options = parser.parse_args()
    for name, least in (("processes", 1), ("devices", 1), ("restarts", 0), ("grace", 0)):
        if (value := getattr(options, name)) < least:
            parser.error(f"--{name}={value}, expected {least} or more")
    return options


class _Job:
    """All processes, from their start to their end."""

    def __init__(self, options: argparse.Namespace, signals: list[int]):
        self._grace, self._signals, self._passed_on = options.grace, signals, len(signals)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._processes = [_start(options, i, port) for i in range(options.processes)]
        self._threads = [
            threading.Thread(target=_pass_on, args=(i, process.stderr))
            for i, process in enumerate(self._processes)
        ]
        for thread in self._threads:
            thread.start()

    def wait(self) -> int:
        """The exit code of the job, as a shell gives it: of the first that failed, or 0."""
        code, urge = 0, iter((signal.SIGTERM, signal.SIGKILL))
        deadline = float("inf")
        while running := self._running():
            for number in self._signals[self._passed_on :]:
                self._passed_on += 1
                self._send(number if self._passed_on < 3 else signal.SIGKILL)
            if not code and (code := self._failure()):
                deadline = time.monotonic() + self._grace
            if time.monotonic() > deadline and (louder := next(urge, None)):
                which = ", ".join(map(str, running))
                _say(f"Still running: {which}. Sending {louder.name}.")
                self._send(louder)
                deadline = time.monotonic() + self._grace
            time.sleep(0.02)
        code = code or self._failure()
        for thread in self._threads:
            thread.join()
        return code

    def _running(self) -> list[int]:
        return [i for i, process in enumerate(self._processes) if process.poll() is None]

    def _send(self, number: int) -> None:
        for process in self._processes:
            process.send_signal(number)  # does nothing to one that has ended

    def _failure(self) -> int:
        """The exit code of a process that has failed, which is reported; 0 if none has."""
        for index, process in enumerate(self._processes):
            code = process.poll() or 0
            if self._signals and code:
                return 128 + self._signals[0]  # as was asked
            if code < 0:
                _say(f"Process {index} was ended by {signal.Signals(-code).name}.")
                return 128 - code
            if code:
                _say(f"Process {index} ended with exit code {code}.")
                return code
        return 0


def _start(options: argparse.Namespace, index: int, port: int) -> subprocess.Popen:
    devices = options.devices
    environment = dict(os.environ)
    ids = range(index * devices, (index + 1) * devices)  # GPUs: each process has its own
    environment["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, ids))
    if devices > 1:  # and so many of one CPU
        flag = f"--xla_force_host_platform_device_count={devices}"
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flag}".strip()
    return subprocess.Popen(
        [
            *(sys.executable, str(options.program), *options.arguments),
            f"--coordinator=127.0.0.1:{port}",
            f"--num_processes={options.processes}",
            f"--process_id={index}",
        ],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # a Ctrl-C of the terminal comes from here, once
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _pass_on(index: int, lines: IO[str]) -> None:
    for line in lines:
        _say(f"[{index}] {line.rstrip()}")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
