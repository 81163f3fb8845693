"""Each image transform against plain numpy: values, ranges, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.inputs import color, crop, cutout, flip, standardize
from cifar_jax.inputs.registry import BATCH, IMAGE, ORDER_STREAM
from cifar_jax.inputs.transform import Info
from tests.conftest import random_images

COUNT = 400
INFO = Info(jnp.int32(0), jnp.int32(0), jax.random.key(9))
PICTURE = random_images(1, seed=2)[0][0].astype(np.float32)  # [32, 32, 3]


@pytest.fixture
def options(default):
    return default.inputs


def many(function, image, options, count=COUNT):
    """What `count` keys make of one image: [count, …]."""
    keys = jax.random.split(jax.random.key(1), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: function(key, image, INFO, options)))(keys))


def places(height, width):
    """An image [H, W, 2] whose values are the rows and columns."""
    return np.stack(np.indices((height, width)), -1).astype(np.float32)


def test_no_stream_is_given_twice():
    streams = [entry.stream for entry in (*IMAGE.values(), *BATCH.values())]
    assert len({*streams, ORDER_STREAM}) == len(streams) + 1


def test_random_crop_takes_every_place(options):
    found = many(crop.random_crop, places(32, 30), options)
    assert found.shape == (COUNT, 24, 24, 2)
    corners = found[:, 0, 0]
    np.testing.assert_array_equal(corners.min(0), (0, 0))
    np.testing.assert_array_equal(corners.max(0), (8, 6))  # both ends of 32 - 24 and 30 - 24
    assert len(np.unique(corners, axis=0)) > 60  # of 63 places
    np.testing.assert_array_equal(found, corners[:, None, None] + places(24, 24))


@pytest.mark.parametrize(("shift", "low", "high"), [(1, 3, 5), (9, 0, 8)])
def test_random_crops_stay_near_the_centre(options, shift, low, high):
    options.random_crop.max_shift = shift
    corners = many(crop.random_crop, places(32, 32), options)[:, 0, 0]
    assert (corners.min(), corners.max()) == (low, high)


@pytest.mark.parametrize(("fill", "mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_random_crops_of_the_padded_picture(options, fill, mode):
    options.size = (6, 5)
    options.random_crop.update(padding=2, fill=fill)
    image = PICTURE[:6, :5]
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode)
    expected = {padded[y : y + 6, x : x + 5].tobytes() for y in range(5) for x in range(5)}
    assert {one.tobytes() for one in many(crop.random_crop, image, options)} == expected


@pytest.mark.parametrize(("size", "corner"), [((24, 24), (4, 3)), ((31, 26), (0, 2)), ((32,), 0)])
def test_central_crop(options, size, corner):
    options.size = size
    picture = places(32, 31 if len(size) == 2 else 32)
    found = crop.central_crop(jax.random.key(0), picture, INFO, options)
    assert found.shape[:2] == (size[0], size[-1])
    np.testing.assert_array_equal(found[0, 0], np.broadcast_to(corner, 2))


def bilinear(image, rows, columns):
    """The image at places between its pixels, beyond which the edge goes on."""

    def along(values, at):
        at = np.clip(at, 0, len(values) - 1)
        low = np.minimum(np.floor(at).astype(int), len(values) - 2)
        part = (at - low).reshape(-1, *[1] * (values.ndim - 1))
        return values[low] * (1 - part) + values[low + 1] * part

    return along(along(image, rows).swapaxes(0, 1), columns).swapaxes(0, 1)


def test_random_resized_crop_is_a_rectangle_of_the_picture(options):
    """Enlarged, so that bilinear is no mean of several: rows and columns tell which rectangle."""
    options.size = (48, 40)
    options.random_resized_crop.update(area_lower=0.2, area_upper=0.5)
    found = many(crop.random_resized_crop, places(20, 24), options)
    assert found.shape == (COUNT, 48, 40, 2)
    middle = found[:, 23:25, 19:21]  # where no edge is near
    height = 48 * (middle[:, 1, 0, 0] - middle[:, 0, 0, 0])
    width = 40 * (middle[:, 0, 1, 1] - middle[:, 0, 0, 1])
    area, ratio = height * width / (20 * 24), width / height
    assert 0.2 - 1e-3 < area.min() < 0.22
    assert 0.48 < area.max() < 0.5 + 1e-3
    assert 0.75 - 1e-3 < ratio.min() < 0.77
    assert 1.3 < ratio.max() < 4 / 3 + 1e-3
    before = np.stack([23.5 * height / 48, 19.5 * width / 40], -1)
    top, left = (middle[:, 0, 0] - before + 0.5).T
    assert -1e-3 < top.min() < 0.3
    assert -1e-3 < left.min() < 0.3
    assert ((top + height) < 20 + 1e-3).all()
    assert ((left + width) < 24 + 1e-3).all()

    image = PICTURE[:20, :24]
    rows, columns = (np.arange(48) + 0.5) / 48, (np.arange(40) + 0.5) / 40
    pixels = many(crop.random_resized_crop, image, options, 5)
    corner_and_size = zip(top, left, height, width, strict=True)
    for one, (y, x, h, w) in zip(pixels, list(corner_and_size)[:5], strict=True):
        expected = bilinear(image, y + rows * h - 0.5, x + columns * w - 0.5)
        np.testing.assert_allclose(one, expected, atol=0.1)


def test_a_rectangle_longer_than_the_picture_is_cut(options):
    options.size = (8, 8)
    options.random_resized_crop.update(area_lower=1.0, ratio_lower=1.0, ratio_upper=1.0)
    found = many(crop.random_resized_crop, places(8, 32), options, 3)  # a square of side 16
    np.testing.assert_allclose(found[:, :, 0, 0], np.tile(np.arange(8), (3, 1)), atol=1e-5)


def test_flip_is_a_fair_coin(options):
    found = many(flip.flip, PICTURE, options)
    flipped = (found == PICTURE[:, ::-1]).all((1, 2, 3))
    assert (flipped | (found == PICTURE).all((1, 2, 3))).all()
    assert 0.4 < flipped.mean() < 0.6


def test_alternating_flip_shows_both_sides_in_two_epochs(options):
    """By the image and not by the step's key; each the other way round in odd epochs."""
    options.flip.alternating = True
    row = np.arange(3.0)[None, :, None]

    def one(step_key, own_key, epoch):
        return flip.flip(step_key, row, Info(epoch, jnp.int32(0), own_key), options)[0, 0, 0] == 2

    def flipped(seed, epoch):
        step_keys = jax.random.split(jax.random.key(seed), COUNT)
        own_keys = jax.random.split(jax.random.key(0), COUNT)
        return np.asarray(jax.vmap(one, (0, 0, None))(step_keys, own_keys, epoch))

    first = flipped(1, 0)
    assert 0.4 < first.mean() < 0.6
    np.testing.assert_array_equal(flipped(2, 1), ~first)
    np.testing.assert_array_equal(flipped(3, 2), first)


