"""Signals that ask a program to stop, at whatever moment they come.

The main thread may be within XLA for many seconds, where Python runs no signal handler. So a
thread receives each signal at once (signal.set_wakeup_fd). It prints a line; ends the process at
the second signal; and at the first, where the main thread has not left by itself in time.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, NoReturn

NUMBERS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
_GRACE_SECONDS = 3.0  # to close files, and to remove what is half written
_AGAIN = 130  # the exit code at the second signal


class Left(KeyboardInterrupt):
    """Raised in the main thread where a signal came and there is nothing to save."""

    def __init__(self, number: int):
        super().__init__()
        self.exit_code = 128 + number  # as shells have it


class _Listener:
    """How this program handles signals; one per process."""

    def __init__(self) -> None:
        self.listening = False
        self.said = threading.Event()  # the line about the first signal
        self.grace = 0.0  # 0: the main thread is importing, and would lose an exception
        self.left: Left | None = None  # raised by now
        self.saving: Callable[[], bool] | None = None  # whether there is something to save

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Within the main thread, between two of its instructions."""
        self.said.wait(1.0)
        if self.grace and not (self.saving and self.saving()):
            self.leave_by_exception(number)

    def leave_by_exception(self, number: int) -> NoReturn:
        self.left = Left(number)
        raise self.left

    def follow(self, wakeup: socket.socket) -> None:
        first, leave_at = 0, float("inf")
        while True:
            left = leave_at - time.monotonic()
            wakeup.settimeout(None if left == float("inf") else max(0.001, left))
            try:
                numbers = wakeup.recv(64)
            except TimeoutError:
                leave(128 + first)
            for number in numbers:
                if number not in NUMBERS:
                    continue
                if first:
                    _say("Left at once.")
                    leave(_AGAIN)
                first, name = number, signal.Signals(number).name
                if self.saving and self.saving():
                    _say(f"{name}: saving, then leaving. Once more leaves at once.")
                else:
                    _say(f"Stopped by {name}.")
                    leave_at = time.monotonic() + self.grace
                self.said.set()


_listener = _Listener()


def listen() -> None:
    """From now on the process leaves at a signal: at once, and after `unwind` by `Left`.

    For programs, from their main thread. A SIGHUP that the caller has turned off (nohup) stays so.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
    _listener.listening, _listener.socket = True, ours  # type: ignore[attr-defined]
    threading.Thread(target=_listener.follow, args=(theirs,), name="signals", daemon=True).start()
    sys.unraisablehook = partial(_not_lost, sys.unraisablehook)
    for number in NUMBERS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _listener.handle)


def _not_lost(hook: Callable[[Any], object], unraisable: Any) -> None:
    """A callback of JAX's, as of garbage collection, would drop `Left`."""
    if isinstance(unraisable.exc_value, Left):
        leave(unraisable.exc_value.exit_code)
    hook(unraisable)


def unwind() -> None:
    """The imports are done: from now on `Left` is raised, and has some time to get through."""
    _listener.grace = _GRACE_SECONDS


def until_left(program: Callable[[], None]) -> None:
    """Runs `program`. Once `Left` was raised in it, it ends in `Left`: an exception in the middle
    of whatever it was doing may come out as another error, as of a file that is not open yet."""
    try:
        program()
    except BaseException as error:
        if _listener.left and error is not _listener.left:
            raise _listener.left from error
        raise


def leave(code: int) -> None:
    """Ends the process here and now, without the end of the interpreter, in which threads of XLA
    may crash. What is written to the streams is passed on."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
            stream.flush()
    for handle in (1, 2):
        with contextlib.suppress(OSError):
            if os.isatty(handle):
                os.write(handle, b"\x1b[?25h")  # the cursor, which a progress bar hides
    os._exit(code)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        start = "\r\x1b[K" if os.isatty(2) else ""  # over a progress bar
        os.write(2, f"{start}{line}\n".encode())


class Stop:
    """Within it, a signal that comes while there is something to save is noted in `signal`.

    In a program that listens, every other one leaves as it does outside of it. In a notebook the
    first SIGINT or SIGTERM is noted in any case, and the second acts as if this were not here.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.unsaved = False  # set by the loop: steps are done that no checkpoint has

    def __enter__(self) -> "Stop":
        # Python lets the main thread alone handle signals; elsewhere there are none to note.
        main = threading.current_thread() is threading.main_thread()
        numbers: tuple[int, ...] = ()
        if main:
            numbers = NUMBERS if _listener.listening else (signal.SIGINT, signal.SIGTERM)
        self._before = {
            number: signal.signal(number, self._note)
            for number in numbers
            if number != getattr(signal, "SIGHUP", 0) or signal.getsignal(number) != signal.SIG_IGN
        }
        _listener.saving = lambda: self.unsaved
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if _listener.listening:
            _listener.said.wait(1.0)
        if _listener.listening and not self.unsaved and self.signal is None:
            _listener.leave_by_exception(number)
        self.signal = number
        if not _listener.listening:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *error: object) -> None:
        _listener.saving = None
        self._restore()
