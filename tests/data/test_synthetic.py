import numpy as np
import pytest

from cifar_jax.data.sources import synthetic


@pytest.fixture(scope="module")
def train():
    return synthetic.draw(2000, seed=1)


@pytest.fixture(scope="module")
def test():
    return synthetic.draw(1000, seed=2)


def _ridge_accuracy(features, labels, test_features, test_labels, penalty):
    """Test accuracy of a ridge regression from standardised features to one-hot labels."""
    mean, deviation = features.mean(0), features.std(0)
    features, test_features = ((f - mean) / deviation for f in (features, test_features))
    targets = np.eye(10)[labels] - 0.1
    # In its dual form, which is the smaller system when there are more features than pictures.
    kernel = features @ features.T + penalty * np.eye(len(features))
    scores = test_features @ (features.T @ np.linalg.solve(kernel, targets))
    return np.mean(scores.argmax(1) == test_labels)


@pytest.mark.parametrize("count", [0, 1, synthetic.CHUNK + 1])
def test_shapes_and_types(count):
    images, labels = synthetic.draw(count, seed=0)
    assert images.shape == (count, 32, 32, 3)
    assert labels.shape == (count,)
    assert images.dtype == labels.dtype == np.uint8


def test_same_seed_gives_same_pictures_whatever_their_number(train):
    count = synthetic.CHUNK + 10
    images, labels = synthetic.draw(count, seed=1)
    np.testing.assert_array_equal(images, train[0][:count])
    np.testing.assert_array_equal(labels, train[1][:count])


def test_no_picture_repeats_within_or_across_seeds(train, test):
    images = np.concatenate([train[0], test[0]])
    assert len({image.tobytes() for image in images}) == len(images)


def test_classes_are_balanced(train):
    assert len(synthetic.CLASS_NAMES) == 10
    counts = np.bincount(train[1])
    assert len(counts) == 10
    assert counts.min() > 140 and counts.max() < 260  # 200, give or take 4.5 deviations


def test_pictures_use_the_whole_range_of_values(train):
    low, high = np.percentile(train[0], [5, 95])
    assert low < 40 and high > 200


def test_mean_colour_does_not_tell_the_class(train, test):
    colours, test_colours = train[0].mean((1, 2)), test[0].mean((1, 2))
    centres = np.stack([colours[train[1] == label].mean(0) for label in range(10)])
    nearest = np.linalg.norm(test_colours[:, None] - centres, axis=2).argmin(1)
    assert np.mean(nearest == test[1]) < 0.25


def test_a_linear_model_learns_something_but_not_the_classes(train, test):
    pixels, test_pixels = (
        images[:, 4:28, 4:28].reshape(len(images), -1).astype(np.float32)
        for images in (train[0], test[0])
    )
    accuracy = _ridge_accuracy(pixels, train[1], test_pixels, test[1], penalty=1e4)
    assert 0.15 < accuracy < 0.6