def test_brightness_adds_one_number(options):
    options.brightness.delta = 5.0
    found = many(color.brightness, PICTURE, options) - PICTURE
    np.testing.assert_allclose(np.ptp(found, axis=(1, 2, 3)), 0, atol=1e-4)
    assert -5 <= found.min() < -4.8
    assert 4.8 < found.max() <= 5 + 1e-4


def test_contrast_spreads_around_the_mean_of_each_channel(options):
    found = many(color.contrast, PICTURE, options).astype(np.float64)
    mean = PICTURE.astype(np.float64).mean((0, 1))
    factor = (found[:, 0, 0, 0] - mean[0]) / (PICTURE[0, 0, 0] - mean[0])
    expected = (PICTURE - mean) * factor[:, None, None, None] + mean
    np.testing.assert_allclose(found, expected, atol=2e-2)
    assert 0.2 - 1e-4 <= factor.min() < 0.22
    assert 1.78 < factor.max() <= 1.8 + 1e-4


def test_color_mixes_the_channels_a_little(options):
    found = many(color.color, np.eye(3, dtype=np.float32)[None], options)[:, 0]  # [COUNT, 3, 3]
    noise = found - np.eye(3)
    assert -0.1 <= noise.min() < -0.098
    assert 0.098 < noise.max() <= 0.1 + 1e-6
    assert len(np.unique(noise)) > 3_000  # every entry is drawn
    mixed = many(color.color, PICTURE, options)
    np.testing.assert_allclose(mixed[1], PICTURE @ found[1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("size", "places_there_are"), [(8, 25 * 25), (31, 4), (32, 1)])
def test_cutout_is_a_square_within_the_image(options, size, places_there_are):
    options.cutout.size = size
    found = many(cutout.cutout, PICTURE + 1, options)
    gone = (found == 0).all(-1)
    assert (gone.sum((1, 2)) == size**2).all()
    rows, columns = gone.any(2), gone.any(1)
    assert (rows.sum(1) == size).all()
    assert (columns.sum(1) == size).all()
    corners = np.stack([rows.argmax(1), columns.argmax(1)], -1)
    assert len(np.unique(corners, axis=0)) == places_there_are or places_there_are > COUNT
    assert (corners.min(), corners.max()) == (0, 32 - size)
    np.testing.assert_array_equal(found, np.where(gone[..., None], 0, PICTURE + 1))


def test_standardize_by_image_or_dataset(options):
    by_image = standardize.standardize(jax.random.key(0), PICTURE, INFO, options)
    expected = (PICTURE - PICTURE.mean(dtype=np.float64)) / PICTURE.std(dtype=np.float64)
    np.testing.assert_allclose(by_image, expected, atol=1e-4)
    options.standardize.by = "dataset"
    mean, std = np.float32([100, 110, 120]), np.float32([60, 50, 40])
    info = INFO._replace(mean=mean, std=std)
    by_dataset = standardize.standardize(jax.random.key(0), PICTURE, info, options)
    np.testing.assert_allclose(by_dataset, (PICTURE - mean) / std, rtol=1e-5, atol=1e-6)


def test_a_channel_that_never_varies_is_0_by_the_dataset(options):
    """RGBA whose alpha is opaque throughout: 255 with a deviation of 0."""
    options.standardize.by = "dataset"
    image = jnp.concatenate([PICTURE[..., :1], jnp.full_like(PICTURE[..., :1], 255.0)], -1)
    info = INFO._replace(mean=jnp.array([100.0, 255.0]), std=jnp.array([60.0, 0.0]))
    found = standardize.standardize(jax.random.key(0), image, info, options)
    np.testing.assert_allclose(found[..., 0], (PICTURE[..., 0] - 100) / 60, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[..., 1], 0)


def test_standardize_of_a_flat_picture_is_zero_and_finite():
    flat = jnp.full((24, 24, 3), 200.0)
    np.testing.assert_array_equal(standardize.by_image(flat), 0)
    # One value off by a little: the floor of 1/sqrt(n) is what divides.
    tiny = jnp.zeros((24, 24, 3)).at[0, 0, 0].set(0.01)
    assert float(standardize.by_image(tiny).max()) == pytest.approx(0.01 * 1728**0.5, rel=1e-2)
