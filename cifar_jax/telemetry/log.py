"""What training reports: console, TensorBoard and metrics.jsonl, each at its own interval."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu.parameter_overview import get_parameter_overview
from ml_collections import ConfigDict

from cifar_jax import config as config_lib
from cifar_jax import steps
from cifar_jax.models import overview
from cifar_jax.optim import layers, paths
from cifar_jax.telemetry import display, pictures, summaries
from cifar_jax.workdir import records

_FINAL = (("eval", "precision_at_1"), ("eval", "cross_entropy"), ("train", "loss_average"))


class Log:
    """Reads each call's metrics once the next call is dispatched, and reports them when due."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        diverged: Callable[[str], Exception],
        progress: display.Display,
        first: int,
        bound: float = math.inf,
    ):
        """`first` is the step with which the run begins or resumes; `diverged` makes the exception
        for a run that has diverged, as where its average loss is above `bound`."""
        self._bound = bound
        self._dead_since: dict[str, int] = {}  # layers without a gradient
        self._warned_of: set[str] = set()
        self._layers: list[str] = []
        self.healthy = True  # since this was last set, and as far as metrics were read
        self._config, self._diverged, self._display, self._first = config, diverged, progress, first
        self._log_every = config.log_every_steps
        self.workdir = workdir
        self._averages = {name: summaries.Average() for name in ("loss", "cross_entropy", "l2")}
        self._continue_averages(workdir)
        self._writer = summaries.Writer(workdir, "train", resumed_at=first)
        self.writes = self._writer.writes
        self._unread: tuple[int, steps.Metrics, dict[str, Any], steps.Metrics] | None = None
        self._line_pace, self._scalar_pace = _Pace(), _Pace()
        self._occupancy = 1.0
        self.line = progress.line

    def _continue_averages(self, workdir: Path) -> None:
        known = records.read(workdir / records.FILE) if self._first else []
        before = [r for r in known if r["kind"] == "train" and r["step"] < self._first]
        for name, average in self._averages.items():
            if before and f"{name}_average" in before[-1]:
                average.restart(before[-1][f"{name}_average"])

    def describe(
        self, params: Any, rows: Sequence[overview.LayerRow], class_names: Sequence[str]
    ) -> None:
        """Reports what is about to be trained: parameters, layers, config."""
        self._class_names, self._layers = class_names, layers.names(params)
        table = overview.markdown(rows)
        self.line(get_parameter_overview(params, include_stats=False))
        self.line(table)
        self._writer.text("model", table)
        self._writer.hparams(config_lib.flat(self._config), _FINAL)

    def __enter__(self) -> "Log":
        """Starts the clock."""
        self._display.__enter__()
        self._time = time.monotonic()  # up to which time is accounted for
        return self

    def __exit__(self, *error: object) -> None:
        self._display.__exit__()

    def detail(self, number: int) -> steps.Detail:
        """The auxiliary outputs that are due at step `number`."""
        cadence = self._config.summaries
        if _due(cadence.images, number) or _due(cadence.histograms, number):
            return steps.Detail.TENSORS
        return steps.Detail.SCALARS if _due(cadence.scalars, number) else steps.Detail.NONE

    def scalars_within(self, number: int, count: int) -> int:
        """How far apart the steps with scalars are in a call of `count` steps from `number` on; 0
        where none but the first can have any."""
        every = self._config.summaries.scalars
        return every if every and number % every == count % every == 0 and count > every else 0

    def next_due(self, number: int, count: int = 1) -> float:
        """The next step after `number` with which a call has to begin for its summaries, if calls
        have `count` steps; infinite where none has."""
        cadence = self._config.summaries
        first_step = [cadence.images, cadence.histograms]  # of a call
        if not self.scalars_within(number, count):
            first_step.append(cadence.scalars)
        steps_on = [(number // every + 1) * every for every in first_step if every]
        return min(steps_on, default=math.inf)

    def note(
        self,
        number: int,
        metrics: steps.Metrics,
        aux: dict[str, Any],
        scalars: steps.Metrics | None = None,
    ) -> None:
        """Takes what a call that was dispatched gives (`calls.compile_steps`), which begins with
        step `number`; reads that of the call before."""
        self.flush()
        self._unread = number, metrics, aux, scalars or {}

    def flush(self) -> None:
        """Waits for the noted call. Raises UserError where the run has diverged."""
        if self._unread is None:
            return
        (number, *unread), self._unread = self._unread, None
        metrics, aux, scalars = jax.device_get(unread)
        count, now = len(metrics["loss"]), time.monotonic()
        seconds, self._time = (now - self._time) / count, now
        for i in range(count):
            dead = metrics["dead"][i]
            values = {name: float(v[i]) for name, v in metrics.items() if name != "dead"}
            self._check(number + i, values["loss"], dead)
            if i and _due(self._config.summaries.scalars, number + i):
                place = i // self._config.summaries.scalars - 1
                aux = {"scalars": {name: v[place] for name, v in scalars.items()}}
            self._read(number + i, values, seconds, aux)

    def _read(
        self, number: int, values: dict[str, float], seconds: float, aux: dict[str, Any]
    ) -> None:
        for name, average in self._averages.items():
            values[f"{name}_average"] = average.update(values[name])
        self._line_pace.add(seconds)
        self._scalar_pace.add(seconds)
        self._show(number, values)
        if _due(self._config.summaries.scalars, number):
            self._write_scalars(number, values, aux)
        if _due(self._config.summaries.histograms, number):
            self._write_histograms(number, aux)
        if _due(self._config.summaries.images, number):
            self._write_images(number, aux)

    def _check(self, number: int, loss: float, dead: np.ndarray) -> None:
        """Where a run cannot recover, raises what `diverged` makes, or, where it is to continue,
        prints that once."""
        if not math.isfinite(loss):
            before = f"; it was finite in the steps {self._first} to {number - 1}"
            self._found(
                "loss",
                f"The loss is {loss} at step {number}"
                + (before if number > self._first else ", the first one"),
            )
            return
        average = self._averages["loss"].next(loss)
        if average > self._bound:
            self._found(
                "loss",
                f"The average loss is {average:.3g} at step {number}, more than "
                f"{self._bound:.3g}, which is config.divergence.factor times that of a new network",
            )
        if loss > self._bound:
            self.healthy = False
        # Where no layer has a gradient, the loss is as low as it can be.
        names = [name for name, d in zip(self._layers, dead, strict=True) if d and not dead.all()]
        self._dead_since = {name: self._dead_since.get(name, number) for name in names}
        self.healthy = self.healthy and not names
        long = [n for n, at in self._dead_since.items() if number - at >= self._log_every - 1]
        if long:
            self._found(
                "dead",
                f"No gradient reaches {' and '.join(long)} in the steps "
                f"{self._dead_since[long[0]]} to {number}: all their activations, or those behind "
                f"them, are 0 (sparsity 1), with a loss of {loss:.3g}",
            )

    def _found(self, kind: str, what: str) -> None:
        self.healthy = False
        if self._config.divergence.action == "stop":
            raise self._diverged(what)
        if kind not in self._warned_of:
            self.line(f"{what}. Training goes on, as config.divergence.action says.")
        self._warned_of.add(kind)

    def _show(self, number: int, values: dict[str, float]) -> None:
        loss, average = values["loss"], values["loss_average"]
        self._display.advance(
            number + 1, loss=f"{loss:.2f} ({average:.2f})", rate=f"{values['learning_rate']:.2g}"
        )
        if number % self._config.log_every_steps == 0:
            batch_size, (seconds, _) = self._config.batch_size, self._line_pace.take()
            self.line(display.train_line(number, loss, batch_size, seconds))
            self._display.note(**{"images/s": f"{batch_size / seconds:,.0f}"})

    def _write_scalars(self, number: int, values: dict[str, float], aux: dict[str, Any]) -> None:
        seconds, waiting = self._scalar_pace.take()
        speed = {
            "examples_per_second": self._config.batch_size / seconds,
            "seconds_per_batch": seconds,
            "data_wait": waiting,
            "data_fill": self._occupancy,
        }
        more = {name: float(value) for name, value in aux["scalars"].items()}
        self._writer.scalars(number, {**values, **speed, **more})

    def _write_histograms(self, number: int, aux: dict[str, Any]) -> None:
        for tree in ("params", "gradients"):
            for name, value in paths.flatten(aux[tree]).items():
                self._writer.histogram(number, f"{tree}/{name}", value)
        for layer, value in aux["activations"].items():
            self._writer.histogram(number, f"activations/{layer}", value)

    def _write_images(self, number: int, aux: dict[str, Any]) -> None:
        captions = [self._class_names[label] for label in aux["labels"]]
        images = aux["images"]
        self._writer.image(
            number, "inputs", lambda: pictures.grid(pictures.visible(images), captions)
        )
        first = pictures.colour_kernel(aux["params"])
        if first is not None:
            self._writer.image(number, "filters", lambda: pictures.filters(first))

    def saved(self, step: int, precision: float | None) -> None:
        self._display.note(checkpoint=str(step))
        if precision is not None:
            self._display.note(**{"precision @ 1": f"{precision:.3f}"})

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps the time within it (compiling, saving, evaluating) out of the seconds per batch."""
        start = time.monotonic()
        yield
        self._time += time.monotonic() - start

    def fed(self, waited: float, occupancy: float) -> None:
        """Seconds that a call waited for its inputs; and the prefetch occupancy, 0 to 1."""
        self._scalar_pace.wait(waited)
        self._occupancy = occupancy

    def close(self) -> None:
        self._writer.close()


def _due(every: int, number: int) -> bool:
    return every > 0 and number % every == 0


class _Pace:
    """The mean seconds per step since `take` was last called."""

    def __init__(self):
        self._reset()

    def _reset(self) -> None:
        self._seconds, self._waiting, self._steps = 0.0, 0.0, 0

    def add(self, seconds: float) -> None:
        self._seconds, self._steps = self._seconds + seconds, self._steps + 1

    def wait(self, seconds: float) -> None:
        self._waiting += seconds

    def take(self) -> tuple[float, float]:
        """Seconds per step, and the fraction of them spent waiting for data."""
        seconds = max(self._seconds, 1e-9)
        result = seconds / self._steps, min(1.0, self._waiting / seconds)
        self._reset()
        return result
