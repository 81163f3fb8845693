"""The training loop."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType

import jax
from clu.parameter_overview import get_parameter_overview
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cifar_jax import checkpoint, optim, parallel, steps, summaries
from cifar_jax import config as config_lib
from cifar_jax.data import batches, sources
from cifar_jax.errors import UsageError, UserError

AfterCheckpoint = Callable[[int], object]


def train(
    config: ConfigDict, workdir: Path, after_checkpoint: AfterCheckpoint | None = None
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
    step = partial(
        steps.train_step, config=config, model=model, optimizer=optimizer, schedule=schedule
    )

    folder = workdir / "checkpoints"
    newest = checkpoint.newest(folder, report=print)
    if newest is not None:
        state = checkpoint.restore(folder, newest, state)
        print(f"Resuming from step {newest} in {folder}")
    config_lib.store(config, workdir)  # from here on, and no earlier, something is written
    for change in changes:
        print(f"With another config: {change}")

    with (
        contextlib.closing(_Saver(config, folder, newest, after_checkpoint)) as saver,
        contextlib.closing(_Log(config, workdir, saver)) as log,
    ):
        if int(state.step) < num_steps:
            checkpoint.mark_finished(folder, None)
            state = _loop(config, data, state, step, num_steps, log, saver)
            saver.wait()
            checkpoint.mark_finished(folder, int(state.step))
        else:
            print(f"Training has already ended at step {state.step}.")
            saver.tell()
    return state


def _loop(
    config: ConfigDict,
    data: sources.Split,
    state: steps.TrainState,
    step: Callable,
    num_steps: int,
    log: "_Log",
    saver: "_Saver",
) -> steps.TrainState:
    mesh = parallel.make_mesh(config.num_devices)
    state, images, labels = parallel.replicate((state, data.images, data.labels), mesh)
    first = int(state.step)

    per_call = config.steps_per_call or parallel.steps_per_call(mesh)
    compiled: dict[int, jax.stages.Compiled] = {}

    def call(state, number: int, count: int):
        index = batches.train_indices(config.seed, number, count, config.batch_size, len(data))
        if count not in compiled:
            with log.paused():
                compiled[count] = compile_step(step, mesh, state, index, images, labels)
        return compiled[count](state, index, images, labels)

    with summaries.Display(num_steps, first) as display, _Stop() as stop:
        display.line(get_parameter_overview(state.params, include_stats=False))
        if mesh.size < config.num_devices:
            display.line(f"{config.num_devices} devices were asked for; there are {mesh.size}.")
        display.line(f"Compiling the training step for {mesh.size} device(s).")
        log.start(display, first)
        number = first
        while number < num_steps:
            # Two programs serve a whole run: one for full calls, one for what is left over.
            room = min(num_steps, saver.next_due(number)) - number
            count = per_call if per_call <= room else 1
            state, metrics = call(state, number, count)
            log.note(number, metrics)
            number += count
            last, stopped = number == num_steps, stop.signal
            if last or stopped or saver.due(number):
                log.flush()
                with log.paused():
                    saver.save(number, state)
            if stopped and not last:
                saver.wait()
                raise Interrupted(stopped, number, saver.folder)
    return state


def compile_step(step: Callable, mesh: Mesh, *example: object) -> jax.stages.Compiled:
    """Several steps with their gathers in one program; the state's memory is reused.

    It takes (state, indices [steps, global batch], images, labels) as `example` has them, and gives
    the new state and the metrics of every step, [steps] each.
    """

    def run(state, indices, images, labels):
        def one(state, index):
            return step(state, {"image": images[index], "label": labels[index]})

        if len(indices) > 1:
            return lax.scan(one, state, indices)
        state, metrics = one(state, indices[0])  # where a loop would hinder XLA: on CPUs
        return state, jax.tree.map(lambda value: value[None], metrics)

    wrapped = parallel.data_parallel(run, mesh, sharded={1: 1}, donate=True)
    return wrapped.lower(*example).compile()


class Interrupted(UserError):
    """SIGINT or SIGTERM, after the state was saved."""

    def __init__(self, number: int, step: int, folder: Path):
        name = signal.Signals(number).name
        super().__init__(
            f"Stopped by {name}: step {step} is saved in {folder}. "
            "The same command goes on from there."
        )
        self.exit_code = 128 + number  # as shells have it


class _Saver:
    """When and where the state is saved."""

    def __init__(
        self, config: ConfigDict, folder: Path, newest: int | None, tell: AfterCheckpoint | None
    ):
        self.folder, self._checkpoint, self._tell = folder, config.checkpoint, tell
        self._newest, self._time = newest, time.monotonic()  # of the last good checkpoint
        self._writer = checkpoint.Writer(
            folder, newest, self._checkpoint.keep, self._checkpoint.keep_every_steps
        )
        self._all_finite = jax.jit(optim.all_finite)

    def due(self, step: int) -> bool:
        every, minutes = self._checkpoint.every_steps, self._checkpoint.every_minutes
        by_steps = every and step % every == 0
        by_time = minutes and time.monotonic() - self._time >= 60 * minutes
        return bool(by_steps or by_time)

    def next_due(self, step: int) -> float:
        """The next step after `step` to be saved by its number; infinite where none will be."""
        every = self._checkpoint.every_steps
        return (step // every + 1) * every if every else math.inf

    def save(self, step: int, state: steps.TrainState) -> None:
        # The loss is of the parameters before the update, and does not show yet what that did.
        if not self._all_finite(state.params):
            raise self.diverged(f"The parameters are no longer finite after step {step - 1}")
        self._writer.save(step, state)
        self._newest, self._time = step, time.monotonic()
        self.tell()

    def tell(self) -> None:
        """Calls `after_checkpoint`, once the last save is complete."""
        if self._tell and self._newest is not None:
            self.wait()
            self._tell(self._newest)

    def diverged(self, what: str) -> UserError:
        newest = self._newest
        good = "does not exist yet" if newest is None else f"is {newest}, in {self.folder}"
        return UserError(
            f"{what}. The last good checkpoint {good}. Try a lower --config.optim.learning_rate, "
            "--config.optim.warmup_epochs=1, or --config.dtype=float32."
        )

    def wait(self) -> None:
        self._writer.wait()

    def close(self) -> None:
        self._writer.close()


class _Log:
    """Reads each call's metrics once the next call is on its way, and tells them by cadence."""

    def __init__(self, config: ConfigDict, workdir: Path, saver: _Saver):
        self._config, self._saver = config, saver
        self._scalars = summaries.Scalars(workdir, "train")
        self._unread: tuple[int, steps.Metrics] | None = None

    def start(self, display: summaries.Display, first: int) -> None:
        """Starts the clock: `first` is about to run."""
        self._display, self._first = display, first
        self._time = time.monotonic()  # up to when it is accounted for
        self._seconds, self._steps = 0.0, 0  # since the last line

    def note(self, number: int, metrics: steps.Metrics) -> None:
        """Takes the metrics, [steps] each, of a call that has been dispatched and begins with step
        `number`; reads those of the call before."""
        self.flush()
        self._unread = number, metrics

    def flush(self) -> None:
        """Waits for the noted call. Raises UserError where a loss is NaN or infinite."""
        if self._unread is None:
            return
        (number, metrics), self._unread = self._unread, None
        metrics = jax.device_get(metrics)
        count, now = len(metrics["loss"]), time.monotonic()
        seconds, self._time = (now - self._time) / count, now
        for i in range(count):
            self._seconds, self._steps = self._seconds + seconds, self._steps + 1
            self._read(number + i, {name: float(value[i]) for name, value in metrics.items()})

    def _read(self, number: int, values: dict[str, float]) -> None:
        if not math.isfinite(values["loss"]):
            before = f"; it was finite in the steps {self._first} to {number - 1}"
            raise self._saver.diverged(
                f"The loss is {values['loss']} at step {number}"
                + (before if number > self._first else ", the first one")
            )
        self._display.advance(number + 1, f"loss {values['loss']:.2f}")
        if number % self._config.log_every_steps == 0:
            self._tell(number, values)

    def _tell(self, number: int, values: dict[str, float]) -> None:
        seconds, batch_size = max(self._seconds, 1e-9) / self._steps, self._config.batch_size
        self._seconds, self._steps = 0.0, 0
        self._display.line(summaries.train_line(number, values["loss"], batch_size, seconds))
        self._scalars.write(number, {**values, "examples_per_second": batch_size / seconds})

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps the time of compiling, saving and evaluating out of the seconds per batch."""
        start = time.monotonic()
        yield
        self._time += time.monotonic() - start

    def close(self) -> None:
        self._scalars.close()


class _Stop:
    """Notes the first SIGINT or SIGTERM in `signal`; the second acts as if this were not here."""

    def __init__(self):
        self.signal: int | None = None

    def __enter__(self) -> "_Stop":
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
