"""The training step of several networks at once: the single one, mapped over stacked states."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cifar_jax.steps import Batch, Detail, Metrics, TrainState


def stack(states: list[TrainState]) -> TrainState:
    """The states of all members as one, with a leading axis; they are at the same step, which has
    none."""
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *map(jax.device_get, states))
    return stacked.replace(step=np.int32(states[0].step))


def member(state: TrainState, k: int) -> TrainState:
    """The state of member `k`, as a run of its own has it."""
    one = jax.tree.map(lambda leaf: leaf[k], state.replace(step=jnp.zeros(k + 1)))
    return one.replace(step=state.step)


def train_step(
    state: TrainState,
    batch: Batch,
    dataset: Batch | None = None,
    *,
    single: partial,
    seeds: tuple[int, ...],
    mesh: Mesh,
    detail: Detail = Detail.NONE,
) -> tuple[TrainState, Metrics, dict[str, Any]]:
    """`steps.train_step` of every member: a stacked `state` and batches [N, …] to the next state,
    and metrics and auxiliary outputs [N, …]. `single` is that step, bound for the first member.

    One after the other on CPUs, whose convolutions are fastest so; elsewhere at once, by vmap.
    """

    def one(member: tuple[jax.Array, TrainState, Batch]) -> Any:
        seed, own, batch = member
        found, metrics, aux = single(
            own.replace(step=state.step),
            batch,
            dataset,
            config=_with_seed(single.keywords["config"], seed),
            inputs=dataclasses.replace(single.keywords["inputs"], seed=seed),
            detail=detail,
        )
        return found.replace(step=None), metrics, aux

    members = jnp.array(seeds, jnp.uint32), state.replace(step=None), batch
    cpu = mesh.devices.flat[0].platform == "cpu"
    found, metrics, aux = lax.map(one, members) if cpu else jax.vmap(one)(members)
    return found.replace(step=state.step + 1), metrics, aux


def _with_seed(config: ConfigDict, seed: jax.Array) -> ConfigDict:
    found = ConfigDict(config.to_dict(), type_safe=False)
    found.seed = seed
    return found
