"""Errors a user can mend. Everything else is a bug and keeps its traceback."""

import difflib
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path


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
    """The loss or the network is of no use any more; another start would come to the same step."""

    exit_code = 3
    everywhere = True


class Interrupted(UserError):
    """A signal, after the state was saved. Of the signal a line has been said already."""

    everywhere = True

    def __init__(self, number: int, step: int, folder: Path):
        super().__init__(
            f"Stopped by {signal.Signals(number).name}: step {step} is saved in {folder}. "
            "The same command goes on from there."
        )
        self.exit_code = 128 + number  # as shells have it


def reason(error: BaseException) -> str:
    """What an exception of a library or of the system says, as one line of at most 300 characters
    without a full stop."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = " ".join(str(text).split()).rstrip(".") or type(error).__name__
    return line if len(line) <= 300 else f"{line[:300]}..."


def unknown(kind: str, name: object, choices: Iterable[object]) -> UsageError:
    """The error for a name outside `choices`, with the nearest right one."""
    names = [str(choice) for choice in choices]
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UsageError(f"Unknown {kind} '{name}'.{hint} Choices: {', '.join(names)}.")


def exit_code(program: Callable[[], None], debug: bool = False) -> int:
    """Runs `program`: 0 at its end; else an error that a user can mend, or Ctrl-C, is a line on
    stderr and its exit code. With `debug`, the error keeps its traceback."""
    try:
        program()
    except UserError as error:
        if debug:
            raise
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:  # `signals.Left` was told of already
        if not hasattr(error, "exit_code"):
            print("Interrupted.", file=sys.stderr)
        return getattr(error, "exit_code", 130)
    return 0
