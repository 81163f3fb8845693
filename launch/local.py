"""Several processes of main.py on this machine, as one run: to try it out, and for the tests.

    python launch/local.py --processes=2 -- --config=configs/quickstart.py --workdir=runs/two

What stands after `--` goes to main.py. When a process is lost, all are started again, up to
--restarts times, and go on from the last checkpoint.
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

PROGRAM = Path(__file__).parent.parent / "main.py"
_FINAL = (0, 2, 130, 143)  # done, a usage error, saved after SIGINT or SIGTERM: nothing to mend
_PR_SET_PDEATHSIG = 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=_positive, required=True)
    parser.add_argument("--devices", type=_positive, default=1, help="of each process")
    parser.add_argument("--restarts", type=int, default=0, help="after a process was lost")
    parser.add_argument("--grace", type=float, default=60, help="seconds for the others to end")
    parser.add_argument("arguments", nargs="*", help="of main.py, after --")
    options = parser.parse_args()
    for restart in range(options.restarts + 1):
        if restart:
            print(
                f"Starting all {options.processes} processes again "
                f"(restart {restart} of {options.restarts}).",
                file=sys.stderr,
            )
        code = _Job(options).wait()
        if code in _FINAL:
            break
    return code


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("expected 1 or more")
    return number


class _Job:
    """All processes, from their start to their end."""

    def __init__(self, options: argparse.Namespace):
        self._grace, self._signals = options.grace, 0
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._processes = [self._start(options, i, port) for i in range(options.processes)]
        self._threads = [
            threading.Thread(target=_pass_on, args=(i, process.stderr))
            for i, process in enumerate(self._processes)
        ]
        for thread in self._threads:
            thread.start()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._forward)

    def _start(self, options: argparse.Namespace, index: int, port: int) -> subprocess.Popen:
        devices = options.devices
        ids = range(index * devices, (index + 1) * devices)  # GPUs: each process has its own
        flags = f"--xla_force_host_platform_device_count={devices}"  # and so many of one CPU
        command = [
            *(sys.executable, str(PROGRAM), *options.arguments),
            f"--coordinator=127.0.0.1:{port}",
            f"--num_processes={options.processes}",
            f"--process_id={index}",
        ]
        return subprocess.Popen(
            command,
            env={
                **os.environ,
                "JAX_LOCAL_DEVICE_IDS": ",".join(map(str, ids)),
                "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
            },
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C comes from here, once
            preexec_fn=_die_with_parent,
        )

    def _forward(self, number: int, frame: object) -> None:
        self._signals += 1
        for process in self._processes:
            process.send_signal(number if self._signals < 3 else signal.SIGKILL)

    def wait(self) -> int:
        """The exit code of the job, as of a shell: of the first process that failed, or 0."""
        first = 0
        end = float("inf")
        while any(process.poll() is None for process in self._processes):
            if not first and (first := self._failed()):
                end = time.monotonic() + self._grace
            if time.monotonic() > end:
                for process in self._processes:
                    process.kill()
            time.sleep(0.05)
        first = first or self._failed()
        for thread in self._threads:
            thread.join()
        return first

    def _failed(self) -> int:
        for index, process in enumerate(self._processes):
            code = process.poll()
            if code and code < 0:
                name = signal.Signals(-code).name
                print(f"Process {index} was ended by {name}.", file=sys.stderr, flush=True)
                return 128 - code
            if code:
                print(f"Process {index} ended with code {code}.", file=sys.stderr, flush=True)
                return code
        return 0


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _pass_on(index: int, lines: IO[str]) -> None:
    for line in lines:
        print(f"[{index}] {line}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
