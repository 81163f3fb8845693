"""Cutout (DeVries and Taylor, Improved Regularization of CNNs with Cutout)."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cifar_jax.inputs.transform import Info


def cutout(key: jax.Array, image: jax.Array, _: Info, config: ConfigDict) -> jax.Array:
    """0 in a random square within the image: black before `standardize`, and after it the mean.

    In the paper the square may be partly outside, and less of the image is lost.
    """
    side = config.cutout.size
    high = jnp.array(image.shape[:2]) - side + 1
    top, left = jax.random.randint(key, (2,), 0, high)
    return jnp.where(inside(image.shape, (top, left), (side, side)), 0.0, image)


def inside(
    shape: tuple[int, ...],
    start: tuple[jax.Array, jax.Array],
    size: tuple[jax.Array | int, jax.Array | int],
) -> jax.Array:
    """bool [H, W, 1], true in the rectangle from `start` (top, left) on, of `size`, of an image of
    `shape` [H, W, C]."""
    rows, columns = (jnp.arange(side) - first for side, first in zip(shape, start, strict=False))
    within = [
        (place >= 0) & (place < side) for place, side in zip((rows, columns), size, strict=True)
    ]
    return (within[0][:, None] & within[1])[..., None]
