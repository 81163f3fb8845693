"""The training step with a proxy: a small network that trains beside the model, and chooses from
each batch the images that the model is trained on, the hardest ones.

(Jordan, github.com/KellerJordan/cifar10-airbench, airbench96_faster; there the proxy is trained
first, and its choices are kept.)
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from ml_collections import ConfigDict

from cifar_jax import models, optim, steps
from cifar_jax.devices import replicas
from cifar_jax.inputs import Curriculum, Inputs
from cifar_jax.steps import Batch, Detail, Metrics, TrainState


class WithProxy(TrainState):
    """A `TrainState` and that of its proxy, whose step is the same."""

    proxy: TrainState


def with_proxy(state: TrainState, proxy: TrainState) -> WithProxy:
    return WithProxy(**vars(state), proxy=proxy)


def bind(step: partial, steps_per_epoch: float, num_steps: int, num_kept: int) -> partial:
    """`train_step` for what `step`, a `steps.train_step`, is bound for. Its proxy has the same
    config.optim, with fewer steps, and no average."""
    config = ConfigDict(step.keywords["config"].to_dict())
    config.model.name = config.proxy.model
    config.optim.ema_decay, config.optim.lookahead.every = 0.0, 0
    every = config.proxy.every
    length = steps_per_epoch / every, math.ceil(num_steps / every)
    own = {
        "config": config,
        "model": steps.make_model(config, step.keywords["model"].num_classes),
        "optimizer": optim.make_optimizer(config.optim, *length),
        "schedule": optim.make_schedule(config.optim, *length),
    }
    proxy = partial(steps.train_step, **{**step.keywords, **own})
    return partial(train_step, **step.keywords, proxy=proxy, num_kept=num_kept)


def train_step(
    state: WithProxy,
    batch: Batch,
    dataset: Batch | None = None,
    *,
    proxy: partial,
    num_kept: int,
    detail: Detail = Detail.NONE,
    **bound: Any,
) -> tuple[WithProxy, Metrics, dict[str, Any]]:
    """`steps.train_step`, with what is `bound`, on the images of the global `batch` for which the
    proxy's loss is greatest: `num_kept` of them, in their order.

    `proxy` is that step bound for the proxy, which makes it every config.proxy.every steps, on the
    same images.
    """
    config = bound["config"]
    losses = _losses(state.proxy, batch, dataset or {}, proxy)
    chosen = jnp.sort(lax.top_k(losses, num_kept)[1])
    batch = {name: array[chosen] for name, array in batch.items()} | {"position": chosen}

    def learn(own: TrainState) -> TrainState:
        return proxy(own, batch, dataset)[0]

    due = state.step % config.proxy.every == 0
    own = lax.cond(due, learn, lambda own: own.replace(step=own.step + 1), state.proxy)
    found, metrics, aux = steps.train_step(state, batch, dataset, detail=detail, **bound)
    return found.replace(proxy=own), metrics, aux


def _losses(state: TrainState, batch: Batch, dataset: Batch, bound: partial) -> jax.Array:
    """The loss of each image, float32 [B], in training mode and as the step's keys transform it."""
    of_replica = partial(_losses_of_replica, **bound.keywords)
    mesh = bound.keywords["mesh"]
    mapped = replicas.on_replicas(of_replica, mesh, sharded={2: 0}, per_image=True)
    return mapped(state.variables, state.step, batch, dataset)


def _losses_of_replica(
    variables: steps.Variables,
    step: jax.Array,
    batch: Batch,
    dataset: Batch,
    *,
    config: ConfigDict,
    model: nn.Module,
    inputs: Inputs,
    curriculum: Curriculum,
    class_weights: tuple[float, ...] | None,
    **_: Any,  # what only a training step takes
) -> jax.Array:
    batch = steps.ready(batch, dataset, config.seed, step)
    images, targets = inputs.train(batch["key"], batch)

    def logits(images: jax.Array) -> jax.Array:
        return models.forward(model, variables, images, train=True)[0]

    found, smoothing = curriculum.apply(step, logits, images), config.optim.label_smoothing
    return steps.losses(found, targets, smoothing, class_weights)[1]
