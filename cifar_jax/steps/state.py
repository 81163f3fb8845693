"""The state of a run, and what else a step takes and gives."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from cifar_jax import models
from cifar_jax.devices import replicas

# "image" uint8 [B, H, W, C]; int32 [B]: "label", "index", "epoch", and where the images were chosen
# from a larger batch, their "position" there
Batch = dict[str, jax.Array]
Variables = dict[str, Any]  # "params", and a collection for each kind of state that the model has
Metrics = dict[str, jax.Array]


class TrainState(struct.PyTreeNode):
    """The state of a run: everything else follows from the config and `step`."""

    step: jax.Array  # int32, updates so far
    params: Any
    model_state: Any  # collections by name, as "batch_stats"; {} for a model without
    opt_state: Any
    ema: Variables  # the EMA of params and model_state

    @property
    def variables(self) -> Variables:
        return {"params": self.params, **self.model_state}


State = TypeVar("State", bound=TrainState)  # perhaps with more than a step changes


def make_model(config: ConfigDict, num_classes: int) -> nn.Module:
    return models.create(config.model.name, num_classes, config.dtype)


def init_state(variables: Variables, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step. Raises UsageError for a pattern of config.optim that
    matches no parameter."""
    params, model_state = split_variables(variables)
    average = jax.tree.map(jnp.copy, variables)
    return TrainState(jnp.int32(0), params, model_state, optimizer.init(params), average)


def split_variables(variables: Variables) -> tuple[Any, Any]:
    """params and model_state."""
    return variables["params"], {k: v for k, v in variables.items() if k != "params"}


def state_shardings(state: TrainState, mesh: Mesh, shard_optimizer: bool) -> TrainState:
    """The sharding of each array of the state: replicated; with `shard_optimizer` the optimiser's
    state and the EMA are split over the devices (ZeRO stage 1: Rajbhandari et al., 2020)."""
    whole = jax.tree.map(lambda _: NamedSharding(mesh, P()), state)
    if not shard_optimizer:
        return whole
    split = (replicas.zero1_shardings(tree, mesh) for tree in (state.opt_state, state.ema))
    return whole.replace(**dict(zip(("opt_state", "ema"), split, strict=True)))
