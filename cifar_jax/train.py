"""The training loop."""

import concurrent.futures
import contextlib
import math
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from cifar_jax import config as config_lib
from cifar_jax import optim, steps
from cifar_jax.data import feeds, splits
from cifar_jax.data.dataset import Images, Split
from cifar_jax.devices import replicas
from cifar_jax.errors import Diverged, Interrupted, UsageError, UserError, reason
from cifar_jax.loop.saver import SAVE, AfterCheckpoint, Saver
from cifar_jax.loop.signals import Stop
from cifar_jax.loop.trace import Trace
from cifar_jax.models import overview
from cifar_jax.telemetry import display
from cifar_jax.telemetry.log import Log
from cifar_jax.workdir import description, records

_TELLS = {
    steps.Detail.NONE: "as such",
    steps.Detail.SCALARS: "with norms",
    steps.Detail.TENSORS: "with norms, pictures and histograms",
}


def train(
    config: ConfigDict,
    workdir: Path,
    after_checkpoint: AfterCheckpoint | None = None,
    *,
    from_step: int | None = None,
    restart: bool = False,
) -> steps.TrainState:
    """Trains to the end of the run in `workdir`, from its last whole checkpoint if there is one, or
    from that of `from_step`; with `restart` from the beginning, whatever there is.

    `after_checkpoint` is called with the step of each checkpoint once it is complete; what it
    returns, if anything, is shown as the last precision @ 1. Raises UserError for what a user can
    mend, Diverged where training is of no use any more, and Interrupted after a signal.
    """
    changes = description.check_same_run(config, workdir)
    data = splits.open(config.data, "train", config.seed)
    _check_same(data)
    dataset = splits.describe(config.data, data, description.load_dataset(workdir))
    if config.augment.crop_size > min(data.shape[:2]):
        raise UsageError(
            f"config.augment.crop_size = {config.augment.crop_size} is larger than the images, "
            f"{data.shape[0]}x{data.shape[1]}."
        )
    num_steps = config_lib.num_steps(config, len(data))
    schedule = optim.make_schedule(config.optim, len(data) / config.batch_size, num_steps)
    model = steps.make_model(config, len(data.class_names))
    optimizer = steps.make_optimizer(config, schedule)
    state = steps.init_state(config, model, optimizer)
    mesh = replicas.make_mesh(config.num_devices)
    step = partial(
        steps.train_step,
        config=config,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        mesh=mesh,
    )

    # From here on, and no earlier, something is written.
    with contextlib.closing(Saver(config, workdir / "checkpoints", after_checkpoint)) as saver:
        new = state
        state = saver.restore(new, from_step, restart)
        first = int(state.step)
        bound = config.divergence.factor * _first_loss(config, new, len(data.class_names))
        device = replicas.describe(mesh, config.num_devices)
        record = partial(description.store, config, workdir, first, device, dataset)
        for change in changes:
            print(f"With another config: {change}")
        if int(state.step) >= num_steps:
            print(f"Training has already ended at step {state.step}.")
            saver.finish(int(state.step))
            saver.tell()
            return state
        if from_step is not None or restart:
            _forget_evaluations(workdir, first)
        progress = display.Display(num_steps, int(state.step), len(data) / config.batch_size)
        with contextlib.closing(
            Log(config, workdir, saver.diverged, progress, first, bound)
        ) as log:
            crop = (config.augment.crop_size, config.augment.crop_size, data.shape[-1])
            log.describe(state.params, overview.layers(model, crop), data.class_names)
            log.line(f"Training on {device}.")
            state = jax.tree.map(
                replicas.put, state, steps.shardings(state, mesh, config.shard_optimizer)
            )
            try:
                state = _loop(config, data, state, step, mesh, num_steps, log, saver, record)
            except Diverged as error:
                saver.give_up(error)
                raise
        saver.finish(int(state.step))
    return state


def _first_loss(config: ConfigDict, new: steps.TrainState, num_classes: int) -> float:
    """Of a network that knows nothing yet, with its weight decay: the same in every start."""
    return math.log(num_classes) + float(optim.l2_penalty(new.params, config.optim))


