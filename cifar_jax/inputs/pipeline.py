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

_NO_STEP = 2**32 - 1  # no training step has this number: keys what an image keeps for all epochs


def image_shape(config: ConfigDict, channels: int = 3) -> tuple[int, int, int]:
    """(height, width, channels) that the model sees by `config.inputs`."""
    return (*crop.size(config), channels)


def mixes(config: ConfigDict) -> bool:
    """Whether images are mixed in pairs, so that a device needs an even number of them."""
    return any(name in BATCH for name in names(config.transforms))


def make(
    config: ConfigDict,
    source_shape: tuple[int, ...],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
) -> "Inputs":
    """Binds `config.inputs` to images of `source_shape` [H, W, C], that of the dataset.

    `mean` and `std` by channel are of the training images on the 0..255 scale: needed to
    standardise by the dataset. Raises UsageError for images that the list cannot bring to size, or
    where mean and deviation are missing.
    """
    checks.check(config, source_shape)
    by_dataset = "standardize" in names(config.transforms) and config.standardize.by == "dataset"
    if by_dataset and (mean is None or std is None):
        raise UsageError(
            "config.inputs.standardize.by = 'dataset' needs the mean and deviation of the "
            "training images, which are not known here."
        )
    return Inputs(config, tuple(source_shape), mean, std, seed)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What happens to images before the model sees them. Made by `make`."""

    config: ConfigDict
    source_shape: tuple[int, ...]
    mean: Sequence[float] | None
    std: Sequence[float] | None
    seed: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) that the model sees."""
        return image_shape(self.config, self.source_shape[-1])

    def train(self, keys: jax.Array, batch: dict[str, jax.Array]) -> tuple[jax.Array, Targets]:
        """Keys [B] of the images in this step; "image" uint8 [B, H, W, C], "label", "index" and
        "epoch" int32 [B] -> float32 [B, *image_shape] and the targets of the loss.

        Where images are mixed in pairs, B must be even, and no pair of the global batch be split.
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

        The central crop first (`views.crops`); their weights are `views.weights`.
        """
        for name in names(self.config.transforms):
            if name in CROPS:
                crop_of = partial(CROPS[name], config=self.config, views=count)
                images = jax.vmap(crop_of)(images)
        found = views.crops(images, crop.size(self.config), count)
        return [jax.vmap(self._eval_transforms)(view.astype(jnp.float32)) for view in found]

    def _transformed(
        self, key: jax.Array, image: jax.Array, epoch: jax.Array, index: jax.Array
    ) -> jax.Array:
        info = self._info(epoch, index)
        for entry in self.config.transforms:
            if entry in BATCH:
                break
            if not (entry in IMAGE and IMAGE[entry].takes_uint8):
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

    def _eval_transforms(self, image: jax.Array) -> jax.Array:
        """The transforms that are applied in evaluation, too."""
        unused = jax.random.key(0)
        for name in names(self.config.transforms):
            if name in IMAGE and IMAGE[name].in_eval:
                image = self._apply(name, unused, image, self._info(jnp.int32(0), jnp.int32(0)))
        return image

    def _info(self, epoch: jax.Array, index: jax.Array) -> Info:
        key = jax.random.fold_in(jax.random.key(self.seed), _NO_STEP)
        moments = self.mean, self.std
        mean, std = (None if x is None else jnp.asarray(x, jnp.float32) for x in moments)
        return Info(epoch, index, jax.random.fold_in(key, index), mean, std)
