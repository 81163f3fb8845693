"""Splits by name; the validation images are drawn from the training images, and left out there."""

import dataclasses
import json

import numpy as np
import pytest

from cifar_jax.data import dataset, shards, sources, splits
from cifar_jax.errors import UsageError
from tests.conftest import NUM_TEST, NUM_TRAIN

GOLDEN = [39, 49, 60, 78, 80, 84]


def test_validation_and_training_images_make_up_the_source(config):
    everything = sources.load(config.data, "train")
    config.data.validation = 20
    train, validation = (splits.load(config.data, name, 3) for name in ("train", "validation"))
    assert (len(train), len(validation)) == (NUM_TRAIN - 20, 20)
    found = [image.tobytes() for split in (train, validation) for image in split.images]
    assert sorted(found) == sorted(image.tobytes() for image in everything.images)
    test = splits.load(config.data, "test", 3)
    np.testing.assert_array_equal(test.images, sources.load(config.data, "test").images)
    # A held-out image keeps its label.
    places = [everything.images.tobytes().index(image.tobytes()) for image in validation.images]
    labels = everything.labels[np.array(places) // everything.images[0].nbytes]
    np.testing.assert_array_equal(labels, validation.labels)


def test_which_images_is_a_function_of_seed_and_numbers_alone():
    """Golden: where these change, the runs of earlier versions have seen other images."""
    assert splits.validation_indices(0, 90, 6).tolist() == GOLDEN
    assert splits.validation_indices(1, 90, 6).tolist() != GOLDEN
    # More are drawn beside those that fewer are.
    assert set(GOLDEN) < set(splits.validation_indices(0, 90, 7).tolist())
    drawn = splits.validation_indices(7, 50_000, 5_000)
    assert len(set(drawn.tolist())) == 5_000 and drawn.max() < 50_000
    assert abs(drawn.mean() - 25_000) < 700  # from everywhere


@pytest.mark.parametrize(
    ("value", "count"), [(0.29, 29), (0.1, 10), (1.0, 1), (7, 7), (99.0, 99), (0.994, 99)]
)
def test_a_share_or_a_number(config, value, count):
    config.data.validation = value
    splits.check(config.data)
    assert splits.validation_count(config.data, 100) == count


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), float("inf"), -3.0])
def test_neither_a_share_nor_a_number(config, value):
    config.data.validation = value
    with pytest.raises(UsageError, match="expected a share from 0 to below 1, or a whole number"):
        splits.check(config.data)


@pytest.mark.parametrize("value", [90, 1000.0, 0.001, 0.999])
def test_some_images_must_be_left_for_both(config, value):
    config.data.validation = value
    with pytest.raises(UsageError, match="of 90 training images. Set a share or a number that"):
        splits.open(config.data, "train", 0)


def test_unknown_splits(config):
    with pytest.raises(UsageError, match="Unknown split 'vali'. Did you mean 'validation'"):
        splits.open(config.data, "vali", 0)
    with pytest.raises(UsageError, match="There is no validation split"):
        splits.open(config.data, "validation", 0)
    with pytest.raises(UsageError, match="Unknown split 'validation'. Choices: train, test."):
        sources.load(config.data, "validation")
    assert len(splits.open(config.data, "test", 0)) == NUM_TEST


@pytest.mark.parametrize("split", splits.NAMES)
def test_shards_hold_the_same_images_out(config, tmp_path, monkeypatch, split):
    monkeypatch.setattr(dataset, "_LOAD_IMAGES", 7)
    config.data.validation = 0.25
    expected = splits.load(config.data, split, 5)
    for name in sources.SPLITS:
        shards.write(tmp_path, name, sources.load(config.data, name), num_shards=3)
    config.data.shards = str(tmp_path)
    found = splits.open(config.data, split, 5)
    for array, other in zip(found.load(), expected.load(), strict=True):
        np.testing.assert_array_equal(array, other)
    indices = np.array([3, 0, 3, len(found) - 1])
    for array, other in zip(found.read(indices), expected.read(indices), strict=True):
        np.testing.assert_array_equal(array, other)


def test_a_dataset_describes_what_it_trains_on(config):
    config.data.validation = 20
    train = splits.open(config.data, "train", 0)
    found = splits.describe(config.data, train)
    images, _, names = train.load()
    assert (found.name, found.class_names, found.image_shape) == ("cifar10", names, (32, 32, 3))
    assert found.sizes == {"train": NUM_TRAIN - 20, "validation": 20}
    np.testing.assert_allclose(found.mean, images.mean((0, 1, 2)), rtol=1e-12)


def test_what_is_known_is_not_measured_again(config, monkeypatch):
    train = splits.open(config.data, "train", 0)
    known = splits.describe(config.data, train)
    monkeypatch.setattr(splits.Description, "of", None)
    assert splits.describe(config.data, train, known) is known


def as_shards(config, folder, **options):
    """Has `config` name shards of its training images; as a split."""
    shards.write(folder, "train", sources.load(config.data, "train"), num_shards=3, **options)
    config.data.shards = str(folder)
    return splits.open(config.data, "train", 0)


@pytest.mark.parametrize(("options", "name"), [({}, "cifar10"), ({"name": "mnist"}, "mnist")])
def test_shards_describe_themselves(config, tmp_path, monkeypatch, options, name):
    whole = splits.describe(config.data, splits.open(config.data, "train", 0))
    train = as_shards(config, tmp_path, **options)
    monkeypatch.setattr(dataset, "measure", None)
    assert splits.describe(config.data, train) == dataclasses.replace(whole, name=name)


def test_moments_of_shards_are_not_those_of_a_part(config, tmp_path):
    config.data.validation = 20
    whole = splits.describe(config.data, splits.open(config.data, "train", 0))
    train = as_shards(config, tmp_path, name="mnist")
    assert splits.describe(config.data, train) == dataclasses.replace(whole, name="mnist")


def test_shards_of_an_earlier_version_are_measured(config, tmp_path):
    whole = splits.describe(config.data, splits.open(config.data, "train", 0))
    as_shards(config, tmp_path)
    path = tmp_path / "train" / shards.MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["mean"], manifest["std"]
    path.write_text(json.dumps(manifest))
    assert splits.describe(config.data, splits.open(config.data, "train", 0)) == whole


def test_what_takes_long_is_told(config, monkeypatch, capsys):
    train = splits.open(config.data, "train", 0)
    splits.describe(config.data, train)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(dataset, "_MANY_IMAGES", 89)
    splits.describe(config.data, train)
    assert capsys.readouterr().out == "Measuring mean, deviation and classes of 90 images.\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "mnist"}, "name 'mnist' there, 'cifar10' now"),
        ({"image_shape": (28, 28, 1)}, r"image shape \(28, 28, 1\) there, \(32, 32, 3\) now"),
        ({"sizes": {"train": 91}}, "number of training images 91 there, 90 now"),
        ({"class_names": ("cat",) * 10}, "class names .* there, .* now"),
    ],
)
def test_another_dataset_than_is_known_is_refused(config, change, message):
    train = splits.open(config.data, "train", 0)
    known = dataclasses.replace(splits.describe(config.data, train), **change)
    with pytest.raises(UsageError, match=message) as caught:
        splits.describe(config.data, train, known)
    assert "\n" not in str(caught.value)
