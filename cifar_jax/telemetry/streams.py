"""stdin, stdout and stderr of a run that must not end because nobody reads what it prints. Imports
nothing heavy, and never JAX."""

import contextlib
import io
import os
import sys
from typing import Any, TextIO


def protect() -> None:
    """Makes printing safe: a closed pipe, a full disk or a terminal that is gone costs output, and
    a character that the terminal does not know is escaped. No later write to stdout or stderr
    raises OSError or UnicodeEncodeError.

    Call it first: a file opened before may have become descriptor 1, where that was closed.
    """
    for fd in (0, 1, 2):
        _open_if_closed(fd)
    sys.stdout, sys.stderr = _protected(sys.stdout, 1), _protected(sys.stderr, 2)
    _drop_closed_loops()


def _open_if_closed(fd: int) -> None:
    try:
        os.fstat(fd)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, as a rule `fd`
        if null != fd:
            os.dup2(null, fd)
            os.close(null)
        os.set_inheritable(fd, True)  # for the programs that we start


class _Lenient(io.FileIO):
    """A file whose writes always succeed; what the system does not take is lost."""

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        with contextlib.suppress(OSError):
            # In a loop, as `python -u` has no buffer above this to send the rest. None: the
            # descriptor does not block, and is full.
            while left and (written := super().write(left)):
                left = left[written:]
        return size


def _protected(stream: TextIO | None, fd: int) -> TextIO:
    """A stream like `stream` over the same descriptor; another one, as of a test, stays."""
    if stream is not None:
        try:
            if stream.fileno() != fd:
                return stream
        except (OSError, ValueError, AttributeError):
            return stream
        with contextlib.suppress(OSError):
            stream.flush()
    raw = _Lenient(fd, "wb", closefd=False)
    unbuffered = getattr(stream, "write_through", False)
    file: Any = raw if unbuffered else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        file,
        encoding=getattr(stream, "encoding", None),
        errors="backslashreplace",
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=unbuffered,
    )


def _drop_closed_loops() -> None:
    """After a save that failed, tensorstore's threads report to an event loop that Orbax has closed
    by then. Python prints a bare traceback for each; the failure itself is raised elsewhere."""
    before = sys.unraisablehook

    def hook(found: Any) -> None:
        of_a_callback = found.object is None and isinstance(found.exc_value, RuntimeError)
        if not (of_a_callback and str(found.exc_value) == "Event loop is closed"):
            before(found)

    sys.unraisablehook = hook
