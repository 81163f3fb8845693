"""Training: `train` is what `main.py` and a notebook call."""

import contextlib
import math
import os
import zlib
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from cifar_jax import config as config_lib
from cifar_jax import files, models, optim, steps
from cifar_jax import inputs as inputs_lib
from cifar_jax.data import batches, feeds, splits
from cifar_jax.data.dataset import Description, Images, Split
from cifar_jax.devices import replicas
from cifar_jax.errors import Diverged, Interrupted, UsageError, UserError, reason
from cifar_jax.loop.calls import Calls, NotCompiled
from cifar_jax.loop.saver import SAVE, AfterCheckpoint, Saver
from cifar_jax.loop.signals import Stop
from cifar_jax.loop.trace import Trace
from cifar_jax.members import proxy
from cifar_jax.members.log import Logs
from cifar_jax.members.saver import Savers
from cifar_jax.members.step import base
from cifar_jax.members.step import train_step as step_of_members
from cifar_jax.models import overview
from cifar_jax.telemetry import display
from cifar_jax.telemetry.log import Log
from cifar_jax.workdir import checkpoint, description, records, transfer

_FIT_DRAW = np.array(2**64 - 2, np.uint64)  # the permutation for parameters from data: no epoch's


class Training(NamedTuple):
    """A run ready to start: what its config and its data determine. Nothing is written yet."""

    config: ConfigDict
    data: Images
    dataset: Description
    num_steps: int
    step: partial  # steps.train_step or that of members.proxy, bound
    state: steps.TrainState  # before the first step

    @property
    def mesh(self) -> Mesh:
        return self.step.keywords["mesh"]

    @property
    def device(self) -> str:
        return replicas.describe(self.mesh, self.config.num_devices)

    def loss_bound(self) -> float:
        """The mean loss above which training has diverged: config.divergence.factor times that of
        uniform predictions with the initial L2 penalty; the same in every start, and so of the
        drawn parameters where config.init_from has others for the first one."""
        l2 = float(optim.l2_penalty(self.state.params, self.config.optim))
        return self.config.divergence.factor * (math.log(len(self.data.class_names)) + l2)


class Result(NamedTuple):
    """What a run comes to."""

    state: steps.TrainState
    checkpoint: Path  # the last one, which holds it


def train(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    after_checkpoint: AfterCheckpoint | None = None,
    *,
    from_step: int | None = None,
    restart: bool = False,
) -> Result:
    """Trains to the end of the run in `workdir`, from its last whole checkpoint if there is one, or
    from that of `from_step`; with `restart` from the beginning, whatever there is.

    `config` is resolved and validated before anything is written, and itself stays as it is.
    `after_checkpoint` is called with the step of each checkpoint once it is complete; what it
    returns, if anything, is shown as the last precision @ 1. Raises UserError for what a user can
    fix, Diverged where training is of no use any more, and Interrupted, with all steps saved, after
    a signal (in a notebook: the stop button), for the same call to go on from there.
    """
    if restart and from_step is not None:
        raise UsageError("--restart begins at step 0, --from_step elsewhere: choose one of them.")
    workdir = files.resolve(workdir, "--workdir")
    config = config_lib.resolve(config)
    if config.cluster and not jax.distributed.is_initialized():
        raise UsageError(
            f"config.cluster = {config.cluster!r}, but only main.py joins the processes of a run. "
            "Start that, or leave it out."
        )
    changes = description.check_same_run(config, workdir)
    if config_lib.several(config):
        return _train_members(config, workdir, changes, after_checkpoint, from_step, restart)
    run = prepare(config, description.load_dataset(workdir))
    initial = run.state
    if config.init_from:
        initial = _transferred(run, workdir, from_step, restart)

    # From here on, and no earlier, something is written.
    with contextlib.closing(Saver(config, workdir / "checkpoints", after_checkpoint)) as saver:
        state = saver.restore(initial, from_step, restart)
        first = int(state.step)
        for change in changes:
            print(f"With another config: {change}")
        if saver.to_compare and first < run.num_steps:
            saver.tell()
        if first >= run.num_steps or saver.out_of_patience:
            print(" ".join([f"Training has already ended at step {first}.", saver.out_of_patience]))
            saver.finish(first)
            saver.tell()
            return Result(jax.tree.map(jnp.asarray, state), saver.folder / str(first))
        if from_step is not None or restart:
            _forget_evaluations(workdir, first)
        progress = display.Display(run.num_steps, first, len(run.data) / config.batch_size)
        log = Log(config, workdir, saver.diverged, progress, first, run.loss_bound())
        with contextlib.closing(log):
            rows = overview.layers(
                run.step.keywords["model"], run.step.keywords["inputs"].image_shape
            )
            log.describe(state.params, rows, run.data.class_names)
            log.line(" ".join([f"Training on {run.device}.", *models.remarks(config.dtype)]))
            shardings = steps.state_shardings(state, run.mesh, config.shard_optimizer)
            try:
                state = _loop(run, jax.tree.map(replicas.put, state, shardings), log, saver)
            except Diverged as error:
                saver.give_up(error)
                raise
        if saver.out_of_patience:
            print(f"Training ends at step {int(state.step)}. {saver.out_of_patience}")
        saver.finish(int(state.step))
        return Result(state, saver.folder / str(int(state.step)))


