"""The listed transforms together: the bytes they give, what depends on what, views, refusals."""

import hashlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import config as config_lib
from cifar_jax import inputs
from cifar_jax.devices import replicas
from cifar_jax.errors import UsageError
from cifar_jax.inputs import mix
from cifar_jax.inputs.registry import IMAGE
from cifar_jax.inputs.transform import Info
from tests.conftest import random_images

IMAGES, LABELS = random_images(8, seed=0)
KEYS = jax.vmap(jax.random.fold_in, (None, 0))(
    jax.random.fold_in(jax.random.key(0), 2), jnp.arange(8)
)
IN_TWO_ORDERS = ("random_crop", "flip", ("brightness", "contrast"), "standardize")


@pytest.fixture
def options(default):
    return default.inputs


def batch_of(images, epoch=0):
    index = jnp.arange(len(images))
    return {
        "image": jnp.asarray(images),
        "label": jnp.asarray(LABELS[: len(images)], jnp.int32),
        "index": index,
        "epoch": jnp.full_like(index, epoch),
    }


def train(options, images=IMAGES, keys=KEYS, **known):
    bound = inputs.make(options, images.shape[1:], **known)
    found, targets = jax.jit(bound.train)(keys, batch_of(images))
    assert found.shape == (len(images), *bound.image_shape)
    assert found.dtype == jnp.float32
    return np.asarray(found), targets


@pytest.mark.parametrize(
    ("recipe", "transforms", "digest"),
    [
        ("default", None, "ff357875030c5ef0"),
        ("default", IN_TWO_ORDERS, "a28449667265aeff"),
        ("fast", None, "f87a338681f2a07e"),
    ],
)
def test_the_bytes_of_the_recipes_stay(recipe, transforms, digest):
    """As they were before transforms came in a list: results that were published hang on them.

    They may change with what XLA makes of them on CPUs, in the last bits. With a transform, not.
    """
    options = config_lib.recipe(recipe).inputs
    options.transforms = transforms or options.transforms
    found, targets = train(options)
    assert hashlib.sha256(found.tobytes()).hexdigest().startswith(digest)
    np.testing.assert_array_equal(targets.label, LABELS)
    assert targets.weight is None


STREAMS = {"random_crop": 0, "flip": 1, "brightness": 2, "contrast": 3, "color": 5, "cutout": 6}


@pytest.mark.parametrize("left_out", [None, "random_crop", "flip", "contrast"])
def test_what_a_transform_draws_does_not_depend_on_the_others(options, left_out):
    """Each has a random stream of its own: one after the other, each by its number alone."""
    options.transforms = tuple(name for name in STREAMS if name != left_out)
    if left_out == "random_crop":
        options.transforms += ("central_crop",)
    info = Info(jnp.int32(0), jnp.int32(0), KEYS[0])
    expected = jnp.asarray(IMAGES, jnp.float32)
    for name in options.transforms:
        keys = jax.vmap(jax.random.fold_in, (0, None))(KEYS, STREAMS.get(name, 0))
        pairs = zip(keys, expected, strict=True)
        expected = [IMAGE[name].function(key, image, info, options) for key, image in pairs]
    np.testing.assert_allclose(train(options)[0], expected, atol=1e-2)


def test_a_pair_is_applied_in_either_order(options):
    """Contrast to the mean alone, and cutout: the contrast comes last where all is flat."""
    options.update(size=(32, 32), transforms=(("contrast", "cutout"), "flip"))
    options.contrast.update(lower=0.0, upper=0.0)
    found, _ = train(options)
    orders = []
    for first, second in (("contrast", "cutout"), ("cutout", "contrast")):
        options.transforms = (first, second, "flip")
        orders.append(train(options)[0])
    is_flat = found.std((1, 2)).max(-1) < 0.01
    assert 0 < is_flat.sum() < 8
    np.testing.assert_allclose(found, np.where(is_flat[:, None, None, None], *orders[::-1]))


def test_alternating_flips_follow_index_seed_and_epoch(options):
    options.flip.alternating = True
    options.update(size=(32, 32), transforms=("flip",))

    def flipped(seed, epoch):
        bound = inputs.make(options, (32, 32, 3), seed=seed)
        found, _ = bound.train(KEYS, batch_of(IMAGES, epoch))
        return (np.asarray(found) == IMAGES[:, :, ::-1]).all((1, 2, 3))

    first = flipped(0, 0)
    assert 0 < first.sum() < 8
    np.testing.assert_array_equal(flipped(0, 3), ~first)
    assert (flipped(1, 0) != first).any()


