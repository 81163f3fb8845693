"""Test images that are training images, too, or nearly: what makes an accuracy look better.

Each image becomes a descriptor of 64 numbers: its grey 8x8 thumbnail without the mean, of length 1.
The product of two is their correlation. The nearest training image of every test image is found
exactly, by matrix products.

Of 2,000 copies of CIFAR-10's images all are found that have less contrast, or went
through JPEG of quality 75 (97% of quality 30), 79% that were of half the size in between, and few
that are shifted by a pixel (7%) or lost a border of one (17%). Mirrored ones are not found.
"""

import hashlib
import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from cifar_jax.data.dataset import Split

# Looked at, nearly all of CIFAR-10's 41 pairs above 0.99 are of one photograph, or of one object
# taken twice, and none has two labels; of the 81 between 0.98 and 0.99 four have: horizons, which
# only look alike. Thumbnails of 16x16 take five times as long and tell them apart no better.
THRESHOLD = 0.99
SIDE = 8
# Deviation of a thumbnail, in grey levels of 255, below which it is no more than noise: flat images
# would all correlate. Of CIFAR-10's images the flattest has 3.5.
FLAT = 2.0
_CHUNK_LEVELS = 1 << 23  # of images that are described at once: 32 MiB of float32
_CHUNK_PRODUCTS = 1 << 24  # 64 MiB of float32


class Pair(NamedTuple):
    train: int  # its place among the training images
    test: int
    similarity: float  # correlation of the descriptors; 1 where they are equal
    equal: bool  # pixel by pixel
    two_labels: bool


def find(train: Split, test: Split, least: float = THRESHOLD) -> list[Pair]:
    """The training image nearest to each test image, where it is equal or as similar as `least`;
    the most similar first. Of equal training images one with another label is taken, if there is.

    There is one training image at least. Flat images are compared pixel by pixel alone.
    """
    places, similarities = _equal(train, test)
    equal = places >= 0
    left = np.flatnonzero(~equal)
    places[left], similarities[left] = _nearest(train.images, test.images[left])
    found = np.flatnonzero(equal | (similarities >= least))
    pairs = [
        Pair(int(place), int(i), float(similarities[i]), bool(equal[i]), bool(differ))
        for i, place in zip(found, places[found], strict=True)
        for differ in [train.labels[place] != test.labels[i]]
    ]
    return sorted(pairs, key=lambda p: (not p.equal, -p.similarity, not p.two_labels, p.test))


def describe(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The descriptors float32 [N, 64] of images uint8 [N, H, W, C], and which images are flat,
    bool [N]; a flat one's descriptor is 0. Transparency does not count."""
    descriptors = np.empty((len(images), SIDE * SIDE), np.float32)
    count = max(1, _CHUNK_LEVELS // math.prod(images.shape[1:]))
    for start in range(0, len(images), count):
        part = slice(start, start + count)
        descriptors[part] = _thumbnails(images[part])
    descriptors -= descriptors.mean(1, keepdims=True)
    lengths = np.linalg.norm(descriptors, axis=1, keepdims=True)
    flat = lengths < FLAT * SIDE  # a deviation, times the root of the number of pixels
    descriptors /= np.where(flat, np.inf, lengths)
    return descriptors, flat[:, 0]


def _equal(train: Split, test: Split) -> tuple[np.ndarray, np.ndarray]:
    """The place of an equal training image for each test image, or -1, int64 [N]; and 1 or -1 as
    their similarity, float32 [N]."""
    by_content: dict[bytes, list[int]] = defaultdict(list)
    for place, image in enumerate(train.images):
        by_content[_digest(image)].append(place)
    places = np.full(len(test), -1, np.int64)
    for i, image in enumerate(test.images):
        if same := by_content.get(_digest(image)):
            other = (place for place in same if train.labels[place] != test.labels[i])
            places[i] = next(other, same[0])
    return places, np.where(places >= 0, 1, -1).astype(np.float32)


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def _nearest(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each test image: the place of the most similar training image, and how similar it is."""
    known = describe(train)[0]
    wanted = describe(test)[0]
    places, similarities = np.empty(len(test), np.int64), np.empty(len(test), np.float32)
    rows = max(1, _CHUNK_PRODUCTS // len(known))
    for start in range(0, len(wanted), rows):
        part = slice(start, start + rows)
        products = wanted[part] @ known.T
        places[part] = products.argmax(1)
        similarities[part] = np.minimum(products.max(1), 1)  # above 1 by rounding
    return places, similarities


def _thumbnails(images: np.ndarray) -> np.ndarray:
    """Grey levels float32 [n, 64], each the mean over its part of the image: two products with
    matrices of weights, which fit any height and width."""
    count, height, width, channels = images.shape
    colours = min(channels, 3)
    grey = np.zeros(channels, np.float32)
    grey[:colours] = 1 / colours
    across = np.kron(_shares(width), grey).T  # [W * C, 8]
    lines = images.reshape(count * height, width * channels).astype(np.float32) @ across
    return (_shares(height) @ lines.reshape(count, height, SIDE)).reshape(count, -1)


def _shares(size: int) -> np.ndarray:
    """The share that each of `size` pixels in a row has in each of 8 means, float32 [8, size]."""
    edges = np.arange(size + 1) * SIDE / size  # of the pixels, in thumbnail pixels
    places = np.arange(SIDE)[:, None]
    overlaps = np.clip(edges[1:], places, places + 1) - np.clip(edges[:-1], places, places + 1)
    return overlaps.astype(np.float32)
