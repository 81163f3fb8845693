"""main.py, but one of its processes has a fault: FAULT, of process FAULTY, once if there is MARK.

add FLAG             one more flag
devices N            so many devices in place of one
kill in step N       SIGKILL before its part of step N, for which the others wait, and once the
                     last checkpoint is complete, which is written beside the steps
stop in step N       SIGSTOP there
kill in save N       SIGKILL when its part of checkpoint N is being written
slow end N           N seconds longer than usual for its log at the end
kill in seal N       SIGKILL when checkpoint N is written, and its manifest is not
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))


def end(number: signal.Signals) -> None:
    if mark := os.environ.get("MARK"):
        if Path(mark).exists():
            return
        Path(mark).touch()
    os.kill(os.getpid(), number)


def break_step(wanted: int, number: signal.Signals) -> None:
    from cifar_jax.loop.calls import Calls
    from cifar_jax.workdir import pytrees

    call, save = Calls.__call__, pytrees.Writer.save
    saved = []  # futures

    def save_and_remember(self, *rest):
        save(self, *rest)
        saved.append(self._pending)

    def faulty(self, state, step, *rest):
        if step == wanted:
            for checkpoint in saved:
                checkpoint.result()
            end(number)
        return call(self, state, step, *rest)

    pytrees.Writer.save = save_and_remember
    Calls.__call__ = faulty


def break_seal(wanted: int, written: bool) -> None:
    from cifar_jax.workdir import pytrees

    finish = pytrees.Writer._finish

    def faulty(self, step, write, *rest):
        if step == wanted:
            if written:
                write()
            end(signal.SIGKILL)
        return finish(self, step, write, *rest)

    pytrees.Writer._finish = faulty


def slow_end(seconds: int) -> None:
    from cifar_jax.telemetry import log

    close = log.Log.close

    def slow(self):
        time.sleep(seconds)
        close(self)

    log.Log.close = slow


kind, _, value = os.environ["FAULT"].rpartition(" ")
if f"--process_id={os.environ['FAULTY']}" in sys.argv:
    if kind == "add":
        sys.argv.append(value)
    elif kind == "devices":
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={value}"

import main  # noqa: E402  (with its flags)

if __name__ == "__main__":
    if f"--process_id={os.environ['FAULTY']}" in sys.argv:
        from cifar_jax.devices import runtime

        runtime.start()
        from cifar_jax.workdir import pytrees

        pytrees._SHARED_SECONDS = 5.0
        if kind.endswith("in step"):
            break_step(int(value), signal.SIGSTOP if "stop" in kind else signal.SIGKILL)
        elif kind == "slow end":
            slow_end(int(value))
        elif kind.endswith(("in save", "in seal")):
            break_seal(int(value), written="seal" in kind)
    sys.exit(main.main())
