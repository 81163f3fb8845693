"""Which images form step n: every image once an epoch, any step without those before it."""

import numpy as np
import pytest

from cifar_jax.data import batches
from cifar_jax.data.dataset import Split


@pytest.mark.parametrize("count", [1, 2, 3, 10, 64, 90, 1000])
def test_permute_is_a_permutation(count):
    epoch = np.zeros(count, np.int64)
    found = batches.permute(np.arange(count), count, 5, epoch)
    assert sorted(found) == list(range(count))


def test_order_depends_on_seed_and_epoch_and_looks_random():
    place, count = np.arange(5000), 5000
    orders = [
        batches.permute(place, count, seed, np.full(count, epoch))
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    for a in range(3):
        assert abs(np.corrcoef(orders[a], place)[0, 1]) < 0.05
        assert abs(np.corrcoef(orders[a][1:], orders[a][:-1])[0, 1]) < 0.05
        for b in range(a):
            assert abs(np.corrcoef(orders[a], orders[b])[0, 1]) < 0.05


def test_the_order_is_the_same_for_ever():
    """A change here changes every run's result: then say so in the release notes."""
    assert batches.train_indices(0, 0, 1, 8, 50_000)[0][0].tolist() == [
        24659,
        15277,
        35388,
        21982,
        42036,
        36314,
        158,
        46905,
    ]


def test_every_image_comes_once_in_each_epoch_though_batches_straddle():
    count, size = 90, 16
    drawn = [batches.train_indices(1, n, 1, size, count) for n in range(45)]
    index, epoch = (np.concatenate(each, axis=None) for each in zip(*drawn, strict=True))
    assert index.dtype == epoch.dtype == np.int32
    epochs = index.reshape(-1, count)  # 45 batches of 16 are 8 epochs of 90
    for order in epochs:
        assert sorted(order) == list(range(count))
    np.testing.assert_array_equal(epoch, np.arange(8).repeat(count))
    assert not np.array_equal(epochs[0], epochs[1])


def test_batches_do_not_depend_on_the_batch_size():
    one = np.concatenate([batches.train_indices(1, n, 1, 10, 90) for n in range(6)], axis=1)
    other = batches.train_indices(1, 0, 3, 20, 90)
    np.testing.assert_array_equal(np.reshape(one, (2, -1)), np.reshape(other, (2, -1)))


@pytest.mark.parametrize("size", [1, 5, 16, 37, 64])
def test_evaluation_sees_each_image_once(size):
    images = np.arange(37, dtype=np.uint8)[:, None, None, None]
    split = Split(images, np.arange(37, dtype=np.int32), ("a",))
    seen = []
    for image, label, mask in batches.eval_batches(split, size, 30):
        assert len(image) == len(label) == len(mask) == size
        np.testing.assert_array_equal(image[:, 0, 0, 0], label)
        seen += label[mask].tolist()
    assert seen == list(range(30))
