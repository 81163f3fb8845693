"""A picture dataset that ships as code: ten shapes, drawn by numpy from a seed.

Each picture shows one shape on a cluttered background. The outline alone tells the class: colours,
textures, size, place, rotation and lighting are drawn independently of it, so a linear classifier
cannot get far, while a small convolutional network can. Every class survives a mirror image and
the crop to the central 24x24 pixels.
"""

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from cifar_jax.data import native
from cifar_jax.data.dataset import Split
from cifar_jax.data.sources import cifar
from cifar_jax.data.sources.source import Source
from cifar_jax.errors import UsageError, UserError, reason

VERSION = 1  # of the pictures: their folder on disk carries it
SIZE = 32
# Each chunk has a random stream of its own, which bounds memory and makes draw(n, s) a prefix of
# draw(n + k, s). Changing it changes every picture.
CHUNK = 256
NUM_CLUTTER = 4

# Pixel centres in pixels from the middle of the picture, shaped to broadcast against [N, 1, 1].
_ROWS, _COLUMNS = np.indices((SIZE, SIZE), np.float32).reshape(2, 1, 1, -1) - (SIZE - 1) / 2


def _box(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
    return np.maximum(abs(x) - width, abs(y) - height)


def _disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 0.85


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return abs(np.hypot(x, y) - 0.75) - 0.22


def _chevron(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(abs(x) - 0.85, 0.7 * abs(y - abs(x) + 0.4) - 0.27)


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(y, 0.866 * abs(x) - 0.5 * y) - 0.55


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # By symmetry a single straight edge, from a point of the star to the next notch, will do.
    half = np.pi / 5
    from_point = abs((np.arctan2(x, -y) + half) % (2 * half) - half)
    return np.hypot(x, y) * np.cos(from_point - 1.17) - 0.43


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.minimum(_box(x, y, 1.0, 0.28), _box(x, y, 0.28, 1.0))


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(x, y) - 0.95, 0.75 - np.hypot(x - 0.5, y))


def _bar(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _box(x, y, 1.0, 0.3)


def _bow_tie(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(abs(x) - 0.9, 0.75 * abs(y) - 0.66 * abs(x) - 0.05)


def _tee(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.minimum(_box(x, y + 0.6, 0.9, 0.27), _box(x, y - 0.1, 0.27, 0.9))


# Signed distance to the outline, negative inside, for a shape that fills about the unit disc.
_SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": _disc,
    "ring": _ring,
    "chevron": _chevron,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "crescent": _crescent,
    "bar": _bar,
    "bowtie": _bow_tie,
    "tee": _tee,
}
CLASS_NAMES = tuple(_SHAPES)


class Synthetic(Source):
    """Drawn once, then read from disk by the reader of CIFAR-10."""

    def image_size(self, config: ConfigDict) -> tuple[int, int]:
        return SIZE, SIZE

    def check(self, config: ConfigDict) -> None:
        for field, least in (("train", 1), ("test", 1), ("seed", 0)):
            if (value := config.synthetic[field]) < least:
                raise UsageError(
                    f"config.data.synthetic.{field} = {value}, expected {least} or more."
                )

    def load(self, config: ConfigDict, split: str) -> Split:
        seed = config.synthetic.seed
        num_train, num_test = config.synthetic.train, config.synthetic.test
        folder = self.dir(config) / f"synthetic-{VERSION}-{num_train}-{num_test}-{seed}"
        if not folder.exists():
            print(f"Drawing {num_train:,} training and {num_test:,} test images into {folder}")
            train, test = draw(num_train, seed=2 * seed), draw(num_test, seed=2 * seed + 1)
            try:
                native.write_folder(folder, train, test, CLASS_NAMES)
            except OSError as error:
                raise UserError(
                    f"Cannot write to {folder.parent}: {reason(error)}. "
                    "Choose another folder with --config.data.dir=DIR or $CIFAR_JAX_DATA."
                ) from error
        return cifar.read_cifar10(folder, split, ["data_batch_1.bin"])


def draw(num_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws the first `num_images` pictures of the endless sequence that belongs to `seed`.

    Returns images, uint8 [num_images, 32, 32, 3], and labels, uint8 [num_images], each an index
    into `CLASS_NAMES`. The same seed gives the same bytes (on another kind of CPU a pixel may
    round differently); different seeds share no pictures, so one can train and another test.
    """
    images = np.empty((num_images, SIZE, SIZE, 3), np.uint8)
    labels = np.empty(num_images, np.uint8)
    for start in range(0, num_images, CHUNK):
        count = min(CHUNK, num_images - start)
        chunk_images, chunk_labels = _draw_chunk(np.random.default_rng((seed, start // CHUNK)))
        images[start : start + count] = chunk_images[:count]
        labels[start : start + count] = chunk_labels[:count]
    return images, labels


def _draw_chunk(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(len(CLASS_NAMES), size=CHUNK).astype(np.uint8)
    # Shapes are lighter than the background more often than darker (were it even, the average
    # picture of every class would be the same), and never close to it in any channel.
    background = _uniform(rng, 0, 0.8, 3)
    foreground = (background + _uniform(rng, 0.3, 0.7, 3)) % 1
    canvas = _texture(rng, background)
    for _ in range(NUM_CLUTTER):
        _paint(canvas, _clutter_mask(rng), background + _uniform(rng, -0.25, 0.25, 3))
    _paint(canvas, _shape_mask(rng, labels), _texture(rng, foreground))

    angle = _uniform(rng, 0, 2 * np.pi)
    slope = _uniform(rng, 0, 0.5) / SIZE
    canvas *= 1 + slope * (np.cos(angle) * _COLUMNS + np.sin(angle) * _ROWS)
    canvas += 0.04 * rng.standard_normal(canvas.shape, np.float32)
    pixels = (255 * canvas.clip(0, 1) + 0.5).astype(np.uint8)
    return pixels.reshape(CHUNK, 3, SIZE, SIZE).transpose(0, 2, 3, 1), labels


def _uniform(rng: np.random.Generator, low: float, high: float, channels: int = 1) -> np.ndarray:
    """One number per picture (and channel), ready to broadcast over the pixels."""
    return rng.uniform(low, high, (CHUNK, channels, 1)).astype(np.float32)


def _texture(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    """`colour` [N, 3, 1] with waves of a second colour: gradients, stripes, checks or dots."""
    wave = _wave(rng)
    wave *= np.where(_uniform(rng, 0, 1) < 0.5, _wave(rng), 1)
    return colour + _uniform(rng, -0.15, 0.15, 3) * wave


def _wave(rng: np.random.Generator) -> np.ndarray:
    angle, phase = _uniform(rng, 0, 2 * np.pi), _uniform(rng, 0, 2 * np.pi)
    frequency = _uniform(rng, 0.05, 1.5)
    x, y = frequency * np.cos(angle), frequency * np.sin(angle)
    return np.sin(x * _COLUMNS + y * _ROWS + phase)


def _clutter_mask(rng: np.random.Generator) -> np.ndarray:
    """A stroke with round ends per picture; the shortest are blobs."""
    x, y = _COLUMNS - _uniform(rng, -16, 16), _ROWS - _uniform(rng, -16, 16)
    angle, length = _uniform(rng, 0, 2 * np.pi), _uniform(rng, 0, 10)
    dx, dy = np.cos(angle), np.sin(angle)
    along = (x * dx + y * dy).clip(0, length)
    return _coverage(np.hypot(x - along * dx, y - along * dy) - _uniform(rng, 0.5, 2.5))


def _shape_mask(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    radius, angle = _uniform(rng, 7, 10), _uniform(rng, -0.5, 0.5)
    x, y = _COLUMNS - _uniform(rng, -2.5, 2.5), _ROWS - _uniform(rng, -2.5, 2.5)
    cos, sin = np.cos(angle) / radius, np.sin(angle) / radius
    x, y = cos * x + sin * y, cos * y - sin * x
    distance = np.empty_like(x)
    for label, shape in enumerate(_SHAPES.values()):
        chosen = labels == label
        distance[chosen] = shape(x[chosen], y[chosen])
    return _coverage(radius * distance)


def _coverage(distance: np.ndarray) -> np.ndarray:
    """The share of a pixel inside an outline `distance` pixels away: an anti-aliased edge."""
    return (0.5 - distance).clip(0, 1)


def _paint(canvas: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> None:
    canvas += mask * (colour - canvas)
