"""Compiled calls: some training steps as one program."""

import concurrent.futures
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cifar_jax.data import feeds
from cifar_jax.devices import replicas
from cifar_jax.loop.signals import Stop
from cifar_jax.steps import Detail, TrainState
from cifar_jax.telemetry.log import Log

_COMPILING = {
    Detail.NONE: "without summaries",
    Detail.SCALARS: "with norms",
    Detail.TENSORS: "with norms, images and histograms",
}


class NotCompiled(Exception):
    """A signal came before a step was compiled."""


class Calls:
    """Runs some steps as one program, which is compiled when it is first asked for.

    Each call also reduces what every process requests, a save or a stop, so that all of them see
    the same requests at the same step, without further communication.
    """

    def __init__(
        self,
        step: Callable,
        mesh: Mesh,
        feed: feeds.Feed,
        dataset: dict[str, jax.Array],
        log: Log,
        stop: Stop,
    ):
        """`dataset` is what `compile_steps` takes."""
        self._step, self._mesh, self._feed, self._log, self._stop = step, mesh, feed, log, stop
        self._dataset = dataset
        self._programs: dict[tuple[int, Detail, int], jax.stages.Compiled] = {}
        self._requests: tuple[jax.Array | None, jax.Array | None] = None, None

    def __call__(self, state: TrainState, number: int, count: int, request: int) -> Any:
        """`count` steps from `number` on: the new state, the metrics, the auxiliary outputs of the
        first step, and the scalars of later ones. `request` is this process's."""
        log, detail = self._log, self._log.detail(number)
        every = log.scalars_within(number, count)
        batches, requests = self._feed.get(number, count), replicas.request(request, self._mesh)
        log.fed(self._feed.take_wait(), self._feed.occupancy)
        if (count, detail, every) not in self._programs:
            log.line(
                f"Compiling the training step {_COMPILING[detail]}: about 10 s, or 1 s where it is "
                "in the cache."
            )
            log.flush()  # or the last call would seem to take as long as the compilation
            with log.paused():
                self._programs[count, detail, every] = self._compile(detail, every, state, batches)
        program = self._programs[count, detail, every]
        *results, greatest = program(state, batches, self._dataset, requests)
        self._requests = self._requests[1], greatest
        return results

    def _compile(
        self, detail: Detail, every: int, state: TrainState, batches: Any
    ) -> jax.stages.Compiled:
        """Raises NotCompiled where a signal comes meanwhile and this process may act alone.

        In a thread: XLA compiles for many seconds, in which Python would run no handler.
        """
        pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="compile")
        compiled = pool.submit(
            compile_steps, self._step, detail, self._mesh, state, batches, self._dataset, every
        )
        pool.shutdown(wait=False)
        while True:
            try:
                return compiled.result(timeout=0.1)
            except concurrent.futures.TimeoutError:
                if self._stop.signal and jax.process_count() == 1:
                    raise NotCompiled from None

    def request(self) -> int:
        """The greatest request that came with the call before the last, which has ended by now."""
        return 0 if self._requests[0] is None else int(self._requests[0])

    def forget_requests(self) -> None:
        """To be called when all requests so far were met."""
        self._requests = None, None


def compile_steps(
    step: Callable,
    detail: Detail,
    mesh: Mesh,
    state: TrainState,
    batches: dict[str, jax.Array],
    dataset: dict[str, jax.Array],
    every: int = 0,
) -> jax.stages.Compiled:
    """Compiles several steps into one program; the state is donated.

    The program takes (state, batches, dataset, requests), the first three as they are here: the
    batches of a `feeds.Feed`, each [steps, global batch, …]; the "image" and "label" of the whole
    split, where the batches have none, else {}; and `replicas.request`. It gives the new state, the
    metrics of every step, [steps] each, the auxiliary outputs of the first step, those scalars of
    each `every`-th step after it by name, {} where `every` is 0, and the greatest request. `every`
    divides the number of steps.
    """
    state_shardings = jax.tree.map(lambda array: array.sharding, state)

    def run(state, batches, dataset, requests):
        def one(state, batch, detail=Detail.NONE):
            state, metrics, aux = step(state, batch, dataset, detail=detail)
            return lax.with_sharding_constraint(state, state_shardings), (metrics, aux)

        def some(state, batches, detail=Detail.SCALARS):
            """Auxiliary outputs of the first step alone."""
            state, (metrics, aux) = one(state, _part(batches, 0), detail)
            metrics = jax.tree.map(lambda value: value[None], metrics)
            if len(batches["index"]) > 1:  # else without a loop, which would hinder XLA on CPUs
                state, (more, _) = lax.scan(one, state, _part(batches, slice(1, None)))
                metrics = jax.tree.map(_join, metrics, more)
            return state, (metrics, aux)

        first = every or len(batches["index"])
        state, (metrics, aux) = some(state, _part(batches, slice(first)), detail)
        scalars = {}
        if first < len(batches["index"]):
            later = jax.tree.map(lambda x: x[first:].reshape(-1, first, *x.shape[1:]), batches)
            state, (more, other_aux) = lax.scan(some, state, later)
            more = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), more)
            metrics, scalars = jax.tree.map(_join, metrics, more), other_aux["scalars"]
        return state, metrics, aux, scalars, requests.max()

    whole = NamedSharding(mesh, P())
    shardings = (state_shardings, whole, whole, whole, whole)
    wrapped = jax.jit(run, donate_argnums=0, out_shardings=shardings)
    return wrapped.lower(state, batches, dataset, replicas.request(0, mesh)).compile()


def _part(batches: dict[str, jax.Array], steps: int | slice) -> dict[str, jax.Array]:
    return jax.tree.map(lambda x: x[steps], batches)


def _join(first: jax.Array, rest: jax.Array) -> jax.Array:
    return jnp.concatenate([first, rest])