def _train_members(
    config: ConfigDict,
    workdir: Path,
    changes: list[str],
    after_checkpoint: AfterCheckpoint | None,
    from_step: int | None,
    restart: bool,
) -> Result:
    """`train` for the networks of config.num_seeds and config.sweep: the state is stacked, and the
    checkpoint is that of the first one."""
    configs = config_lib.members(config)
    folders = [description.member(workdir, number) for number in range(len(configs))]
    run = prepare(base(configs), description.load_dataset(workdir))
    _check_room(run, len(configs))
    runs = [
        run._replace(config=own, state=first_state(run.step, run.data, own.seed)) for own in configs
    ]
    step = partial(step_of_members, single=run.step, configs=configs, mesh=run.mesh)

    def begin() -> None:
        for each, folder in zip(runs, folders, strict=True):
            description.store(each.config, folder, first, run.device, run.dataset)

    single = [
        Saver(own, path / "checkpoints", None) for own, path in zip(configs, folders, strict=True)
    ]
    saver = Savers(single, workdir / description.MEMBERS, after_checkpoint, begin)
    with contextlib.closing(saver):
        state = saver.restore([each.state for each in runs], from_step, restart)
        first = int(state.step)
        for change in changes:
            print(f"With another config: {change}")
        checkpoint = folders[0] / "checkpoints" / str(max(first, run.num_steps))
        if first >= run.num_steps:
            print(f"Training has already ended at step {first}.")
            saver.finish(first)
            saver.tell()
            return Result(jax.tree.map(jnp.asarray, state), checkpoint)
        if from_step is not None or restart:
            for folder in folders:
                _forget_evaluations(folder, first)
        progress = display.Display(run.num_steps, first, len(run.data) / config.batch_size)
        logs = []
        rows = overview.layers(run.step.keywords["model"], run.step.keywords["inputs"].image_shape)
        for own, folder, one in zip(runs, folders, single, strict=True):
            options = one.diverged, display.Silent(), first, own.loss_bound()
            logs.append(Log(own.config, folder, *options))
            logs[-1].describe(own.state.params, rows, run.data.class_names)
        log = Logs(logs, config, workdir, lambda: saver.living, saver.lose, progress)
        with contextlib.closing(log):
            line = f"Training {len(configs)} networks on {run.device}."
            log.line(" ".join([line, *models.remarks(config.dtype)]))
            together = run._replace(config=config, step=step)
            state = _loop(together, replicas.replicate(state, run.mesh), log, saver)
        saver.finish(int(state.step))
    return Result(state, checkpoint)


