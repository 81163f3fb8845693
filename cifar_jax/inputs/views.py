"""Several views of the same images, and their weights."""

import jax
import jax.numpy as jnp

from cifar_jax.inputs.crop import Size

VIEWS = (1, 2, 6, 10)


def crops(images: jax.Array, size: Size, count: int) -> list[jax.Array]:
    """Of [B, H, W, C], `count` crops [B, *size, C], the central one first.

    2: also mirrored. 6: the centre, and one pixel up and left and down and right of it, and all of
    them mirrored (Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, section 3.5). What lies
    beyond `images` is reflected; where they come padded, as by `random_crop`, the edge of a shifted
    crop is the padding, and with its `fill="zero"` that is zeros. 10: the centre and the four
    corners, and all of them mirrored (Krizhevsky et al., ImageNet Classification with Deep CNNs,
    section 4.1).
    """
    height, width = size
    bottom, right = images.shape[1] - height, images.shape[2] - width
    top, left = bottom // 2, right // 2
    places = [(top, left)]
    if count == 6:
        images = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
        places = [(top + 1, left + 1), (top, left), (top + 2, left + 2)]
    if count == 10:
        places += [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    found = [images[:, top : top + height, left : left + width] for top, left in places]
    return found + [crop[:, :, ::-1] for crop in found] if count > 1 else found


def weights(count: int) -> tuple[float, ...]:
    """Of each of the `crops`; their sum is 1. Of 6, the centre and its mirror image have a half."""
    if count == 6:
        return (0.25, 0.125, 0.125) * 2
    return (1 / count,) * count