def _forget_evaluations(workdir: Path, step: int) -> None:
    """What was measured of checkpoints that the run has turned its back on."""
    if jax.process_index():
        return
    try:
        records.drop(
            workdir / records.FILE, lambda r: r["kind"].startswith("eval") and r["step"] > step
        )
    except OSError as error:
        raise UserError(f"Cannot write to {workdir}: {reason(error)}.") from error


def _check_same(data: Images) -> None:
    """Raises UsageError, on every process, where one has other images than process 0."""
    described = repr((len(data), data.shape, list(data.class_names)))
    for process, known in enumerate(replicas.gather(np.uint32(zlib.crc32(described.encode())))):
        if process == 0:
            first = known
        elif known != first:
            raise UsageError(
                f"Process {process} has other training images than process 0, in number, size or "
                "classes. Check --config.data.dir on its machine."
            )


def _feed(config: ConfigDict, data: Images, mesh: Mesh) -> tuple[feeds.Feed, tuple]:
    """What travels for each step, and what lies on the devices before."""
    needed = math.ceil(len(data) * math.prod(data.shape) / 2**20)
    free = feeds.free_mib(mesh.local_devices)
    if config.data.shards:  # which would be read into the host's memory first
        free = min(free, feeds.free_mib_of_host() - needed)
    place = feeds.choose(
        config.data.placement,
        needed,
        int(replicas.gather(free).min()),
        otherwise="stream" if config.data.shards else "host",
    )
    options = len(data), config.batch_size, config.seed
    sharding = NamedSharding(mesh, P(None, replicas.AXIS))
    if place == "device":
        images, labels, _ = data.load()
        return feeds.DeviceFeed(*options, sharding), replicas.replicate((images, labels), mesh)
    if place == "host" and config.data.shards:
        data = Split(*data.load())
    depth, threads = config.data.prefetch, config.data.num_threads
    return feeds.HostFeed(data.read, *options, sharding, depth, threads), ()


def _loop(
    config: ConfigDict,
    data: Images,
    state: steps.TrainState,
    step: Callable,
    mesh: Mesh,
    num_steps: int,
    log: Log,
    saver: Saver,
    record: Callable[[], None],
) -> steps.TrainState:
    feed, resident = _feed(config, data, mesh)
    wanted = config.steps_per_call or replicas.steps_per_call(mesh)
    full = int(min(wanted, log.shortest(), saver.shortest()))
    number = first = int(state.step)
    with (
        contextlib.closing(feed),
        log,
        Stop() as stop,
        Trace(config, log.workdir, log) as trace,
    ):
        call = _Call(step, mesh, feed, resident, log, stop)

        def save(number: int, state: steps.TrainState) -> None:
            log.flush()
            with log.paused():
                if not (log.workdir / description.FILE).exists():  # deleted meanwhile
                    record()
                stop.unsaved = True
                log.saved(number, saver.save(number, state, log.healthy))
            log.healthy = True
            call.forget_wish()

        while number < num_steps:
            # Only the first step of a call tells more than its metrics, and nothing is saved within
            # one. Few programs serve a whole run: those of full calls, and of what is left over.
            room = min(end.next_due(number) for end in (saver, log, trace))
            room = min(num_steps, room) - number
            count = full if full <= room else 1
            trace.before(number)
            wish = stop.signal or saver.overdue()
            try:
                state, metrics, told = call(state, number, count, wish)
            except _NotCompiled:
                save(number, state)
                saver.wait()
                raise Interrupted(stop.signal or 0, number, saver.folder) from None
            log.note(number, metrics, told)
            if number == first:  # and no earlier is there anything to tell of
                record()
                saver.begin()
            number += count
            stop.unsaved = True
            trace.after(number, state)
            last, wish = number == num_steps, call.wish()
            if last or wish or saver.due(number):
                save(number, state)
            if wish > SAVE and not last:
                saver.wait()
                raise Interrupted(wish, number, saver.folder)
    return state


class _NotCompiled(Exception):
    """A signal came before a step was compiled."""


