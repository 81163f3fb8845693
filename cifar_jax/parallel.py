"""Replicas: one mesh axis over all devices, and the step that runs on each of them."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "replica"


def num_devices(wanted: int) -> int:
    """How many devices a run uses: `wanted` (0: all), or those there are if they are fewer."""
    present = jax.device_count()
    return min(wanted, present) if wanted else present


def make_mesh(wanted: int) -> Mesh:
    """A mesh of one axis over the first `num_devices(wanted)` devices."""
    count = num_devices(wanted)
    return jax.make_mesh(
        (count,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
    )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of every array of `tree` on each device."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def steps_per_call(mesh: Mesh) -> int:
    """How many steps to compile into one program where the config does not say.

    A GPU or TPU is done with a small step before Python has started the next one; for a CPU the
    start is nothing.
    """
    return 1 if mesh.devices.flat[0].platform == "cpu" else 100


def data_parallel(
    step: Callable,
    mesh: Mesh,
    *,
    sharded: dict[int, int],
    donate: bool = False,
    per_image: bool = False,
) -> jax.stages.Wrapped:
    """Compiles `step` to run on every replica at once.

    `sharded` has the positions of the arguments to split and the axis to split each along; the
    others are the same on every replica. So are the results, as the step itself averages over
    `AXIS`; or, with `per_image`, they are put together along their first axis. With `donate`, the
    memory of the first argument is reused for the result.
    """

    def spec(position: int) -> P:
        return P(*[None] * sharded[position], AXIS) if position in sharded else P()

    def compiled(*args):
        specs = tuple(map(spec, range(len(args))))
        results = P(AXIS) if per_image else P()
        mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=results)
        return mapped(*args)

    return jax.jit(compiled, donate_argnums=(0,) if donate else ())
