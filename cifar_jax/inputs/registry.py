"""The transforms by name, each with the number of its random stream.

A new transform is a function, a line here and, where it has options, fields in
`configs/default.py`. A number is never used twice and never changed: it keys what a seed draws.
"""

from typing import NamedTuple

from cifar_jax.inputs import color, crop, cutout, flip, mix, standardize
from cifar_jax.inputs.transform import ImageTransform, PairTransform


class OfImage(NamedTuple):
    stream: int
    function: ImageTransform
    takes_uint8: bool = False  # as well as float32: a crop comes before the conversion
    in_eval: bool = False  # is applied in evaluation, too; draws nothing


class OfPair(NamedTuple):
    stream: int
    function: PairTransform


ORDER_STREAM = 4  # in which of two orders a pair of transforms is applied

IMAGE = {
    "random_crop": OfImage(0, crop.random_crop, takes_uint8=True),
    "flip": OfImage(1, flip.flip),
    "brightness": OfImage(2, color.brightness),
    "contrast": OfImage(3, color.contrast),
    "color": OfImage(5, color.color),
    "cutout": OfImage(6, cutout.cutout),
    "random_resized_crop": OfImage(7, crop.random_resized_crop),
    "central_crop": OfImage(10, crop.central_crop, takes_uint8=True),
    "standardize": OfImage(11, standardize.standardize, in_eval=True),
}
BATCH = {  # after those of images
    "mixup": OfPair(8, mix.mixup),
    "cutmix": OfPair(9, mix.cutmix),
}
CROPS = crop.FOR_EVAL  # of which a list has at most one

Listed = str | tuple[str, str]


def names(transforms: tuple[Listed, ...]) -> list[str]:
    """The names in a list of transforms, in its order, those in pairs included."""
    return [name for entry in transforms for name in ([entry] if isinstance(entry, str) else entry)]
