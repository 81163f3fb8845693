"""Small images first: a training step on 24x24 costs about half of one on 32x32.

(Fulcrum Research, github.com/fulcrumresearch/cifar-10-speedrun, 2026.)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
from ml_collections import ConfigDict


class Curriculum(NamedTuple):
    """The size of the images in each part of a training; without parts, theirs throughout."""

    ends: tuple[int, ...] = ()  # the first step that is not of the part
    sizes: tuple[int, ...] = ()  # pixels of a side

    def apply(
        self, step: jax.Array, function: Callable[[jax.Array], Any], images: jax.Array
    ) -> Any:
        """function(images) with float32 [B, H, W, C] resized for this step, bilinearly and without
        smoothing first. What it returns has the same shapes for all sizes."""
        if not self.ends:
            return function(images)

        def resized(size: int) -> Callable[[jax.Array], Any]:
            shape = (len(images), size, size, images.shape[-1])
            return lambda x: function(jax.image.resize(x, shape, "linear", antialias=False))

        part = sum((step >= end).astype("int32") for end in self.ends)
        return lax.switch(part, [*map(resized, self.sizes), function], images)


def curriculum(config: ConfigDict, steps_per_epoch: float) -> Curriculum:
    """That of `config.inputs`."""
    ends = tuple(round(epoch * steps_per_epoch) for epoch, _ in config.curriculum)
    return Curriculum(ends, tuple(size for _, size in config.curriculum))
