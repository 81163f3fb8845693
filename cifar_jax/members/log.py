"""What several networks that train together report: a `Log` for each, and one console."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cifar_jax.errors import Diverged
from cifar_jax.telemetry import display
from cifar_jax.telemetry.log import Log


class Logs:
    """Does with metrics [steps, N] what a `Log` does with [steps]. The console has their means, and
    images/s of all."""

    def __init__(
        self,
        logs: Sequence[Log],
        config: ConfigDict,
        workdir: Path,
        living: Callable[[], Sequence[int]],
        lose: Callable[[int, Diverged], None],
        progress: display.Display,
    ):
        """`living` gives the members that have not diverged, and `lose` takes one that does."""
        self._logs, self.workdir, self._display = logs, workdir, progress
        self._living, self._lose = living, lose
        self._images, self._every = config.batch_size * len(logs), config.log_every_steps
        first = logs[0]
        self.writes, self.line = first.writes, progress.line
        self.detail, self.next_due = first.detail, first.next_due
        self.scalars_within = first.scalars_within
        self._unread: Any = None
        self._lines = 0, 0.0  # steps and seconds since the last line

    def __enter__(self) -> "Logs":
        self._display.__enter__()
        self._time = time.monotonic()
        for log in self._logs:
            log.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._display.__exit__()

    @property
    def healthy(self) -> list[bool]:
        return [log.healthy for log in self._logs]

    @healthy.setter
    def healthy(self, value: bool) -> None:
        for log in self._logs:
            log.healthy = value

    def note(self, number: int, *found: Any) -> None:
        self.flush()
        self._unread = number, found

    def flush(self) -> None:
        """Raises Diverged where no network is left."""
        if self._unread is None:
            return
        (number, unread), self._unread = self._unread, None
        metrics, aux, scalars = jax.tree.map(np.asarray, jax.device_get(unread))
        now = time.monotonic()
        seconds, self._time = now - self._time, now
        for k in list(self._living()):
            own = _of_member(metrics, k, 1), _of_member(aux, k, 0), _of_member(scalars, k, 1)
            self._logs[k].note(number, *own)
            try:
                self._logs[k].flush()
            except Diverged as error:
                self._lose(k, error)
        self._show(number, metrics, seconds)

    def _show(self, number: int, metrics: dict[str, np.ndarray], seconds: float) -> None:
        losses = metrics["loss"][:, list(self._living())]
        rate = metrics["learning_rate"].flat[0]
        for i, of_step in enumerate(losses):
            mean = float(of_step.mean())
            self._lines = self._lines[0] + 1, self._lines[1] + seconds / len(losses)
            self._display.advance(number + i + 1, loss=f"{mean:.2f}", rate=f"{rate:.2g}")
            if (number + i) % self._every == 0:
                each = self._lines[1] / self._lines[0]
                self.line(display.train_line(number + i, mean, self._images, each))
                self._display.note(**{"images/s": f"{self._images / each:,.0f}"})
                self._lines = 0, 0.0

    def saved(self, step: int, precision: float | None) -> None:
        self._logs[0].saved(step, precision)
        self._display.note(checkpoint=str(step))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        start = time.monotonic()
        with contextlib.ExitStack() as stack:
            for log in self._logs:
                stack.enter_context(log.paused())
            yield
        self._time += time.monotonic() - start

    def fed(self, waited: float, occupancy: float) -> None:
        for log in self._logs:
            log.fed(waited, occupancy)

    def close(self) -> None:
        for log in self._logs:
            log.close()


def _of_member(tree: Any, number: int, axis: int) -> Any:
    return jax.tree.map(lambda leaf: np.take(leaf, number, axis), tree)
