"""Replicas: one mesh axis over the devices of all processes, and what runs on each of them."""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from cifar_jax.errors import UserError, reason

AXIS = "replica"


def num_devices(wanted: int) -> int:
    """How many devices a run uses: `wanted` (0: all), or those there are if they are fewer.

    Raises UserError where JAX finds none.
    """
    try:
        present = jax.device_count()
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # a driver or backend is not there
        chosen = os.environ.get("JAX_PLATFORMS")
        hint = f" JAX_PLATFORMS={chosen} is set: unset it, or set it to cpu." if chosen else ""
        raise UserError(f"JAX cannot start: {reason(error)}.{hint}") from error
    return min(wanted, present) if wanted else present


def make_mesh(wanted: int) -> Mesh:
    """A mesh of one axis over `num_devices(wanted)` devices, as many of each process."""
    share = num_devices(wanted) // jax.process_count()
    devices = [
        device
        for process in range(jax.process_count())
        for device in jax.local_devices(process_index=process)[:share]
    ]
    return Mesh(devices, (AXIS,), axis_types=(AxisType.Auto,))


def describe(mesh: Mesh, wanted: int) -> str:
    """ "8 CPU devices of 2 processes", and how many were `wanted` where there are fewer."""
    processes = {device.process_index for device in mesh.devices.flat}
    parts = [f"{mesh.size} {mesh.devices.flat[0].platform.upper()} device{'s' * (mesh.size > 1)}"]
    if len(processes) > 1:
        parts.append(f"of {len(processes)} processes")
    if mesh.size < wanted:
        parts.append(f"({wanted} were asked for)")
    return " ".join(parts)


def steps_per_call(mesh: Mesh) -> int:
    """How many steps to compile into one program where the config does not say.

    A GPU or TPU is done with a small step before Python has started the next one; for a CPU the
    start is nothing.
    """
    return 1 if mesh.devices.flat[0].platform == "cpu" else 100


# -- placement of arrays --


def put(tree: Any, sharding: Sharding) -> Any:
    """Puts a pytree of arrays, which every process has in full, on the devices of `sharding`."""
    if sharding.is_fully_addressable:  # by one process, and so the quicker way
        return jax.device_put(tree, sharding)

    def put_parts(array: Any) -> jax.Array:
        whole = np.asarray(array)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put_parts, tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of every array of `tree` on each device."""
    return put(tree, NamedSharding(mesh, P()))


def zero1_shardings(tree: Any, mesh: Mesh) -> Any:
    """A sharding for each array of `tree`: its longest axis that the devices divide is split over
    them; an array without such an axis is whole on each."""

    def sharding(array: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(array.shape) if size and size % mesh.size == 0]
        if not axes:
            return NamedSharding(mesh, P())
        longest = max(axes, key=lambda axis: array.shape[axis])
        return NamedSharding(mesh, P(*[None] * longest, AXIS))

    return jax.tree.map(sharding, tree)


# -- what runs on them --


def on_replicas(
    function: Callable, mesh: Mesh, *, sharded: dict[int, int], per_image: bool = False
) -> Callable:
    """`function` on every replica at once, to be called within a compiled function.

    `sharded` has the positions of the arguments to split and the axis to split each along; the
    others are the same on every replica. So are the results, as the function itself averages over
    `AXIS`; or, with `per_image`, they are put together along their first axis.
    """

    def spec(position: int) -> P:
        return P(*[None] * sharded[position], AXIS) if position in sharded else P()

    def mapped(*args):
        specs = tuple(map(spec, range(len(args))))
        results = P(AXIS) if per_image else P()
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=results)(*args)

    return mapped


def data_parallel(
    function: Callable,
    mesh: Mesh,
    *,
    sharded: dict[int, int],
    donate: bool = False,
    per_image: bool = False,
) -> jax.stages.Wrapped:
    """Compiles `on_replicas`; every process gets the whole of the results.

    With `donate`, the memory of the first argument is reused for the result.
    """
    mapped = on_replicas(function, mesh, sharded=sharded, per_image=per_image)
    whole = NamedSharding(mesh, P())
    return jax.jit(mapped, out_shardings=whole, donate_argnums=(0,) if donate else ())


# -- communication of the processes --


def request(value: int, mesh: Mesh) -> jax.Array:
    """int32 [devices]: for each device the `value` of its process."""
    local = np.full(len(mesh.local_devices), value, np.int32)
    sharding = NamedSharding(mesh, P(AXIS))
    return jax.make_array_from_process_local_data(sharding, local, (mesh.size,))


def broadcast(tree: Any) -> Any:
    """The arrays of process 0, in every process. All must call this."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def gather(value: Any) -> np.ndarray:
    """The `value` of every process, numbers of one shape: [processes, …]. All must call this."""
    if jax.process_count() == 1:
        return np.asarray(value)[None]
    return np.asarray(multihost_utils.process_allgather(np.asarray(value)))
