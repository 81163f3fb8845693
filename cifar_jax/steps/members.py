"""The training step of several networks at once: the single one, mapped over stacked states."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cifar_jax.optim import SWEPT
from cifar_jax.steps import Batch, Detail, Metrics, Scales, TrainState

_SCALED = "learning_rate", "weight_decay"  # the optimiser is made for one; others are scaled


def stack(states: list[TrainState]) -> TrainState:
    """The states of all members as one, with a leading axis; they are at the same step, which has
    none."""
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *map(jax.device_get, states))
    return stacked.replace(step=np.int32(states[0].step))


def member(state: TrainState, k: int) -> TrainState:
    """The state of member `k`, as a run of its own has it."""
    return jax.tree.map(lambda leaf: leaf[k], state.replace(step=None)).replace(step=state.step)


def train_step(
    state: TrainState,
    batch: Batch,
    dataset: Batch | None = None,
    *,
    single: partial,
    configs: Sequence[ConfigDict],
    mesh: Mesh,
    detail: Detail = Detail.NONE,
) -> tuple[TrainState, Metrics, dict[str, Any]]:
    """`steps.train_step` of every member: a stacked `state` and batches [N, …] to the next state,
    and metrics and auxiliary outputs [N, …]. `single` is that step, bound for one config, and
    `configs` are those of all members, of which only the seed and swept numbers differ.

    One after the other on CPUs, whose convolutions are fastest so; elsewhere at once, by vmap.
    """

    def one(member: tuple[jax.Array, dict[str, jax.Array], TrainState, Batch]) -> Any:
        seed, swept, own, batch = member
        found, metrics, aux = single(
            own.replace(step=state.step),
            batch,
            dataset,
            config=_with(single.keywords["config"], {"seed": seed, **swept}),
            scales=_scales(single.keywords["config"], swept),
            inputs=dataclasses.replace(single.keywords["inputs"], seed=seed),
            detail=detail,
        )
        return found.replace(step=None), metrics, aux

    seeds = jnp.array([own.seed for own in configs], jnp.uint32)
    members = seeds, _swept(configs), state.replace(step=None), batch
    mapped = partial(lax.map, one) if _one_by_one(mesh) else jax.vmap(one)
    found, metrics, aux = mapped(members)
    return found.replace(step=state.step + 1), metrics, aux


def _one_by_one(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


def base(configs: Sequence[ConfigDict]) -> ConfigDict:
    """The config that a step for all of them is bound for: with the greatest of what is scaled."""
    found = ConfigDict(configs[0].to_dict())
    for name in _SCALED:
        found.optim[name] = max(own.optim[name] for own in configs)
    return found


def _swept(configs: Sequence[ConfigDict]) -> dict[str, jax.Array]:
    """float32 [N] of each field of config.optim, by name, in which they differ."""
    values = {name: [own.optim[name] for own in configs] for name in SWEPT}
    return {name: jnp.float32(each) for name, each in values.items() if len(set(each)) > 1}


def _scales(config: ConfigDict, swept: dict[str, jax.Array]) -> Scales | None:
    of = {name: swept[name] / config.optim[name] for name in _SCALED if name in swept}
    if not of:
        return None
    return Scales(of.get("learning_rate", 1.0), of.get("weight_decay", 1.0))


def _with(config: ConfigDict, values: dict[str, jax.Array]) -> ConfigDict:
    """With arrays in the place of numbers, where the step takes them."""
    found = ConfigDict(config.to_dict(), type_safe=False)
    found.seed = values["seed"]
    for name, value in values.items():
        if name in SWEPT and name not in _SCALED:
            found.optim[name] = value
    return found
