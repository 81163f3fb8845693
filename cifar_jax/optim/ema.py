"""The exponential moving average (EMA) of parameters and of a model's state."""

from typing import Any

import jax
import jax.numpy as jnp


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