def _check_room(run: Training, count: int) -> None:
    """Raises UserError where so many states, and the gradients of them all, have no room."""
    own = sum(leaf.nbytes for leaf in jax.tree.leaves(run.state))
    needed = 2 * own / 2**20  # MiB of each
    free = feeds.free_mib(run.mesh.local_devices)
    if count * needed > free:
        raise UserError(
            f"{count} networks need {count * needed:,.0f} MiB for states and gradients, and "
            f"{free:,} MiB are free. Train at most {int(free // needed)} together."
        )


def prepare(config: ConfigDict, known: Description | None = None) -> Training:
    """Opens the data, and binds and initialises what trains on it. `known` is what the run knows of
    its dataset since its first start. Raises UserError."""
    data = splits.open(config.data, "train", config.seed)
    _check_same(data)
    dataset = splits.describe(config.data, data, known)
    num_steps = config_lib.num_steps(config, len(data))
    steps_per_epoch = len(data) / config.batch_size
    model = steps.make_model(config, len(data.class_names))
    inputs = inputs_lib.make(config.inputs, data.shape, dataset.mean, dataset.std, config.seed)
    optimizer = optim.make_optimizer(config.optim, steps_per_epoch, num_steps)
    step = partial(
        steps.train_step,
        config=config,
        model=model,
        inputs=inputs,
        optimizer=optimizer,
        schedule=optim.make_schedule(config.optim, steps_per_epoch, num_steps),
        num_steps=num_steps,
        mesh=replicas.make_mesh(config.num_devices),
        class_weights=dataset.class_weights() if config.data.balance else None,
        curriculum=inputs_lib.curriculum(config.inputs, steps_per_epoch),
    )
    if config.proxy.model:
        step = proxy.bind(step, steps_per_epoch, num_steps)
    state = first_state(step, data, config.seed)
    channels = inputs.image_shape[-1]
    models.check_sizes(model, state.variables, step.keywords["curriculum"].sizes, channels)
    return Training(config, data, dataset, num_steps, step, state)


def first_state(step: partial, data: Images, seed: int) -> steps.TrainState:
    """The state before the first step, whose parameters the seed draws."""
    key = jax.random.key(seed)
    state = _first_state(step, data, seed, key)
    if other := step.keywords.get("proxy"):
        return proxy.with_proxy(state, _first_state(other, data, seed, jax.random.split(key)[0]))
    return state


def _first_state(step: partial, data: Images, seed: int, key: jax.Array) -> steps.TrainState:
    model, inputs = step.keywords["model"], step.keywords["inputs"]
    variables = models.init(model, key, inputs.image_shape)
    if count := models.images_to_fit(model):
        # Drawn, as a dataset may be sorted by class; and of one process, to the last bit.
        drawn = np.arange(min(count, len(data)))
        images, _ = data.read(np.sort(batches.permute(drawn, len(data), seed, _FIT_DRAW)))
        seen = inputs.evaluate(jnp.asarray(images))[0]
        variables = replicas.broadcast(models.init_from_data(model, variables, seen))
    return steps.init_state(variables, step.keywords["optimizer"])


def _transferred(
    run: Training, workdir: Path, from_step: int | None, restart: bool
) -> steps.TrainState:
    """`run.state` with what config.init_from has for it, where no checkpoint will take its place.

    Process 0 looks, for all: what others see there may be newer. Raises as `transfer.take` does.
    """
    variables = run.state.variables
    resumes = from_step is not None or checkpoint.has_any(workdir / "checkpoints")
    if jax.process_index() == 0 and (restart or not resumes):
        source = files.resolve(run.config.init_from, "config.init_from")
        variables = transfer.take(source, variables)
    # Anew, as an optimiser's state may be of the initial parameters.
    taken = steps.init_state(replicas.broadcast(variables), run.step.keywords["optimizer"])
    return run.state.replace(**vars(taken))  # a proxy keeps its own


