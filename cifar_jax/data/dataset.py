"""Datasets: images with labels, and the description of them that a workdir keeps."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

CHANNELS = (1, 3, 4)  # grey, RGB, RGB with transparency
MAX_SIDE = 1 << 14  # of an image, in pixels
_MAX_IMAGES, _MAX_CLASSES = 1 << 40, 1 << 20
_LOAD_IMAGES = 10_000
_MANY_IMAGES = 200_000  # that take long to measure
_CHUNK_IMAGES = 2_000  # measured at once; below 2**16, which keeps their sums within uint32


Moments = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation by channel


class Images(Protocol):
    """A split, wherever it is stored: a `Split` in memory, `shards.Shards`, a `splits.Part`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: H, W, C."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The images uint8 [n, H, W, C] and labels int32 [n] of `indices` [n], in any order."""

    def load(self) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """All images, labels and the class names, for a split that fits into memory."""


class Examples(Protocol):
    """A split that is iterated over once, from its first image to its last."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        """Each image, uint8 [H, W, C], with its label."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: H, W, C."""

    @property
    def class_names(self) -> Sequence[str]: ...


@dataclasses.dataclass(frozen=True)
class Split:
    """Images of one dataset in memory; C is one of `CHANNELS`."""

    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray  # int32 [N], each an index into class_names
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        return zip(self.images, self.labels, strict=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: H, W, C."""
        return self.images.shape[1:]

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.take(self.images, indices, axis=0), np.take(self.labels, indices)

    def load(self) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        return self.images, self.labels, self.class_names


@dataclasses.dataclass(frozen=True)
class Description:
    """A dataset without its images: what evaluation and report need to know of it."""

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # H, W, C
    sizes: Mapping[str, int]  # images by split, of those splits that are known
    mean: tuple[float, ...]  # of the training images' pixels by channel, on the 0..255 scale
    std: tuple[float, ...]
    class_counts: tuple[int, ...] = ()  # training images by class; () in older workdirs

    @classmethod
    def of(
        cls,
        name: str,
        train: Images,
        sizes: Mapping[str, int],
        moments: Moments | None = None,
    ) -> "Description":
        """Counts the training images of each class and, without `moments`, measures them: reads all
        of them once, `_CHUNK_IMAGES` in memory at a time."""
        height, width, channels = train.shape
        if len(train) > _MANY_IMAGES:
            print(f"Measuring mean, deviation and classes of {len(train):,} images.", flush=True)
        sums, counts = Sums(), np.zeros(len(train.class_names), np.int64)
        for images, labels in _chunks(train):
            counts += np.bincount(labels, minlength=len(counts))
            if moments is None:
                sums.add(images)
        shape, moments = (height, width, channels), moments or sums.moments()
        names, by_class = tuple(train.class_names), tuple(counts.tolist())
        return cls(name, names, shape, dict(sizes), *moments, by_class)

    def to_json(self) -> dict[str, Any]:
        """As types that JSON has; `from_json` gives back the same, to the last bit."""
        fields = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    @classmethod
    def from_json(cls, found: Any) -> "Description":
        """From untrusted JSON. Raises ValueError for anything unexpected."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(found, dict) or {"class_counts", *found} != names:
            raise ValueError(f"it is not an object of {', '.join(sorted(names))}")
        height, width, channels = _items(found["image_shape"], "image_shape", 3)
        if channels not in CHANNELS:
            raise ValueError(f"{str(channels)[:40]} is not a number of channels")
        if not isinstance(found["sizes"], dict) or "train" not in found["sizes"]:
            raise ValueError("sizes has no number of training images")
        class_names = tuple(map(text, _items(found["class_names"], "class_names")))
        counts = found.get("class_counts", [])
        if counts:
            counts = _items(counts, "class_counts", len(class_names))
        return cls(
            text(found["name"]),
            class_names,
            (whole_number(height, 1, MAX_SIDE), whole_number(width, 1, MAX_SIDE), int(channels)),
            {split: whole_number(n, 1, _MAX_IMAGES) for split, n in found["sizes"].items()},
            *read_moments(found, channels),
            tuple(whole_number(count, 0, _MAX_IMAGES) for count in counts),
        )

    def class_weights(self) -> tuple[float, ...]:
        """By class, so that each has the same share of the loss and the mean over the training
        images is 1; 0 for a class without any. Raises ValueError where no counts are known."""
        if not self.class_counts:
            raise ValueError("the classes were not counted")
        present = sum(count > 0 for count in self.class_counts)
        share = sum(self.class_counts) / present
        return tuple(share / count if count else 0.0 for count in self.class_counts)


def read_all(images: Images) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """What `images.load()` gives, read in order, `_LOAD_IMAGES` at once."""
    pixels = np.empty((len(images), *images.shape), np.uint8)
    labels = np.empty(len(images), np.int32)
    for start in range(0, len(images), _LOAD_IMAGES):
        part = np.arange(start, min(start + _LOAD_IMAGES, len(images)))
        pixels[part], labels[part] = images.read(part)
    return pixels, labels, images.class_names


# -- measuring -----------------------------------------------------------------------------------


class Sums:
    """Of images uint8 [n, H, W, C] that are added in chunks, with n below 2**16 each: the number of
    pixels, and by channel the sums of their levels and squares.

    They are whole numbers, and each moment is rounded once: the same bits for any order, cut into
    chunks and machine.
    """

    def __init__(self) -> None:
        self._count = 0
        self._levels, self._squares = np.array(0, object), np.array(0, object)  # Python's integers

    def add(self, chunk: np.ndarray) -> None:
        self._count += math.prod(chunk.shape[:-1])
        self._levels = self._levels + _sum(chunk)
        self._squares = self._squares + _sum(np.square(chunk, dtype=np.uint16))

    def moments(self) -> Moments:
        """Raises ValueError without an image."""
        if not self._count:
            raise ValueError("no image to measure")
        count, channels = self._count, list(zip(self._levels, self._squares, strict=True))
        mean = tuple(float(Fraction(s, count)) for s, _ in channels)
        variance = (Fraction(s2 * count - s * s, count * count) for s, s2 in channels)
        return mean, tuple(math.sqrt(float(value)) for value in variance)


def measure(chunks: Iterable[np.ndarray]) -> Moments:
    """Of all chunks; raises ValueError without an image."""
    sums = Sums()
    for chunk in chunks:
        sums.add(chunk)
    return sums.moments()


def _sum(chunk: np.ndarray) -> np.ndarray:
    """Over all but the last axis of whole numbers [n, H, W, C], as Python's, which never overflow.

    First over the images, then over their rows: numpy adds what lies side by side at once.
    """
    by_pixel = chunk.sum(axis=0, dtype=np.uint32)
    return by_pixel.sum(axis=0, dtype=np.uint64).sum(axis=0).astype(object)


def _chunks(images: Images) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(images), _CHUNK_IMAGES):
        yield images.read(np.arange(start, min(start + _CHUNK_IMAGES, len(images))))


# -- untrusted JSON ------------------------------------------------------------------------------


def whole_number(value: Any, least: int, most: int) -> int:
    """`value`; raises ValueError where it is not an integer from `least` to `most`."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{str(value)[:40]} is not a number from {least} to {most}")
    return value


def text(value: Any) -> str:
    """`value`; raises ValueError where it is not a string."""
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]} is not a name")
    return value


def read_moments(found: Mapping[str, Any], channels: int) -> Moments:
    """`found["mean"]` and `found["std"]`. Raises ValueError where they are not `channels` levels
    each, and KeyError where one is missing."""
    mean, std = (
        tuple(_level(level) for level in _items(found[name], name, channels))
        for name in ("mean", "std")
    )
    return mean, std


def _level(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 255:
        raise ValueError(f"{str(value)[:40]} is not a level from 0 to 255")
    return float(value)


def _items(value: Any, name: str, count: int | None = None) -> list[Any]:
    """A list of `count`, or of one at least."""
    if not isinstance(value, list) or not 0 < len(value) <= _MAX_CLASSES:
        raise ValueError(f"{name} is not a list with entries")
    if count is not None and len(value) != count:
        raise ValueError(f"{name} has {len(value)} entries and not {count}")
    return value