class _Call:
    """Runs some steps as one program, which is compiled when it is first asked for.

    With it travels what each process wishes to do, so that all of them come to know the same
    wishes at the same step, without a word beside the steps.
    """

    def __init__(
        self,
        step: Callable,
        mesh: Mesh,
        feed: feeds.Feed,
        resident: tuple,
        log: Log,
        stop: Stop,
    ):
        self._step, self._mesh, self._feed, self._log, self._stop = step, mesh, feed, log, stop
        self._resident = resident
        self._programs: dict[tuple[int, steps.Detail], jax.stages.Compiled] = {}
        self._wishes: tuple[jax.Array | None, jax.Array | None] = None, None

    def __call__(self, state: steps.TrainState, number: int, count: int, wish: int) -> Any:
        """`count` steps from `number` on: the new state, the metrics, what the first step tells."""
        log, detail = self._log, self._log.detail(number)
        travels, wishes = self._feed.get(number, count), replicas.wish(wish, self._mesh)
        log.fed(self._feed.take_wait(), self._feed.fill)
        if (count, detail) not in self._programs:
            log.line(
                f"Compiling the training step {_TELLS[detail]}: about 10 s, or 1 s where it is in "
                "the cache."
            )
            log.flush()  # what runs beside the compilation would seem to take no time
            with log.paused():
                self._programs[count, detail] = self._compile(detail, state, travels)
        *results, greatest = self._programs[count, detail](state, travels, self._resident, wishes)
        self._wishes = self._wishes[1], greatest
        return results

    def _compile(
        self, detail: steps.Detail, state: steps.TrainState, travels: tuple
    ) -> jax.stages.Compiled:
        """Raises _NotCompiled where a signal comes meanwhile and this process may act alone.

        In a thread: XLA compiles for many seconds, in which Python would run no handler.
        """
        pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="compile")
        coming = pool.submit(
            compile_step, self._step, detail, self._mesh, state, travels, self._resident
        )
        pool.shutdown(wait=False)
        while True:
            try:
                return coming.result(timeout=0.1)
            except concurrent.futures.TimeoutError:
                if self._stop.signal and jax.process_count() == 1:
                    raise _NotCompiled from None

    def wish(self) -> int:
        """The greatest wish that came with the call before the last, which has ended by now."""
        return 0 if self._wishes[0] is None else int(self._wishes[0])

    def forget_wish(self) -> None:
        """What was wished so far is done."""
        self._wishes = None, None


def compile_step(
    step: Callable,
    detail: steps.Detail,
    mesh: Mesh,
    state: steps.TrainState,
    travels: tuple,
    resident: tuple,
) -> jax.stages.Compiled:
    """Several steps in one program, with the gathers from what is resident; the state's memory is
    reused.

    The program takes (state, travels, resident, wishes), the first three as they are here:
    (indices,) for the resident (images, labels), or else (images, labels) themselves, each
    [steps, global batch, …]; and `replicas.wish`. It gives the new state, the metrics of every
    step, [steps] each, what the first step tells, and the greatest wish.
    """
    lies = jax.tree.map(lambda array: array.sharding, state)
    take = replicas.on_replicas(_take, mesh, sharded={1: 0}, per_image=True)

    def run(state, travels, resident, wishes):
        def one(state, travels, detail=steps.Detail.NONE):
            image, label = take(resident, travels[0]) if resident else travels
            state, metrics, told = step(state, {"image": image, "label": label}, detail=detail)
            return lax.with_sharding_constraint(state, lies), (metrics, told)

        state, (first, told) = one(state, [array[0] for array in travels], detail)
        metrics = jax.tree.map(lambda value: value[None], first)
        if len(travels[0]) > 1:  # else without a loop, which would hinder XLA on CPUs
            state, (rest, _) = lax.scan(one, state, [array[1:] for array in travels])
            metrics = jax.tree.map(lambda *values: jnp.concatenate(values), metrics, rest)
        return state, metrics, told, wishes.max()

    whole = NamedSharding(mesh, P())
    wrapped = jax.jit(run, donate_argnums=0, out_shardings=(lies, whole, whole, whole))
    return wrapped.lower(state, travels, resident, replicas.wish(0, mesh)).compile()


def _take(arrays: tuple, indices: jax.Array) -> tuple:
    return tuple(array[indices] for array in arrays)
