"""The training loop."""

import math
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from ml_collections import ConfigDict

from cifar_jax import checkpoint, optim, parallel, steps, summaries
from cifar_jax import config as config_lib
from cifar_jax.data import batches, sources
from cifar_jax.errors import UsageError, UserError


def train(
    config: ConfigDict, workdir: Path, after_checkpoint: Callable[[int], object] | None = None
) -> steps.TrainState:
    """Trains to the end of the run in `workdir`, from its last good checkpoint if there is one.

    `after_checkpoint` is called with the step of each checkpoint once it is complete. Raises
    UserError for what a user can mend, Interrupted after SIGINT or SIGTERM.
    """
    changes = config_lib.check_same_run(config, workdir)
    data = sources.load(config.data, "train")
    if config.augment.crop_size > min(data.images.shape[1:3]):
        raise UsageError(
            f"config.augment.crop_size = {config.augment.crop_size} is larger than the images, "
            f"{data.images.shape[1]}x{data.images.shape[2]}."
        )
    num_steps = config_lib.num_steps(config, len(data))
    schedule = optim.make_schedule(config.optim, len(data) / config.batch_size, num_steps)
    model = steps.make_model(config, len(data.class_names))
    optimizer = steps.make_optimizer(config, schedule)
    state = steps.init_state(config, model, optimizer)

    config_lib.store(config, workdir)
    for change in changes:
        print(f"Resuming with another config: {change}")
    run = _Run(config, workdir, data, num_steps, after_checkpoint)
    step = partial(
        steps.train_step, config=config, model=model, optimizer=optimizer, schedule=schedule
    )
    return run(state, step)


class Interrupted(UserError):
    """SIGINT or SIGTERM, after the state was saved."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + number  # as shells have it


class _Run:
    """One run of the loop: where it writes, and what it has to remember between steps."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        data: sources.Split,
        num_steps: int,
        after_checkpoint: Callable[[int], object] | None,
    ):
        self.config, self.data, self.num_steps = config, data, num_steps
        self.after_checkpoint = after_checkpoint
        self.folder = workdir / "checkpoints"
        self.writer = checkpoint.Writer(
            self.folder, config.checkpoint.keep, config.checkpoint.keep_every_steps
        )
        self.scalars = summaries.Scalars(workdir, "train")
        self.saved: int | None = None  # the step of the last good checkpoint
        self.saved_at = time.monotonic()
        self.all_finite = jax.jit(optim.all_finite)

    def __call__(self, state: steps.TrainState, step: Callable) -> steps.TrainState:
        mesh = parallel.make_mesh(self.config.num_devices)
        state = parallel.replicate(self._resume(state), mesh)
        first = int(state.step)
        try:
            with summaries.Display(self.num_steps, first) as self.display, _Stop() as stop:
                if first < self.num_steps:
                    checkpoint.mark_finished(self.folder, None)
                    state = self._loop(state, step, mesh, stop)
                else:
                    self.display.line(f"Training has already ended at step {first}.")
                    self._after_checkpoint()
            checkpoint.mark_finished(self.folder, int(state.step))
            return state
        finally:
            self.writer.close()
            self.scalars.close()

    def _resume(self, state: steps.TrainState) -> steps.TrainState:
        self.saved = checkpoint.newest(self.folder, report=print)
        if self.saved is None:
            return state
        print(f"Resuming from step {self.saved} in {self.folder}")
        return checkpoint.restore(self.folder, self.saved, state)

    def _loop(self, state, step, mesh, stop) -> steps.TrainState:
        config = self.config
        images, labels = parallel.replicate((self.data.images, self.data.labels), mesh)

        def gather_and_step(state, index, images, labels):
            return step(state, {"image": images[index], "label": labels[index]})

        compiled = parallel.data_parallel(gather_and_step, mesh, sharded=(1,), donate=True)
        first = int(state.step)
        indices = partial(
            batches.train_indices,
            config.seed,
            batch_size=config.batch_size,
            num_images=len(self.data),
        )
        self.display.line(f"Compiling the training step for {mesh.size} device(s).")
        compiled = compiled.lower(state, indices(first), images, labels).compile()

        self.first, self.clock = first, _Clock(first)
        unread = None  # the metrics of the step before: read once the next one is on its way
        for number in range(first, self.num_steps):
            state, metrics = compiled(state, indices(number), images, labels)
            if unread is not None:
                self._read(number - 1, unread)
            unread = metrics
            last = number + 1 == self.num_steps
            if last or stop.signal or self._due(number + 1):
                self._read(number, unread)
                unread = None
                self._save(state, number + 1)
            if stop.signal and not last:
                raise Interrupted(
                    stop.signal,
                    f"Stopped by {signal.Signals(stop.signal).name}: step {number + 1} is saved in "
                    f"{self.folder}. The same command goes on from there.",
                )
        return state

    def _read(self, number: int, metrics: Any) -> None:
        """Checks the metrics of a step and, every log_every_steps, tells them."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["loss"]):
            raise self._diverged(
                f"The loss is {values['loss']} at step {number}, after steps {self.first} to "
                f"{number - 1} with a finite one"
            )
        self.display.advance(number + 1, f"loss {values['loss']:.2f}")
        if number % self.config.log_every_steps == 0:
            seconds = self.clock.seconds_per_step(number)
            batch_size = self.config.batch_size
            self.display.line(summaries.train_line(number, values["loss"], batch_size, seconds))
            values["examples_per_second"] = batch_size / seconds
            self.scalars.write(number, values)

    def _due(self, done: int) -> bool:
        every, minutes = self.config.checkpoint.every_steps, self.config.checkpoint.every_minutes
        by_steps = every and done % every == 0
        by_time = minutes and time.monotonic() - self.saved_at >= 60 * minutes
        return bool(by_steps or by_time)

    def _save(self, state: steps.TrainState, done: int) -> None:
        paused = time.monotonic()
        if not self.all_finite(state.params):
            raise self._diverged(f"The parameters are no longer finite after step {done - 1}")
        self.writer.save(done, state)
        self.saved, self.saved_at = done, time.monotonic()
        self._after_checkpoint()
        self.clock.pause(time.monotonic() - paused)

    def _after_checkpoint(self) -> None:
        if self.after_checkpoint and self.saved is not None:
            self.writer.wait()
            self.after_checkpoint(self.saved)

    def _diverged(self, what: str) -> UserError:
        good = f"is {self.saved}, in {self.folder}" if self.saved else "does not exist yet"
        return UserError(
            f"{what}. The last good checkpoint {good}. Try a lower --config.optim.learning_rate, "
            "--config.optim.warmup_epochs=1, or --config.dtype=float32."
        )


class _Clock:
    """Seconds per step between the lines of the log, without compilation, saves and evaluation."""

    def __init__(self, first: int):
        self._step, self._time = first, time.monotonic()

    def pause(self, seconds: float) -> None:
        self._time += seconds

    def seconds_per_step(self, number: int) -> float:
        """Since the last call; `number` is the step that has just ended."""
        now = time.monotonic()
        seconds = (now - self._time) / (number + 1 - self._step)
        self._step, self._time = number + 1, now
        return max(seconds, 1e-9)


class _Stop:
    """Notes the first SIGINT or SIGTERM in `signal`; the second acts as if this were not here."""

    def __init__(self):
        self.signal: int | None = None

    def __enter__(self) -> "_Stop":
        self._before = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *error: object) -> None:
        self._restore()
