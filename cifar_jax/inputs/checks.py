"""Checks of `config.inputs`: one line for whatever cannot work."""

import math
from typing import Any

from ml_collections import ConfigDict

from cifar_jax.errors import UsageError, unknown
from cifar_jax.inputs import crop, standardize
from cifar_jax.inputs.registry import BATCH, CROPS, IMAGE, names

_POSITIVE = {  # above 0; all other numbers are 0 or more
    *("mixup.alpha", "cutmix.alpha", "cutout.size"),
    *("random_resized_crop.area_lower", "random_resized_crop.ratio_lower"),
    "random_resized_crop.central",
}
_SHARES = {
    *("mixup.probability", "cutmix.probability"),
    *("random_resized_crop.area_upper", "random_resized_crop.central"),
}


def validate(config: ConfigDict) -> None:
    """Raises UsageError for names, values and lists that cannot work with any images."""
    _validate_numbers(config)
    for path, value, choices in (
        ("random_crop.fill", config.random_crop.fill, crop.FILLS),
        ("standardize.by", config.standardize.by, standardize.BY),
    ):
        if value not in choices:
            raise unknown(f"config.inputs.{path}", value, choices)
    _validate_list(config.transforms)
    _validate_curriculum(config)
    if "cutout" in names(config.transforms) and config.cutout.size > min(crop.size(config)):
        raise UsageError(
            f"config.inputs.cutout.size = {config.cutout.size} is larger than config.inputs.size "
            f"= {config.size}."
        )


def check(config: ConfigDict, source_shape: tuple[int, ...]) -> None:
    """Raises UsageError unless the transforms bring images of `source_shape` [H, W, …] to size."""
    wanted, (height, width) = crop.size(config), source_shape[:2]
    (kind,) = [name for name in names(config.transforms) if name in CROPS] or [""]
    if not kind and wanted != (height, width):
        raise UsageError(
            f"config.inputs.size = {config.size}, but the images are {height}x{width} and no crop "
            f"is among config.inputs.transforms. Add one of {', '.join(CROPS)}."
        )
    padding = config.random_crop.padding if kind == "random_crop" else 0
    larger = wanted[0] > height + 2 * padding or wanted[1] > width + 2 * padding
    if larger and kind != "random_resized_crop":
        raise UsageError(
            f"config.inputs.size = {config.size} is larger than the images, {height}x{width}."
        )


def _validate_numbers(config: ConfigDict) -> None:
    """Every number is finite, and 0 or more; of two bounds the lower comes first."""
    if len(config.size) not in (1, 2) or not all(
        isinstance(side, int) and side > 0 for side in config.size
    ):
        raise UsageError(
            f"config.inputs.size = {config.size}, expected height and width, or one number above 0."
        )
    for group, options in config.items():
        for name, value in options.items() if isinstance(options, ConfigDict) else ():
            path = f"{group}.{name}"
            if isinstance(value, int | float):
                _validate_number(path, value)
            if name.endswith("upper") and value < options[name.replace("upper", "lower")]:
                lower = name.replace("upper", "lower")
                raise UsageError(
                    f"config.inputs.{group}.{lower} = {options[lower]} is above {name} = {value}."
                )


def _validate_number(path: str, value: float) -> None:
    positive = path in _POSITIVE
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        expected = "more than 0" if positive else "0 or more"
        raise UsageError(f"config.inputs.{path} = {value}, expected {expected}.")
    if path in _SHARES and value > 1:
        raise UsageError(f"config.inputs.{path} = {value}, expected 1 or less.")


def _validate_curriculum(config: ConfigDict) -> None:
    before = 0.0
    for entry in config.curriculum:
        pair = isinstance(entry, tuple | list) and len(entry) == 2
        if not (pair and isinstance(entry[0], int | float) and isinstance(entry[1], int)):
            raise UsageError(
                f"config.inputs.curriculum has {entry!r}, expected pairs of the epoch before which "
                "images have a size, and their pixels a side, as ((3, 24), (6, 28))."
            )
        epoch, size = entry
        if not before < epoch < math.inf:
            raise UsageError(
                f"config.inputs.curriculum has epoch {epoch} after {before}, expected later ones."
            )
        if not 0 < size <= min(crop.size(config)):
            raise UsageError(
                f"config.inputs.curriculum has images of {size} pixels, expected 1 to those of "
                f"config.inputs.size = {config.size}."
            )
        before = epoch


def _validate_list(transforms: tuple[Any, ...]) -> None:
    for entry in transforms:
        pair = isinstance(entry, tuple) and len(entry) == 2
        if not all(isinstance(name, str) for name in (entry if pair else (entry,))):
            raise UsageError(
                f"config.inputs.transforms has {entry!r}, expected a name, or two of them in "
                "brackets for a random order."
            )
    listed = names(transforms)
    for place, name in enumerate(listed):
        if name not in {**IMAGE, **BATCH}:
            raise unknown("transform in config.inputs.transforms", name, [*IMAGE, *BATCH])
        if name in listed[:place]:  # it would draw the same numbers again
            raise UsageError(f"config.inputs.transforms has '{name}' twice, expected it once.")
        if name in IMAGE and place and listed[place - 1] in BATCH:
            raise UsageError(
                f"config.inputs.transforms has '{name}' after '{listed[place - 1]}', expected what "
                "mixes images at the end."
            )
    crops = [name for name in listed if name in CROPS]
    if len(crops) > 1:
        raise UsageError(
            f"config.inputs.transforms has '{crops[0]}' and '{crops[1]}', expected one crop."
        )
    if crops and "standardize" in listed[: listed.index(crops[0])]:  # an evaluation crops first
        raise UsageError(
            f"config.inputs.transforms has 'standardize' before '{crops[0]}', expected the crop "
            "first."
        )
    pairs = [entry for entry in transforms if isinstance(entry, tuple)]
    for name in names(tuple(pairs)):
        if name in BATCH or name in CROPS:
            raise UsageError(
                f"config.inputs.transforms has '{name}' in a pair, expected it on its own."
            )
    if len(pairs) > 1:  # one coin is drawn
        raise UsageError(f"config.inputs.transforms has {len(pairs)} pairs, expected one at most.")
