"""The types of transforms: pure functions of one image, or of a pair of images of a batch."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from ml_collections import ConfigDict


class Info(NamedTuple):
    """What an image transform receives beside the image."""

    epoch: jax.Array  # int32, how many times the training split was seen before
    index: jax.Array  # type: ignore[assignment]  # int32, the image's place in the training split
    key: jax.Array  # the image's own, by (seed, index): the same in every epoch
    mean: jax.Array | None = None  # float32 [C] of the training images, on the 0..255 scale
    std: jax.Array | None = None  # float32 [C], likewise


# (key, image float32 [H, W, C], info, config.inputs) -> image. The key is that of the image in this
# step; it is the transform's own, so that no draw depends on which others are listed.
ImageTransform = Callable[[jax.Array, jax.Array, Info, ConfigDict], jax.Array]

# (key, pair float32 [2, H, W, C], config.inputs) -> (pair, weight float32 [] of the label
# of each image; its partner's has the rest).
PairTransform = Callable[[jax.Array, jax.Array, ConfigDict], tuple[jax.Array, jax.Array]]