def _forget_evaluations(workdir: Path, step: int) -> None:
    """Removes the records of evaluations of later checkpoints, which the run no longer has."""
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


def make_feed(
    config: ConfigDict, data: Images, mesh: Mesh
) -> tuple[feeds.Feed, dict[str, jax.Array]]:
    """The feed of the steps, and the on-device dataset: "image" and "label" of the whole split, or
    {} where the images are kept elsewhere."""
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
        dataset = replicas.replicate({"image": images, "label": labels}, mesh)
        if config_lib.several(config):
            seeds = [own.seed for own in config_lib.members(config)]
            sharding = NamedSharding(mesh, P(None, None, replicas.AXIS))
            return feeds.MembersFeed(len(data), config.batch_size, seeds, sharding), dataset
        return feeds.DeviceFeed(*options, sharding), dataset
    if config_lib.several(config):
        raise UserError(
            f"The images need {needed:,} MiB on the device, where {free:,} MiB are free, and "
            "several networks need them there. Train them one by one."
        )
    if place == "host" and config.data.shards:
        data = Split(*data.load())
    depth, threads = config.data.prefetch, config.data.num_threads
    return feeds.HostFeed(data.read, *options, sharding, depth, threads), {}


def _steps_per_call(config: ConfigDict, mesh: Mesh, on_device: bool, saver: Any) -> int:
    """In one program, where nothing ends it earlier. Images and histograms are of its first step,
    nothing is saved within it, and scalars are of steps at equal distances from the first."""
    wanted = replicas.steps_per_call(mesh)
    if not on_device:  # a call's images are in memory together
        wanted = min(wanted, max(1, config.data.prefetch))
    summaries = config.summaries
    ends = [each for each in (summaries.images, summaries.histograms) if each]
    longest = int(min(config.steps_per_call or wanted, saver.next_due(0), *ends))
    if not summaries.scalars or longest < summaries.scalars:
        return longest
    return longest - longest % summaries.scalars


def _loop(run: Training, state: steps.TrainState, log: Any, saver: Any) -> steps.TrainState:
    """To the end of the run. `log` and `saver` are a Log and a Saver, or, where several networks
    train together, Logs and Savers."""
    config, mesh = run.config, run.mesh
    feed, dataset = make_feed(config, run.data, mesh)
    full = _steps_per_call(config, mesh, bool(dataset), saver)
    number = first = int(state.step)
    with (
        contextlib.closing(feed),
        log,
        Stop() as stop,
        Trace(config, log.workdir, log) as trace,
    ):
        call = Calls(run.step, mesh, feed, dataset, log, stop)

        def describe() -> None:
            description.store(config, log.workdir, first, run.device, run.dataset)

        def save(number: int, state: steps.TrainState) -> None:
            log.flush()
            with log.paused():
                if not (log.workdir / description.FILE).exists():  # deleted meanwhile
                    describe()
                stop.unsaved = True
                log.saved(number, saver.save(number, state, log.healthy))
            log.healthy = True
            call.forget_requests()

        while number < run.num_steps and not saver.out_of_patience:
            # Few programs serve a whole run: those of full calls, and of what is left over.
            due = log.next_due(number, full), saver.next_due(number), trace.next_due(number)
            room = min(run.num_steps, *due)
            count = full if full <= room - number else 1
            trace.before(number)
            request = stop.signal or saver.overdue()
            try:
                state, *found = call(state, number, count, request)
            except NotCompiled:
                if saver.newest != number:
                    save(number, state)
                saver.wait()
                raise Interrupted(stop.signal or 0, number, saver.folder) from None
            log.note(number, *found)
            if number == first:  # and no earlier is there anything to describe
                describe()
                saver.begin()
            number += count
            stop.unsaved = True
            trace.after(number, state)
            last, request = number == run.num_steps, call.request()
            if last or request or saver.due(number):
                save(number, state)
            if request > SAVE and not last:
                saver.wait()
                raise Interrupted(request, number, saver.folder)
    return state
