"""What a run goes on from, and when and where it is saved."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from cifar_jax import checkpoint, optim, parallel, steps
from cifar_jax.errors import UserError

SAVE = 1  # as a wish of a process; a greater one is the number of a signal

AfterCheckpoint = Callable[[int], float | None]


class Diverged(UserError):
    """The loss or the parameters are not finite; another start would come to the same step."""

    exit_code = 3
    everywhere = True


class Saver:
    """When and where the state is saved."""

    def __init__(self, config: ConfigDict, folder: Path, tell: AfterCheckpoint | None):
        """Raises UserError where another process writes to `folder`, or nothing can be written."""
        self.folder, self._checkpoint, self._tell = folder, config.checkpoint, tell
        self._newest: int | None = None  # the last good checkpoint
        self._time = time.monotonic()  # of it
        self._writer = checkpoint.Writer(
            folder, self._checkpoint.keep, self._checkpoint.keep_every_steps
        )
        self._all_finite = jax.jit(optim.all_finite)

    def restore(self, state: steps.TrainState) -> steps.TrainState:
        """The state that the run goes on from: `state`, or that of the last good checkpoint."""
        seen = checkpoint.newest(self.folder, report=print)
        newest = int(parallel.gather(-1 if seen is None else seen)[0])  # which goes for all
        if newest >= 0:
            state = checkpoint.restore(self.folder, newest, state)
            print(f"Resuming from step {newest} in {self.folder}")
            self._newest = newest
        self._writer.go_on_from(self._newest)
        return state

    def due(self, step: int) -> bool:
        every = self._checkpoint.every_steps
        return bool(every and step % every == 0)

    def overdue(self) -> int:
        """SAVE where it is time for a checkpoint by the clock, else 0."""
        minutes = self._checkpoint.every_minutes
        return SAVE if minutes and time.monotonic() - self._time >= 60 * minutes else 0

    def shortest(self) -> float:
        """Steps from one checkpoint to the next; infinite where they come by the clock alone."""
        return self._checkpoint.every_steps or math.inf

    def next_due(self, step: int) -> float:
        """The next step after `step` to be saved by its number; infinite where none will be."""
        every = self._checkpoint.every_steps
        return (step // every + 1) * every if every else math.inf

    def save(self, step: int, state: steps.TrainState) -> float | None:
        # The loss is of the parameters before the update, and does not show yet what that did.
        if not self._all_finite(state.params):
            raise self.diverged(f"The parameters are no longer finite after step {step - 1}")
        self._writer.save(step, state)
        self._newest, self._time = step, time.monotonic()
        return self.tell()

    def tell(self) -> float | None:
        """Calls `after_checkpoint`, once the last save is complete, and returns its precision."""
        if self._tell is None or self._newest is None:
            return None
        self.wait()
        return self._tell(self._newest)

    def diverged(self, what: str) -> "Diverged":
        newest = self._newest
        good = "does not exist yet" if newest is None else f"is {newest}, in {self.folder}"
        return Diverged(
            f"{what}. The last good checkpoint {good}. Try a lower --config.optim.learning_rate, "
            "--config.optim.warmup_epochs=1, or --config.dtype=float32."
        )

    def finish(self, step: int) -> None:
        """Says that the checkpoint of `step` is the last, once it is complete."""
        self.wait()
        checkpoint.mark_finished(self.folder, step)

    def wait(self) -> None:
        self._writer.wait()

    def close(self) -> None:
        self._writer.close()
