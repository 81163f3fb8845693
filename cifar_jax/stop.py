"""SIGINT and SIGTERM while training: noted, and acted on at the end of a step."""

import signal
import threading
from pathlib import Path
from types import FrameType

from cifar_jax.errors import UserError


class Interrupted(UserError):
    """SIGINT or SIGTERM, after the state was saved."""

    everywhere = True

    def __init__(self, number: int, step: int, folder: Path):
        name = signal.Signals(number).name
        super().__init__(
            f"Stopped by {name}: step {step} is saved in {folder}. "
            "The same command goes on from there."
        )
        self.exit_code = 128 + number  # as shells have it


class Stop:
    """Notes the first SIGINT or SIGTERM in `signal`; the second acts as if this were not here."""

    def __init__(self):
        self.signal: int | None = None

    def __enter__(self) -> "Stop":
        # Python lets the main thread alone handle signals; elsewhere there are none to note.
        main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *error: object) -> None:
        self._restore()
