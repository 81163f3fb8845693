"""The listed transforms as one object: training inputs and evaluation inputs."""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cifar_jax.errors import UsageError
from cifar_jax.inputs import checks, crop, mix, views
from cifar_jax.inputs.mix import Targets
from cifar_jax.inputs.registry import BATCH, CROPS, IMAGE, ORDER_STREAM, Listed, names
from cifar_jax.inputs.transform import Info

_NO_STEP = 2**32 - 1  # whose key no training step has: that of what images keep for all epochs


def image_shape(config: ConfigDict, channels: int = 3) -> tuple[int, int, int]:
    """(height, width, channels) that the model sees by `config.inputs`."""
    return (*crop.size(config), channels)


def mixes(config: ConfigDict) -> bool:
    """Whether images are mixed in pairs, so that a device needs an even number of them."""
    return any(name in BATCH for name in names(config.transforms))


def make(
    config: ConfigDict,
    picture_shape: tuple[int, ...],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
) -> "Inputs":
    """Binds `config.inputs` to pictures of one shape [H, W, C], as they lie in the dataset.

    `mean` and `std` by channel are of the training images on the 0..255 scale: needed to
    standardise by the dataset. Raises UsageError for pictures that the list cannot bring to size,
    or where mean and deviation are missing.
    """
    checks.check(config, picture_shape)
    by_dataset = "standardize" in names(config.transforms) and config.standardize.by == "dataset"
    if by_dataset and (mean is None or std is None):
        raise UsageError(
            "config.inputs.standardize.by = 'dataset' needs the mean and deviation of the "
            "training images, which are not known here."
        )
    return Inputs(config, tuple(picture_shape), mean, std, seed)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What happens to images before the model sees them. Bound to its config by `make`."""

    config: ConfigDict
    picture_shape: tuple[int, ...]
    mean: Sequence[float] | None
    std: Sequence[float] | None
    seed: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) that the model sees."""
        return image_shape(self.config, self.picture_shape[-1])

    def train(self, keys: jax.Array, batch: dict[str, jax.Array]) -> tuple[jax.Array, Targets]:
        """Keys [B] of the images in this step; "image" uint8 [B, H, W, C], "label", "index" and
        "epoch" int32 [B] -> float32 [B, *image_shape] and what the model shall say of them.

        Where pairs are mixed, B must be even, and pairs of the global batch not be split.
        """
        images = jax.vmap(self._transformed)(keys, batch["image"], batch["epoch"], batch["index"])
        targets = Targets(batch["label"])
        for name in names(self.config.transforms):
            if name in BATCH:
                own = jax.vmap(jax.random.fold_in, (0, None))(keys, BATCH[name].stream)
                function = BATCH[name].function
                images, targets = mix.neighbours(function, own, images, targets, self.config)
        return images, targets

    def evaluate(self, images: jax.Array, count: int = 1) -> list[jax.Array]:
        """uint8 [B, H, W, C] -> `count` views, each float32 [B, *image_shape]; nothing is drawn.

        The central crop first (`views.crops`); `views.weights` are what they weigh.
        """
        for name in names(self.config.transforms):
            if name in CROPS:
                images = jax.vmap(partial(CROPS[name], config=self.config))(images)
        found = views.crops(images, crop.size(self.config), count)
        return [jax.vmap(self._settled)(view.astype(jnp.float32)) for view in found]

    def _transformed(
        self, key: jax.Array, image: jax.Array, epoch: jax.Array, index: jax.Array
    ) -> jax.Array:
        info = self._info(epoch, index)
        for entry in self.config.transforms:
            if entry in BATCH:
                break
            if not (entry in IMAGE and IMAGE[entry].of_bytes):
                image = image.astype(jnp.float32)
            image = self._apply(entry, key, image, info)
        return image.astype(jnp.float32)

    def _apply(self, entry: Listed, key: jax.Array, image: jax.Array, info: Info) -> jax.Array:
        if isinstance(entry, str):
            stream = IMAGE[entry].stream
            own = info._replace(key=jax.random.fold_in(info.key, stream))
            return IMAGE[entry].function(jax.random.fold_in(key, stream), image, own, self.config)
        orders = []
        for first, second in (entry, entry[::-1]):
            orders.append(self._apply(second, key, self._apply(first, key, image, info), info))
        coin = jax.random.bernoulli(jax.random.fold_in(key, ORDER_STREAM))
        return jnp.where(coin, orders[1], orders[0])

    def _settled(self, image: jax.Array) -> jax.Array:
        """What is done to each image in evaluation, too."""
        unused = jax.random.key(0)
        for name in names(self.config.transforms):
            if name in IMAGE and IMAGE[name].always:
                image = self._apply(name, unused, image, self._info(jnp.int32(0), jnp.int32(0)))
        return image

    def _info(self, epoch: jax.Array, index: jax.Array) -> Info:
        key = jax.random.fold_in(jax.random.key(self.seed), _NO_STEP)
        moments = self.mean, self.std
        mean, std = (None if x is None else jnp.asarray(x, jnp.float32) for x in moments)
        return Info(epoch, index, jax.random.fold_in(key, index), mean, std)
