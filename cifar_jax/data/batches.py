"""Which images form step n: a pure function of (seed, n), with no iterator to save or replay."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from cifar_jax.data.dataset import Split

_ROUNDS = 6


def train_indices(
    seed: int, step: int, count: int, batch_size: int, num_images: int
) -> tuple[np.ndarray, np.ndarray]:
    """The images of `count` global batches from that of `step` on: the index of each in its split,
    below `num_images`, and the epoch it is seen in, from 0 on; int32 [count, batch_size] both.

    The epochs follow each other without a gap, each in an order of its own: every image comes
    once in every run of `num_images` that starts at a multiple of it, and a batch may end one
    epoch and begin the next.
    """
    position = np.arange(step * batch_size, (step + count) * batch_size, dtype=np.int64)
    epoch, place = np.divmod(position, num_images)
    index = permute(place, num_images, seed, epoch)
    shape = count, batch_size
    return index.astype(np.int32).reshape(shape), epoch.astype(np.int32).reshape(shape)


def permute(place: np.ndarray, count: int, seed: int, epoch: np.ndarray) -> np.ndarray:
    """Where a permutation of range(count), keyed by (seed, epoch), sends each `place`; int64.

    A Feistel network over the next power of four, walked until it is back inside: every element
    costs a few hashes, and nothing is ever held in memory but the elements asked for. (Black and
    Rogaway, Ciphers with Arbitrary Finite Domains, 2002.)
    """
    half = max(1, math.ceil(math.log2(max(count, 2)) / 2))
    mask = np.uint64(2**half - 1)
    epoch = np.broadcast_to(epoch, np.shape(place)).astype(np.uint64)
    key = _hash(_hash(np.uint64(seed)) ^ epoch)
    result = place.astype(np.uint64)
    outside = np.arange(result.size)
    while outside.size:
        left, right = result[outside] >> np.uint64(half), result[outside] & mask
        for number in range(_ROUNDS):
            noise = _hash(right ^ key[outside] ^ np.uint64(number << 56))
            left, right = right, left ^ (noise & mask)
        result[outside] = (left << np.uint64(half)) | right
        outside = outside[result[outside] >= count]
    return result.astype(np.int64)


def _hash(x: Any) -> Any:
    """The finaliser of SplitMix64: 64 well-mixed bits from 64 bits; np.uint64, any shape."""
    with np.errstate(over="ignore"):
        x = (x + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def eval_batches(
    split: Split, batch_size: int, num_examples: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The first `num_examples` images once each: images, labels and a bool mask [batch_size].

    The last batch is filled up with copies of its first image, which the mask leaves out, so that
    one compiled step serves all.
    """
    for start in range(0, num_examples, batch_size):
        count = min(batch_size, num_examples - start)
        index = np.full(batch_size, start)
        index[:count] += np.arange(count)
        yield split.images[index], split.labels[index], np.arange(batch_size) < count
