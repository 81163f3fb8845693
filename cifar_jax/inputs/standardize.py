"""Standardisation, in training and in evaluation."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cifar_jax.inputs.transform import Info

BY = ("image", "dataset")


def standardize(_key: jax.Array, image: jax.Array, info: Info, config: ConfigDict) -> jax.Array:
    """By the image's own mean and deviation, as the tutorial; or by the training images'.

    A channel that is the same in all training images has no deviation, and is not divided.
    """
    if config.standardize.by == "image":
        return by_image(image)
    assert info.mean is not None  # `make` refuses a list that needs it, without
    assert info.std is not None
    return (image - info.mean) / jnp.where(info.std > 0, info.std, 1.0)


def by_image(image: jax.Array) -> jax.Array:
    """(x - mean) / max(stddev, 1/sqrt(n)) over all n values of a float32 image [H, W, C]."""
    centred = image - image.mean()
    stddev = jnp.sqrt(jnp.square(centred).mean())
    return centred / jnp.maximum(stddev, image.size**-0.5)
