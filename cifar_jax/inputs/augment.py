"""Distortions for training and the crop for evaluation: pure functions of one uint8 image.

The order is the tutorial's: random crop, left-right flip, brightness, contrast, standardise, with
nothing clipped in between. The tutorial suggests randomising the order of brightness and contrast;
`random_order` does. Without clipping the two differ by rounding alone, and standardising removes
the brightness again: only a network that is fed unstandardised pictures would see either.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict


class Distortion(NamedTuple):
    """What happens to one image; scalars, except `offset`."""

    offset: jax.Array  # int32 [2], top and left of the crop
    flip: jax.Array  # bool
    brightness: jax.Array  # float32, added to every value
    contrast: jax.Array  # float32, multiplies the distance from the channel's mean
    contrast_first: jax.Array  # bool


def draw(key: jax.Array, shape: tuple[int, ...], config: ConfigDict) -> Distortion:
    """Draws the distortion of one image of `shape` [H, W, C] from `config.augment`.

    What is switched off leaves the image alone: the central crop, no flip, 0 added, times 1.
    """
    offset_key, flip_key, brightness_key, contrast_key, order_key = jax.random.split(key, 5)
    room = jnp.array([shape[0] - config.crop_size, shape[1] - config.crop_size])
    offset = room // 2
    flip, brightness, contrast, contrast_first = map(jnp.asarray, (False, 0.0, 1.0, False))
    if config.random_crop:
        shift = config.max_shift or max(shape)
        low, high = jnp.maximum(offset - shift, 0), jnp.minimum(offset + shift, room)
        offset = jax.random.randint(offset_key, (2,), low, high + 1)
    if config.flip:
        flip = jax.random.bernoulli(flip_key)
    if config.brightness:
        delta = config.brightness_delta
        brightness = jax.random.uniform(brightness_key, minval=-delta, maxval=delta)
    if config.contrast:
        contrast = jax.random.uniform(
            contrast_key, minval=config.contrast_lower, maxval=config.contrast_upper
        )
    if config.random_order:
        contrast_first = jax.random.bernoulli(order_key)
    return Distortion(offset, flip, brightness, contrast, contrast_first)


def apply(image: jax.Array, distortion: Distortion, config: ConfigDict) -> jax.Array:
    """uint8 [H, W, C] -> float32 [crop, crop, C], distorted but not yet standardised."""
    top, left = distortion.offset
    size = (config.crop_size, config.crop_size, image.shape[-1])
    image = lax.dynamic_slice(image, (top, left, 0), size).astype(jnp.float32)
    image = jnp.where(distortion.flip, image[:, ::-1], image)
    brightness_first = adjust_contrast(image + distortion.brightness, distortion.contrast)
    if not config.random_order:
        return brightness_first
    contrast_first = adjust_contrast(image, distortion.contrast) + distortion.brightness
    return jnp.where(distortion.contrast_first, contrast_first, brightness_first)


def adjust_contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """(x - m)·factor + m, where m is the mean of each channel of a float32 image [H, W, C]."""
    mean = image.mean((0, 1))
    return (image - mean) * factor + mean


def standardize(image: jax.Array) -> jax.Array:
    """(x - mean) / max(stddev, 1/sqrt(n)) over all n values of a float32 image [H, W, C]."""
    centred = image - image.mean()
    stddev = jnp.sqrt(jnp.square(centred).mean())
    return centred / jnp.maximum(stddev, image.size**-0.5)


def distort(keys: jax.Array, images: jax.Array, config: ConfigDict) -> jax.Array:
    """Training inputs: keys [B] and uint8 [B, H, W, C] -> float32 [B, crop, crop, C]."""

    def one(key, image):
        distortion = draw(key, image.shape, config)
        return standardize(apply(image, distortion, config))

    return jax.vmap(one)(keys, images)


def central_crop(images: jax.Array, crop_size: int) -> jax.Array:
    """Evaluation inputs: uint8 [B, H, W, C] -> float32 [B, crop, crop, C], standardised."""
    return views(images, crop_size, 1)[0]


VIEWS = (1, 2, 10)


def views(images: jax.Array, crop_size: int, count: int) -> list[jax.Array]:
    """Several looks at the same images, the central crop first; each as `central_crop` gives it.

    2: also mirrored. 10: the centre and the four corners, and all of them mirrored (Krizhevsky et
    al., ImageNet Classification with Deep CNNs, section 4.1).
    """
    bottom, right = images.shape[1] - crop_size, images.shape[2] - crop_size
    places = [(bottom // 2, right // 2)]
    if count == 10:
        places += [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    crops = [images[:, top : top + crop_size, left : left + crop_size] for top, left in places]
    if count > 1:
        crops += [crop[:, :, ::-1] for crop in crops]
    return [jax.vmap(standardize)(crop.astype(jnp.float32)) for crop in crops]
