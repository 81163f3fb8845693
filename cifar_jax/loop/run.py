"""The steps of a run, to its end."""

import contextlib
import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from cifar_jax import config as config_lib
from cifar_jax import steps
from cifar_jax.data import feeds
from cifar_jax.data.dataset import Images, Split
from cifar_jax.devices import replicas
from cifar_jax.errors import Interrupted, UserError
from cifar_jax.loop.calls import Calls, NotCompiled
from cifar_jax.loop.saver import SAVE
from cifar_jax.loop.signals import Stop
from cifar_jax.loop.trace import Trace
from cifar_jax.loop.training import Training
from cifar_jax.workdir import description


def run_steps(run: Training, state: steps.TrainState, log: Any, saver: Any) -> steps.TrainState:
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