def test_mixup_of_neighbours(options):
    options.update(size=(32, 32), transforms=("mixup",))
    found, targets = train(options)
    weight = np.asarray(targets.weight)
    np.testing.assert_array_equal(weight[::2], weight[1::2])
    assert len(np.unique(weight)) == 4
    partner = np.arange(8) ^ 1
    np.testing.assert_array_equal(targets.label, LABELS)
    np.testing.assert_array_equal(targets.other_label, LABELS[partner])
    part = weight[:, None, None, None]
    np.testing.assert_allclose(found, part * IMAGES + (1 - part) * IMAGES[partner], atol=1e-3)


def test_cutmix_of_neighbours(options):
    options.update(size=(32, 32), transforms=("cutmix",))
    options.cutmix.probability = 1.0
    images = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None, None, None], IMAGES.shape)
    found, targets = train(options, images)
    partner = np.arange(8) ^ 1
    own = (found == images).all(-1)
    assert (own | (found == images[partner]).all(-1)).all()
    np.testing.assert_allclose(targets.weight, own.mean((1, 2)), rtol=1e-6)
    for kept in own:  # what is the partner's is a rectangle
        rows, columns = (~kept).any(1), (~kept).any(0)
        np.testing.assert_array_equal(~kept, rows[:, None] & columns)
        assert rows.sum() == np.ptp(np.flatnonzero(rows)) + 1 if rows.any() else True


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixing_has_a_probability_and_a_shape(options, name):
    function, keys = getattr(mix, name), jax.random.split(jax.random.key(0), 2_000)
    pair = jnp.zeros((2, 32, 32, 1)).at[0].set(1.0)
    options[name].update(probability=0.25, alpha=2.0)
    _, weights = jax.jit(jax.vmap(lambda key: function(key, pair, options)))(keys)
    mixed = weights[weights < 1]
    assert len(mixed) == pytest.approx(500, abs=60)
    if name == "mixup":  # Beta(2, 2)
        assert float(mixed.mean()) == pytest.approx(0.5, abs=0.03)
        assert float(mixed.std()) == pytest.approx(0.05**0.5, abs=0.02)


def test_mixed_twice(options):
    """What is left of an image is what the weight says, whichever way it was mixed."""
    options.update(size=(32, 32), transforms=("mixup", "cutmix"))
    options.cutmix.probability = 1.0
    images = np.zeros(IMAGES.shape, np.uint8)
    images[::2] = 100
    found, targets = train(options, images)
    np.testing.assert_allclose(found[::2].mean((1, 2, 3)) / 100, targets.weight[::2], atol=1e-5)
    np.testing.assert_allclose(
        1 - found[1::2].mean((1, 2, 3)) / 100, targets.weight[1::2], atol=1e-5
    )


def test_the_parts_of_a_batch_give_what_the_whole_gives(options):
    """On a replica each, or one after the other; and within `shard_map`."""
    options.transforms = (*options.transforms, "mixup", "cutmix")
    bound, batch = inputs.make(options, (32, 32, 3)), batch_of(IMAGES)
    mapped = replicas.on_replicas(
        bound.train, replicas.make_mesh(1), sharded={0: 0, 1: 0}, per_image=True
    )
    whole = jax.jit(mapped)(KEYS, batch)
    half = jax.jit(bound.train)
    parts = [
        half(KEYS[part], jax.tree.map(lambda x, part=part: x[part], batch))
        for part in (slice(4), slice(4, 8))
    ]
    joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), whole, joined)


def numpy_standardized(x):
    x = x.astype(np.float64)
    return (x - x.mean()) / max(x.std(), x.size**-0.5)


@pytest.mark.parametrize("size", [24, 25, 32])
def test_evaluation_takes_the_central_crop(options, size):
    options.size = (size,)
    (found,) = inputs.make(options, (32, 32, 3)).evaluate(jnp.asarray(IMAGES))
    start = (32 - size) // 2
    for image, result in zip(IMAGES, found, strict=True):
        part = image[start : start + size, start : start + size]
        np.testing.assert_allclose(result, numpy_standardized(part), atol=1e-5)


def test_ten_views(options):
    found = inputs.make(options, (32, 32, 3)).evaluate(jnp.asarray(IMAGES), 10)
    places = [(4, 4), (0, 0), (0, 8), (8, 0), (8, 8)]
    expected = [IMAGES[1, y : y + 24, x : x + 24] for y, x in places]
    expected += [crop[:, ::-1] for crop in expected]
    assert inputs.weights(10) == (0.1,) * 10
    for view, crop in zip(found, expected, strict=True):
        np.testing.assert_allclose(view[1], numpy_standardized(crop), atol=1e-5)


