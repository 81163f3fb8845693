"""The optimiser as one optax chain: decay, direction, rate, and the average of the parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cifar_jax.errors import unknown
from cifar_jax.optim.muon import scale_by_muon

SCHEDULES = ("exponential", "constant", "cosine", "linear")


def make_schedule(config: ConfigDict, steps_per_epoch: float, num_steps: int) -> optax.Schedule:
    """The learning rate of each step, from `config.optim`.

    exponential: a staircase, times decay_factor every decay_epochs (in steps, truncated, as the
    tutorial counts them). cosine and linear: down to final_factor at the last of `num_steps`.
    """
    peak, warmup = config.learning_rate, int(config.warmup_epochs * steps_per_epoch)
    remaining = max(1, num_steps - warmup)
    if config.schedule == "exponential":
        every = max(1, int(config.decay_epochs * steps_per_epoch))
        decay = optax.exponential_decay(peak, every, config.decay_factor, staircase=True)
    elif config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, remaining, alpha=config.final_factor)
    elif config.schedule == "linear":
        decay = optax.linear_schedule(peak, peak * config.final_factor, remaining)
    else:
        decay = optax.constant_schedule(peak)
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The chain for `config.optim`. Its state holds the average of the parameters."""
    decay = optax.add_decayed_weights(
        config.weight_decay,
        mask=lambda params: kernels(params, config.decay_layers, "decay_layers"),
    )
    direction = _DIRECTIONS[config.name](config)
    # Added to the gradient, decay is that of an L2 term in the loss, as in the tutorial.
    update = (direction, decay) if config.decoupled_decay else (decay, direction)
    rate = optax.scale_by_learning_rate(schedule)
    return optax.chain(*update, rate, average_parameters(config.average_decay))


def _sgd(config: ConfigDict) -> optax.GradientTransformation:
    if not config.momentum:
        return optax.identity()
    return optax.trace(config.momentum, config.nesterov)


def _muon(config: ConfigDict) -> optax.GradientTransformation:
    """Muon for the kernels of `muon_layers`, SGD at a rate of its own for all else."""

    def label(params):
        mask = kernels(params, config.muon_layers, "muon_layers")
        return jax.tree.map(lambda chosen: "muon" if chosen else "sgd", mask)

    sgd = optax.chain(_sgd(config), optax.scale(config.muon_sgd_rate / config.learning_rate))
    return optax.partition({"muon": optax.chain(_sgd(config), scale_by_muon()), "sgd": sgd}, label)


_DIRECTIONS = {"sgd": _sgd, "muon": _muon}
NAMES = tuple(_DIRECTIONS)


def kernels(params: Any, layers: tuple[str, ...], field: str) -> Any:
    """True for the kernels of `layers`, False for all other parameters.

    Raises UsageError for a layer that the model does not have, with the `field` that names it.
    """
    for layer in layers:
        if layer not in params:
            raise unknown(f"layer in config.optim.{field}", layer, params)
    return {
        layer: {name: layer in layers and name == "kernel" for name in weights}
        for layer, weights in params.items()
    }


def l2_penalty(params: Any, config: ConfigDict) -> jax.Array:
    """weight_decay · the sum of ½‖kernel‖² over decay_layers: what the decay is the gradient of.

    0 for a decoupled decay, which is the gradient of nothing.
    """
    if config.decoupled_decay:
        return jnp.float32(0)
    squares = [jnp.sum(jnp.square(params[layer]["kernel"])) for layer in config.decay_layers]
    return 0.5 * config.weight_decay * jnp.sum(jnp.array(squares))


# -- the average of the parameters ---------------------------------------------------------------


class AverageState(NamedTuple):
    updates: jax.Array  # int32, how many so far
    average: Any  # like the parameters


def average_parameters(decay: float) -> optax.GradientTransformation:
    """Keeps a moving average of the parameters, and passes the updates on; the last of a chain.

    After update n (the first is 1): average -= (1 - d)·(average - parameters) with
    d = min(decay, (1 + n)/(10 + n)), as tf.train.ExponentialMovingAverage does with the global
    step. optax.ema averages the updates instead.
    """

    def init(params):
        return AverageState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates, state, params):
        count = state.updates + 1
        rate = 1 - jnp.minimum(decay, (1 + count) / (10 + count))
        average = jax.tree.map(
            lambda a, p: a - rate * (a - p), state.average, optax.apply_updates(params, updates)
        )
        return updates, AverageState(count, average)

    return optax.GradientTransformation(init, update)


def averages(opt_state: Any) -> Any:
    """The averaged parameters in the state of a chain made here."""
    return optax.tree_utils.tree_get(opt_state, "average")


# -- float16 -------------------------------------------------------------------------------------


class LossScaleState(NamedTuple):
    scale: jax.Array  # float32, what the loss is multiplied by
    streak: jax.Array  # int32, finite steps since the scale last changed
    inner: Any


def scale_loss(
    optimizer: optax.GradientTransformation, start: float, patience: int = 2_000
) -> optax.GradientTransformation:
    """Makes `optimizer` take the gradients of a scaled loss, where float16 would underflow.

    The loss is to be multiplied by `loss_scale(opt_state)`. Gradients that overflow are not
    applied and halve the scale; after `patience` steps without, it doubles. A step that was not
    applied does not count for the schedule either. (Micikevicius et al., Mixed Precision Training,
    section 3.2.)
    """

    def init(params):
        return LossScaleState(jnp.float32(start), jnp.int32(0), optimizer.init(params))

    def update(gradients, state, params):
        gradients = jax.tree.map(lambda g: g / state.scale, gradients)
        finite = all_finite(gradients)
        updates, inner = optimizer.update(gradients, state.inner, params)
        updates = jax.tree.map(lambda u: jnp.where(finite, u, 0), updates)
        inner = jax.tree.map(lambda new, old: jnp.where(finite, new, old), inner, state.inner)
        streak = jnp.where(finite, state.streak + 1, 0)
        grow = streak >= patience
        factor = jnp.where(finite, jnp.where(grow, 2.0, 1.0), 0.5)
        scale = jnp.clip(state.scale * factor, 1.0, 2.0**24)
        return updates, LossScaleState(scale, jnp.where(grow, 0, streak), inner)

    return optax.GradientTransformation(init, update)


def loss_scale(opt_state: Any) -> jax.Array | float:
    """What to multiply the loss by: 1 for an optimiser without `scale_loss`."""
    return opt_state.scale if isinstance(opt_state, LossScaleState) else 1.0


def all_finite(tree: Any) -> jax.Array:
    """Whether no value of `tree` is NaN or infinite; a bool scalar."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
