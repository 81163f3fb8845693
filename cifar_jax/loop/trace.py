"""A trace of some training steps, by JAX's profiler."""

import math
from pathlib import Path

import jax
from ml_collections import ConfigDict

from cifar_jax import steps
from cifar_jax.errors import reason
from cifar_jax.telemetry.log import Log


class Trace:
    """Traces the steps of config.profile.steps, (first, end), for TensorBoard and Perfetto.

    Where that fails, as on a full disk, a line says so and training goes on.
    """

    def __init__(self, config: ConfigDict, workdir: Path, log: Log):
        bounds: tuple[int, int] = config.profile.steps if log.writes else (0, 0)
        self._first, self._end = bounds
        self._workdir, self._log, self._running = workdir, log, False
        self._folder = workdir / "tensorboard" / "train"

    def __enter__(self) -> "Trace":
        return self

    def next_due(self, number: int) -> float:
        """The next step after `number` with which it begins or before which it ends, else infinite:
        a call must not go beyond it."""
        return min((n for n in (self._first, self._end) if n > number), default=math.inf)

    def before(self, number: int) -> None:
        """A call that begins with step `number` is about to be made."""
        if not self._running and self._first <= number < self._end:
            try:
                jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
                self._running = True
            except Exception as error:
                self._give_up(error)

    def after(self, number: int, state: steps.TrainState) -> None:
        """All steps before `number` are dispatched, and end with `state`."""
        if self._running and number >= self._end:
            with self._log.paused():
                jax.block_until_ready(state)
                self._stop()

    def _stop(self) -> None:
        self._running, self._end = False, 0
        try:
            jax.profiler.stop_trace()
            newest = max((self._folder / "plugins" / "profile").iterdir())
        except Exception as error:
            self._give_up(error)
        else:
            self._log.line(f"The trace is in {newest}: tensorboard --logdir={self._workdir}")

    def _give_up(self, error: Exception) -> None:
        # Of any kind: XLA's profiler and JAX's export raise whatever their libraries do.
        self._end = 0
        self._log.line(
            f"The trace could not be written: {reason(error)}. Training goes on without."
        )

    def __exit__(self, *error: object) -> None:
        if self._running:
            self._stop()
