"""The exponential moving average (EMA) of parameters and of a model's state; and Lookahead."""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict


def update(ema: Any, variables: Any, step: jax.Array, decay: float | jax.Array) -> Any:
    """The EMA after update number `step` (the first is 1), which gave `variables`.

    ema -= (1 - d)·(ema - variables) with d = min(decay, (1 + step)/(10 + step)), as
    tf.train.ExponentialMovingAverage does with the global step. optax.ema averages the updates
    instead. With a decay of 0 it is `variables`, to the last bit.
    """
    if not isinstance(decay, jax.Array) and decay == 0:
        return variables
    rate = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda average, value: average - rate * (average - value), ema, variables)


def lookahead(
    ema: Any, variables: Any, step: jax.Array, config: ConfigDict, num_steps: int
) -> tuple[Any, Any]:
    """(EMA, variables) after update number `step` of `num_steps`, by `config.optim` (Zhang et al.,
    Lookahead Optimizer: k steps forward, 1 step back, 2019).

    Every lookahead.every steps both become d·ema + (1 - d)·variables, with d = ema_decay ·
    (step / num_steps)^power. Up to step lookahead.start · num_steps, from which these are counted,
    the EMA is `variables`. It does not move elsewhere.
    """
    since = step - round(config.lookahead.start * num_steps)
    before, meets = since <= 0, since % config.lookahead.every == 0
    decay = config.ema_decay * (step / num_steps) ** config.lookahead.power

    def slow(average: jax.Array, value: jax.Array) -> jax.Array:
        moved = jnp.where(meets, decay * average + (1 - decay) * value, average)
        return jnp.where(before, value, moved)

    ema = jax.tree.map(slow, ema, variables)
    fast = jax.tree.map(lambda average, value: jnp.where(meets, average, value), ema, variables)
    return ema, fast
