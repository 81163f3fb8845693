"""Crops in training; and, for each, the image from which an evaluation takes its crops."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from cifar_jax.inputs.transform import Info

FILLS = {"zero": "constant", "reflect": "reflect"}  # as jnp.pad names them

Size = tuple[int, int]  # height, width


def size(config: ConfigDict) -> Size:
    """What the model sees: `config.inputs.size`, where one number is a square's."""
    return config.size[0], config.size[-1]


def pad(image: jax.Array, padding: int, fill: str) -> jax.Array:
    """[H, W, C] -> [H + 2·padding, W + 2·padding, C], of any type."""
    if not padding:
        return image
    return jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)), FILLS[fill])


def random_crop(key: jax.Array, image: jax.Array, _: Info, config: ConfigDict) -> jax.Array:
    """A crop of the padded image, every place equally likely or `max_shift` around the centre."""
    image = pad(image, config.random_crop.padding, config.random_crop.fill)
    height, width = size(config)
    room = jnp.array([image.shape[0] - height, image.shape[1] - width])
    centre = room // 2
    shift = config.random_crop.max_shift or max(image.shape)
    low, high = jnp.maximum(centre - shift, 0), jnp.minimum(centre + shift, room)
    top, left = jax.random.randint(key, (2,), low, high + 1)
    return lax.dynamic_slice(image, (top, left, 0), (height, width, image.shape[-1]))


def central_crop(_key: jax.Array, image: jax.Array, _: Info, config: ConfigDict) -> jax.Array:
    """The centre of the image; where that is between two pixels, the upper and left one."""
    height, width = size(config)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def random_resized_crop(key: jax.Array, image: jax.Array, _: Info, config: ConfigDict) -> jax.Array:
    """A random rectangle of the image, resized (Szegedy et al., Going Deeper with Convolutions,
    section 6): bilinear, antialiased.

    Its fraction of the area is uniform, the logarithm of width / height too; a side longer than
    the image's is cut to it. The rectangle's edges may be between pixels.
    """
    height, width = size(config)
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    lower, upper = config.random_resized_crop.area_lower, config.random_resized_crop.area_upper
    area = jax.random.uniform(area_key, minval=lower, maxval=upper)
    lower, upper = config.random_resized_crop.ratio_lower, config.random_resized_crop.ratio_upper
    ratio = jnp.exp(jax.random.uniform(ratio_key, minval=jnp.log(lower), maxval=jnp.log(upper)))
    whole_sides = jnp.array(image.shape[:2], jnp.float32)
    sides = jnp.sqrt(area * whole_sides.prod() * jnp.stack([1 / ratio, ratio]))
    sides = jnp.minimum(sides, whole_sides)
    start = jax.random.uniform(place_key, (2,)) * (whole_sides - sides)
    scale = jnp.array([height, width]) / sides
    shape = (height, width, image.shape[-1])
    return jax.image.scale_and_translate(image, shape, (0, 1), scale, -start * scale, "linear")


# -- evaluation --


def whole(image: jax.Array, config: ConfigDict, views: int) -> jax.Array:
    return image


def padded(image: jax.Array, config: ConfigDict, views: int) -> jax.Array:
    """As `random_crop` pads it, where a crop may have some of the padding: a single view, which is
    the central crop, has none if it is no larger than the image."""
    fits = all(old >= new for old, new in zip(image.shape, size(config), strict=False))
    if views == 1 and fits:
        return image
    return pad(image, config.random_crop.padding, config.random_crop.fill)


def resized(image: jax.Array, config: ConfigDict, views: int) -> jax.Array:
    """float32, resized so that the model's size is `central` of the side that limits it."""
    (height, width), (old_height, old_width) = size(config), image.shape[:2]
    factor = max(height / old_height, width / old_width) / config.random_resized_crop.central
    shape = (
        max(height, round(old_height * factor)),
        max(width, round(old_width * factor)),
        image.shape[-1],
    )
    return jax.image.resize(image.astype(jnp.float32), shape, "linear")


# Image uint8 [H, W, C], config.inputs, number of views -> the image from which an evaluation takes
# its crops.
FOR_EVAL: dict[str, Callable[..., jax.Array]] = {
    "random_crop": padded,
    "central_crop": whole,
    "random_resized_crop": resized,
}
