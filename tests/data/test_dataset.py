"""What a dataset says of itself: measured exactly, and read back strictly."""

import copy
import dataclasses
import json
import math
import statistics

import numpy as np
import pytest

from cifar_jax.data import dataset, shards
from cifar_jax.data.dataset import Description, Split
from tests.conftest import DATASET, random_images

SHAPES = [(28, 28, 1), (48, 64, 3), (5, 7, 4)]


def make_split(count, shape, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)
    return Split(images, (np.arange(count) % 2).astype(np.int32), ("a", "b"))


@pytest.mark.parametrize("shape", SHAPES)
def test_mean_and_deviation_are_those_of_the_pixels(shape):
    split = make_split(11, shape)
    found = Description.of("x", split, {"train": 11})
    for channel in range(shape[2]):
        pixels = split.images[..., channel].ravel().tolist()
        assert found.mean[channel] == statistics.fmean(pixels)
        assert found.std[channel] == pytest.approx(statistics.pstdev(pixels), rel=1e-15)
    assert (found.image_shape, found.class_names) == (shape, ("a", "b"))


def test_the_order_and_the_chunks_change_no_bit(monkeypatch, tmp_path):
    split = make_split(90, (9, 5, 3))
    expected = Description.of("x", split, {"train": 90})
    shuffled = Split(split.images[::-1], split.labels, split.class_names)
    monkeypatch.setattr(dataset, "_CHUNK_IMAGES", 89)
    assert Description.of("x", shuffled, {"train": 90}) == expected
    shards.write(tmp_path, "train", split, num_shards=4)
    assert Description.of("x", shards.open(tmp_path, "train"), {"train": 90}) == expected


def test_sums_do_not_overflow_and_equal_pixels_have_no_deviation():
    """More than 2**32 in every sum, and a difference of squares that floats would round."""
    chunk = np.full((2_000, 300, 300, 1), 255, np.uint8)
    assert dataset.measure([chunk] * 2) == ((255.0,), (0.0,))
    chunk[0, 0, 0] = 254
    count = 2_000 * 300 * 300
    assert dataset.measure([chunk])[1] == (pytest.approx(math.sqrt((1 - 1 / count) / count)),)
    with pytest.raises(ValueError, match="no image"):
        dataset.measure([])


def test_json_gives_back_the_same_to_the_last_bit():
    images, labels = random_images(90, seed=0)
    split = Split(images, labels.astype(np.int32), tuple("abcdefghij"))
    found = Description.of("caf\udce9", split, {"train": 90, "test": 7})
    assert Description.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 3),
        ("class_names", []),
        ("class_names", "cat"),
        ("class_names", ["cat", None]),
        ("image_shape", [32, 32]),
        ("image_shape", [32, 32, 2]),
        ("image_shape", [32, 32, [3]]),
        ("image_shape", [0, 32, 3]),
        ("image_shape", [32, 2**20, 3]),
        ("image_shape", [32.0, 32, 3]),
        ("sizes", {}),
        ("sizes", {"test": 3}),
        ("sizes", {"train": 0}),
        ("sizes", {"train": True}),
        ("sizes", [["train", 3]]),
        ("mean", [1.0, 2.0]),
        ("mean", [1.0, 2.0, "3"]),
        ("std", [1.0, 2.0, -0.5]),
        ("std", [1.0, 2.0, 256]),
        ("mean", [1.0, 2.0, math.nan]),
        ("mean", None),
        ("other", 1),
    ],
)
def test_odd_json_is_refused(field, value):
    found = copy.deepcopy(DATASET.to_json())
    found[field] = value
    with pytest.raises(ValueError):
        Description.from_json(found)


@pytest.mark.parametrize(
    "field",
    [field.name for field in dataclasses.fields(Description) if field.name != "class_counts"],
)
def test_a_missing_field_is_refused(field):
    found = DATASET.to_json()
    del found[field]
    with pytest.raises(ValueError, match="it is not an object of"):
        Description.from_json(found)


def test_classes_are_counted_and_weighted():
    labels = np.array([0, 2, 2, 2, 0, 2], np.int32)
    images = np.zeros((6, 2, 2, 1), np.uint8)
    split = dataset.Split(images, labels, ("a", "b", "c"))
    found = dataset.Description.of("drawn", split, {"train": 6})
    assert found.class_counts == (2, 0, 4)
    weights = found.class_weights()
    assert weights == (1.5, 0.0, 0.75)
    assert np.array(weights)[labels].mean() == 1  # the loss keeps its scale
    assert dataset.Description.from_json(found.to_json()) == found
    with_moments = dataset.Description.of("drawn", split, {"train": 6}, ((0.0,), (1.0,)))
    assert (with_moments.mean, with_moments.class_counts) == ((0.0,), (2, 0, 4))


def test_a_description_of_an_older_workdir_has_no_counts():
    split = dataset.Split(np.zeros((1, 2, 2, 1), np.uint8), np.zeros(1, np.int32), ("a",))
    record = dataset.Description.of("drawn", split, {"train": 1}).to_json()
    del record["class_counts"]
    found = dataset.Description.from_json(record)
    assert found.class_counts == ()
    with pytest.raises(ValueError, match="not counted"):
        found.class_weights()
    with pytest.raises(ValueError, match="class_counts has 2 entries and not 1"):
        dataset.Description.from_json(record | {"class_counts": [1, 2]})
    with pytest.raises(ValueError, match="is not a number"):
        dataset.Description.from_json(record | {"class_counts": [-1]})
