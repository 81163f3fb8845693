"""Errors that a user can fix. Everything else is a bug and keeps its traceback."""

import difflib
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

_CHOICES = 20  # that a message lists


class UserError(Exception):
    """One line: what was wrong, what was expected, what to do. `main.py` prints it and exits 1."""

    exit_code = 1
    everywhere = False  # whether every process of a run raises it, at the same step

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class UsageError(UserError):
    """A flag or config field that cannot work; nothing has been written. `main.py` exits 2."""

    exit_code = 2


class Diverged(UserError):
    """Training has diverged, or the network is dead; a restart would fail at the same step."""

    exit_code = 3
    everywhere = True


class Interrupted(UserError):
    """A signal came and the state is saved. A line about the signal itself was printed before."""

    everywhere = True

    def __init__(self, number: int, step: int, folder: Path):
        super().__init__(
            f"Stopped by {signal.Signals(number).name}: step {step} is saved in {folder}. "
            "The same command goes on from there."
        )
        self.exit_code = 128 + number  # as shells have it


def reason(error: BaseException) -> str:
    """The message of an exception, of a library or the system, as one line of at most 300
    characters without a full stop."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = " ".join(str(text).split()).rstrip(".") or type(error).__name__
    return line if len(line) <= 300 else f"{line[:300]}..."


def unknown(kind: str, name: object, choices: Iterable[object]) -> UsageError:
    """The error for a name outside `choices`, with the closest of them as a hint."""
    names = [str(choice) for choice in choices]
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    more = len(names) - _CHOICES
    listed = [*names[:_CHOICES], f"and {more} more"] if more > 0 else names
    return UsageError(f"Unknown {kind} '{name}'.{hint} Choices: {', '.join(listed)}.")


def exit_code(program: Callable[[], None], debug: bool = False) -> int:
    """Runs `program` and returns 0; after a UserError or Ctrl-C, prints a line to stderr and
    returns the exit code. With `debug`, a UserError is raised with its traceback instead."""
    try:
        program()
    except UserError as error:
        if debug:
            raise
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:  # `signals.Left` was reported before
        if not hasattr(error, "exit_code"):
            print("Interrupted.", file=sys.stderr)
        return getattr(error, "exit_code", 130)
    return 0
