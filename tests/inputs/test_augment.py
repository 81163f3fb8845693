"""The distortions against plain numpy, one switch at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.inputs import augment
from tests.conftest import random_images

SHAPE = (32, 32, 3)


@pytest.fixture
def options(default):
    return default.augment


def numpy_distorted(image, distortion, crop):
    """The tutorial's order, in float64."""
    top, left = map(int, distortion.offset)
    x = image[top : top + crop, left : left + crop].astype(np.float64)
    if distortion.flip:
        x = x[:, ::-1]

    def contrast(x):
        mean = x.mean((0, 1))
        return (x - mean) * float(distortion.contrast) + mean

    brightness = float(distortion.brightness)
    return contrast(x) + brightness if distortion.contrast_first else contrast(x + brightness)


def numpy_standardized(x):
    return (x - x.mean()) / max(x.std(), x.size**-0.5)


def draws(options, count=400):
    keys = jax.random.split(jax.random.key(1), count)
    return jax.vmap(lambda key: augment.draw(key, SHAPE, options))(keys)


@pytest.mark.parametrize("random_order", [False, True])
def test_distort_agrees_with_numpy(options, random_order):
    options.random_order = random_order
    images, _ = random_images(6, seed=2)
    keys = jax.random.split(jax.random.key(3), 6)
    found = augment.distort(keys, jnp.asarray(images), options)
    assert found.shape == (6, 24, 24, 3)
    assert found.dtype == jnp.float32
    for image, key, result in zip(images, keys, found, strict=True):
        distortion = augment.draw(key, SHAPE, options)
        expected = numpy_distorted(image, distortion, 24)
        np.testing.assert_allclose(augment.apply(image, distortion, options), expected, atol=1e-3)
        np.testing.assert_allclose(result, numpy_standardized(expected), atol=1e-4)


def test_draws_cover_their_ranges(options):
    options.random_order = True
    found = draws(options)
    assert found.offset.min() == 0
    assert found.offset.max() == 8  # both ends of 32 - 24
    assert len(np.unique(np.asarray(found.offset), axis=0)) > 75  # of 81 places
    assert 0.4 < found.flip.mean() < 0.6
    assert 0.4 < found.contrast_first.mean() < 0.6
    assert -63 <= found.brightness.min() < -60
    assert 60 < found.brightness.max() <= 63
    assert 0.2 <= found.contrast.min() < 0.22
    assert 1.78 < found.contrast.max() <= 1.8


@pytest.mark.parametrize(("shift", "low", "high"), [(1, 3, 5), (3, 1, 7), (9, 0, 8)])
def test_crops_stay_near_the_centre(options, shift, low, high):
    options.max_shift = shift
    found = draws(options).offset
    assert (found.min(), found.max()) == (low, high)


@pytest.mark.parametrize(
    ("switch", "field", "neutral"),
    [
        ("random_crop", "offset", 4),
        ("flip", "flip", False),
        ("brightness", "brightness", 0.0),
        ("contrast", "contrast", 1.0),
        ("random_order", "contrast_first", False),
    ],
)
def test_each_distortion_has_a_switch(options, switch, field, neutral):
    options[switch] = False
    found = draws(options, count=50)
    assert (np.asarray(getattr(found, field)) == neutral).all()
    others = set(found._fields) - {field} - {"contrast_first"}
    for other in others:
        assert len(np.unique(np.asarray(getattr(found, other)))) > 1, other


def test_ranges_come_from_the_config(options):
    options.update(crop_size=30, brightness_delta=5.0, contrast_lower=0.9, contrast_upper=1.1)
    found = draws(options)
    assert found.offset.max() == 2
    assert 4 < np.abs(found.brightness).max() <= 5
    assert found.contrast.min() >= 0.9
    assert found.contrast.max() <= 1.1


def test_without_clipping_the_order_changes_rounding_alone(options):
    images, _ = random_images(1, seed=0)
    options.random_order = True
    distortion = draws(options, 1)
    one = jax.tree.map(lambda x: x[0], distortion)
    first = augment.apply(images[0], one._replace(contrast_first=jnp.array(True)), options)
    last = augment.apply(images[0], one._replace(contrast_first=jnp.array(False)), options)
    np.testing.assert_allclose(first, last, atol=1e-3)


def test_standardize_of_a_flat_picture_is_zero_and_finite():
    flat = jnp.full((24, 24, 3), 200.0)
    np.testing.assert_array_equal(augment.standardize(flat), 0)
    # One value off by a little: the floor of 1/sqrt(n) is what divides.
    tiny = jnp.zeros((24, 24, 3)).at[0, 0, 0].set(0.01)
    assert float(augment.standardize(tiny).max()) == pytest.approx(0.01 * 1728**0.5, rel=1e-2)


@pytest.mark.parametrize("crop", [24, 25, 32])
def test_evaluation_takes_the_central_crop(crop):
    images, _ = random_images(3, seed=5)
    found = augment.central_crop(jnp.asarray(images), crop)
    start = (32 - crop) // 2
    for image, result in zip(images, found, strict=True):
        part = image[start : start + crop, start : start + crop].astype(np.float64)
        np.testing.assert_allclose(result, numpy_standardized(part), atol=1e-5)
