"""A dataset's splits by name: 'train' and 'test' as their source or its shards have them, and
'validation', drawn from the training images where config.data.validation asks for it.

Which images those are is a pure function of (seed, number of training images, number drawn): the
same in every process and start.
"""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from cifar_jax import files
from cifar_jax.data import batches, shards, sources
from cifar_jax.data.dataset import Description, Images, Split, read_all
from cifar_jax.errors import UsageError, unknown

NAMES = ("train", "validation", "test")
_DRAW = np.array(2**64 - 1, np.uint64)  # keys the permutation that draws them, as no epoch does


class Part:
    """Some images of a split, read from wherever that is stored."""

    def __init__(self, of: Images, indices: np.ndarray):
        """`indices` [n] are places in `of`, each below its number of images."""
        self.of, self._indices = of, indices
        self.shape, self.class_names = of.shape, of.class_names

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.of.read(self._indices[indices])

    def load(self) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        return read_all(self)


def open(config: ConfigDict, split: str, seed: int) -> Images:
    """The split of the dataset of `config` (config.data), from the shards of `config.shards` where
    it names some. `seed` draws the validation images; those of 'train' are the rest.

    Raises UsageError for an unknown split, for 'validation' where none is asked for and for one
    that leaves no training image; UserError as `sources.load` and `shards.open` do.
    """
    if split not in NAMES:
        raise unknown("split", split, NAMES)
    if split == "validation" and not config.validation:
        raise UsageError(
            "There is no validation split: config.data.validation = 0. Set the share of the "
            "training images to hold out, as 0.1, or their number, and train with it."
        )
    found = _open(config, "test" if split == "test" else "train")
    if split == "test" or not config.validation:
        return found
    drawn = validation_indices(seed, len(found), validation_count(config, len(found)))
    if split == "validation":
        return Part(found, drawn)
    return Part(found, np.setdiff1d(np.arange(len(found)), drawn, assume_unique=True))


def load(config: ConfigDict, split: str, seed: int) -> Split:
    """As `open`, in memory."""
    return Split(*open(config, split, seed).load())


def title(config: ConfigDict, images: Images) -> str:
    """The name of the dataset of `config` (config.data), of which `images` were opened: as its
    shards say, or its source."""
    stored = images.of if isinstance(images, Part) else images
    known = stored.name if isinstance(stored, shards.Shards) else None  # None: of earlier versions
    return sources.find(config).title(config) if known is None else known


def describe(config: ConfigDict, train: Images, known: Description | None = None) -> Description:
    """Of the dataset of `config` (config.data), of which `train` was opened.

    `known` is the description since the run's first start, which is not measured again. Raises
    UsageError where it is of another dataset.
    """
    name, sizes = title(config, train), {"train": len(train)}
    if isinstance(train, Part):
        sizes["validation"] = len(train.of) - len(train)
    if not known:
        moments = train.moments if isinstance(train, shards.Shards) else None
        return Description.of(name, train, sizes, moments)
    for what, was, now in (
        ("name", known.name, name),
        ("image shape", known.image_shape, tuple(train.shape)),
        ("number of training images", known.sizes["train"], len(train)),
        ("class names", known.class_names, tuple(train.class_names)),
    ):
        if was != now:
            raise UsageError(
                f"The workdir's run was trained on another dataset: {what} {short(was)} there, "
                f"{short(now)} now. Check --config.data.dir, or choose another --workdir."
            )
    return known


def shards_dir(config: ConfigDict) -> Path:
    """Absolute. Raises UsageError where `config.shards` is not a path."""
    return files.resolve(config.shards, "config.data.shards")


def check(config: ConfigDict) -> None:
    """Raises UsageError for a `config.validation` that is neither a share nor a number."""
    value = config.validation
    if not (0 <= value < 1 or (value >= 1 and float(value).is_integer())):
        raise UsageError(
            f"config.data.validation = {value}, expected a share from 0 to below 1, or a whole "
            "number of images."
        )


def validation_count(config: ConfigDict, num_images: int) -> int:
    """How many of `num_images` training images `config.validation` holds out. Raises UsageError
    where that is none or all."""
    value = config.validation
    count = round(value * num_images) if value < 1 else int(value)
    if not 0 < count < num_images:
        raise UsageError(
            f"config.data.validation = {value} holds out {count:,} of {num_images:,} training "
            "images. Set a share or a number that leaves some for both."
        )
    return count


def validation_indices(seed: int, num_images: int, count: int) -> np.ndarray:
    """The places of `count` validation images among `num_images`, ascending; int64 [count]."""
    return np.sort(batches.permute(np.arange(count), num_images, seed, _DRAW))


def _open(config: ConfigDict, split: str) -> Images:
    if config.shards:
        return shards.open(shards_dir(config), split)
    return sources.load(config, split)


def short(value: object) -> str:
    """Its `repr`, of which a message has the first 100 characters."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
