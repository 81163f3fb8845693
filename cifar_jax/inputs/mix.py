"""Mixes of two images and of their labels.

An image's partner is its neighbour in the global batch, 2k with 2k + 1, and a number is drawn for
the pair: neither depends on how a batch is split over devices, as long as no pair is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cifar_jax.inputs.cutout import inside
from cifar_jax.inputs.transform import PairTransform


class Targets(NamedTuple):
    """The targets of a batch: `weight` · label + (1 - weight) · other label. Without mixing,
    `label` alone, and the others are None."""

    label: jax.Array  # int32 [B], the images' own
    other_label: jax.Array | None = None  # int32 [B], the partners'
    weight: jax.Array | None = None  # float32 [B], from 0 to 1


def mixup(key: jax.Array, pair: jax.Array, config: ConfigDict) -> tuple[jax.Array, jax.Array]:
    """λ · image + (1 - λ) · partner (Zhang et al., mixup: Beyond Empirical Risk Minimization)."""
    weight = _weight(key, config.mixup.alpha, config.mixup.probability)
    return weight * pair + (1 - weight) * pair[::-1], weight


def cutmix(key: jax.Array, pair: jax.Array, config: ConfigDict) -> tuple[jax.Array, jax.Array]:
    """The partner's pixels in a random rectangle of the image's aspect ratio, which has 1 - λ of
    the area before it is clipped to the image (Yun et al., CutMix)."""
    _, height, width, _ = pair.shape
    draw_key, place_key = jax.random.split(key)
    kept = _weight(draw_key, config.cutmix.alpha, config.cutmix.probability)
    sides = jnp.round(jnp.array([height, width]) * jnp.sqrt(1 - kept)).astype(jnp.int32)
    centre = jax.random.randint(place_key, (2,), 0, jnp.array([height, width]))
    top, left = centre - sides // 2
    box = inside(pair.shape[1:], (top, left), (sides[0], sides[1]))
    return jnp.where(box, pair[::-1], pair), 1 - box.mean()


def _weight(key: jax.Array, alpha: float, probability: float) -> jax.Array:
    """λ ~ Beta(alpha, alpha) with `probability`, and otherwise 1."""
    coin_key, beta_key = jax.random.split(key)
    drawn = jax.random.beta(beta_key, alpha, alpha)
    return jnp.where(jax.random.bernoulli(coin_key, probability), drawn, 1.0)


def neighbours(
    function: PairTransform,
    keys: jax.Array,
    images: jax.Array,
    targets: Targets,
    config: ConfigDict,
) -> tuple[jax.Array, Targets]:
    """Mixes each image 2k of float32 [B, H, W, C] with 2k + 1, by the key of 2k; B must be even.

    Targets that are mixed already are mixed again: the two labels of a pair stay the same two.
    """
    pairs = images.reshape(-1, 2, *images.shape[1:])
    mixed, weight = jax.vmap(lambda key, pair: function(key, pair, config))(keys[::2], pairs)
    weight = jnp.repeat(weight, 2)
    if targets.weight is not None:
        weight = weight * targets.weight + (1 - weight) * (1 - targets.weight)
    other_label = targets.label.reshape(-1, 2)[:, ::-1].reshape(-1)
    return mixed.reshape(images.shape), Targets(targets.label, other_label, weight)
