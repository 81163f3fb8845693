"""Brightness, contrast and colour. Nothing is clipped: values may leave 0..255.

Without clipping the order of brightness and contrast changes rounding alone, and standardising by
image removes the brightness again: only a network whose images are standardised by the dataset, or
not at all, sees either.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cifar_jax.inputs.transform import Info


def brightness(key: jax.Array, image: jax.Array, _: Info, config: ConfigDict) -> jax.Array:
    """Adds one number, uniform in [-delta, delta), to all values."""
    delta = config.brightness.delta
    return image + jax.random.uniform(key, minval=-delta, maxval=delta)


def contrast(key: jax.Array, image: jax.Array, _: Info, config: ConfigDict) -> jax.Array:
    """(x - m)·factor + m, where m is the mean of each channel and the factor uniform."""
    lower, upper = config.contrast.lower, config.contrast.upper
    factor = jax.random.uniform(key, minval=lower, maxval=upper)
    mean = image.mean((0, 1))
    return (image - mean) * factor + mean


def color(key: jax.Array, image: jax.Array, _: Info, config: ConfigDict) -> jax.Array:
    """Mixes the channels by a random matrix [C, C]: the identity, and uniform in [-delta, delta)
    added to each of its entries."""
    channels, delta = image.shape[-1], config.color.delta
    noise = jax.random.uniform(key, (channels, channels), minval=-delta, maxval=delta)
    return image @ (jnp.eye(channels) + noise)