def test_six_views_of_what_is_padded_and_standardised_by_the_dataset(options):
    options.update(size=(32, 32), transforms=("random_crop", "standardize"))
    options.random_crop.update(padding=2, fill="reflect")
    options.standardize.by = "dataset"
    mean, std = np.float32([100, 110, 120]), np.float32([60, 50, 40])
    bound = inputs.make(options, (32, 32, 3), mean, std)
    found = bound.evaluate(jnp.asarray(IMAGES), 6)
    picture = (IMAGES[1] - mean) / std
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), "reflect")
    expected = [picture, padded[:-2, :-2], padded[2:, 2:]]
    expected += [view[:, ::-1] for view in expected]
    assert inputs.weights(6) == (0.25, 0.125, 0.125, 0.25, 0.125, 0.125)
    for view, one in zip(found, expected, strict=True):
        np.testing.assert_allclose(view[1], one, atol=1e-5)


def test_evaluation_of_larger_pictures_is_resized(options):
    """Values that are linear in the place stay so: which part of the picture is to be seen."""
    options.update(size=(16, 16), transforms=("random_resized_crop",))
    options.random_resized_crop.central = 0.8
    images = np.stack(np.indices((40, 60)), -1)[None].astype(np.uint8)
    (found,) = inputs.make(options, (40, 60, 2)).evaluate(jnp.asarray(images))
    assert found.shape == (1, 16, 16, 2)
    steps = (np.arange(16) - 7.5) * 2  # 16 pixels are 0.8 of 40, the shorter side
    np.testing.assert_allclose(found[0, :, 0, 0], 19.5 + steps, atol=1e-3)
    np.testing.assert_allclose(found[0, 0, :, 1], 29.5 + steps, atol=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"transforms": ("flip", "fliip")},
            "Unknown transform in config.inputs.transforms 'fliip'",
        ),
        ({"transforms": ("flip", "flip")}, "has 'flip' twice"),
        ({"transforms": ("mixup", "flip")}, "has 'flip' after 'mixup'"),
        ({"transforms": ("central_crop", "random_crop")}, "'central_crop' and 'random_crop'"),
        ({"transforms": (("flip", "random_crop"),)}, "has 'random_crop' in a pair"),
        ({"transforms": (("flip", "color", "cutout"),)}, "expected a name, or two of them"),
        ({"transforms": (3,)}, "has 3, expected a name"),
        ({"transforms": (("flip", ["color"]),)}, "has ('flip', ['color']), expected a name"),
        (
            {"transforms": ("standardize", "flip", "random_crop")},
            "has 'standardize' before 'random_crop', expected the crop first.",
        ),
        ({"transforms": (("flip", "standardize"), "central_crop")}, "before 'central_crop'"),
        (
            {"transforms": (("flip", "color"), ("contrast", "cutout"))},
            "has 2 pairs, expected one at most",
        ),
        ({"size": (24, 24, 3)}, "(24, 24, 3), expected height and width"),
        ({"size": (0,)}, "(0,), expected height and width, or one number above 0."),
        ({"size": (24.5,)}, "(24.5,), expected height and width"),
        ({"random_crop.fill": "mirror"}, "Choices: zero, reflect."),
        ({"standardize.by": "images"}, "'images'. Did you mean 'image'?"),
        ({"random_crop.max_shift": -1}, "inputs.random_crop.max_shift = -1, expected 0 or more."),
        ({"brightness.delta": float("nan")}, "inputs.brightness.delta = nan, expected 0 or more."),
        ({"cutout.size": 0}, "inputs.cutout.size = 0, expected more than 0."),
        (
            {"cutout.size": 25, "transforms": ("random_crop", "cutout")},
            "size = 25 is larger than config.inputs.size = (24, 24).",
        ),
        ({"mixup.probability": 1.5}, "inputs.mixup.probability = 1.5, expected 1 or less."),
        ({"contrast.lower": 2.0}, "inputs.contrast.lower = 2.0 is above upper = 1.8."),
        (
            {"random_resized_crop.ratio_lower": 2.0},
            "inputs.random_resized_crop.ratio_lower = 2.0 is above ratio_upper = 1.333",
        ),
    ],
)
def test_what_cannot_work_is_refused(options, fields, message):
    options.update_from_flattened_dict(fields)
    with pytest.raises(UsageError, match=re.escape(message)):
        inputs.validate(options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": (33, 24)}, "size = (33, 24) is larger than the images, 32x32."),
        ({"transforms": ("flip",)}, "the images are 32x32 and no crop is among"),
        ({"transforms": ("random_crop", "standardize"), "standardize.by": "dataset"}, "needs the"),
        ({"size": (33, 33), "random_crop.padding": 1}, None),
        ({"size": (64, 64), "transforms": ("random_resized_crop",)}, None),
        ({"size": (32, 32), "transforms": ()}, None),
    ],
)
def test_what_these_pictures_allow(options, fields, message):
    options.update_from_flattened_dict(fields)
    inputs.validate(options)
    if message is None:
        inputs.make(options, (32, 32, 3))
        return
    with pytest.raises(UsageError, match=re.escape(message)):
        inputs.make(options, (32, 32, 3))
