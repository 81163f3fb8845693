"""airbench's networks against their definition in numpy and, where it is installed, in PyTorch."""

from functools import partial

import jax
import numpy as np
import pytest

from cifar_jax import models
from cifar_jax.errors import UsageError
from cifar_jax.models import airbench
from cifar_jax.models.airbench import Airbench
from tests.models import reference

SHAPE = (4, 26, 26, 3)  # 25, then 12, 6 and 3: the last pooling has its whole window
KEY = jax.random.key(0)
FROZEN = ("whiten/kernel",)


def network(ops, variables, images, train, momentum=0.6, divisor=None):
    """The reference, with the weights' own sizes."""
    params, stats = variables["params"], variables["batch_stats"]
    running = {}

    def norm(x, group, name, shortcut=0):
        weights, path = params[group][name], f"{group}/{name}"
        y, running[path] = ops.batch_norm(x, weights, stats[group][name], train, 1e-12, momentum)
        return ops.gelu(y + shortcut)

    x = ops.gelu(ops.conv(images, params["whiten"]["kernel"]) + params["whiten"]["bias"])
    for group in ("group1", "group2", "group3"):
        x = ops.max_pool(ops.conv(x, params[group]["conv1"]["kernel"], 1, 1), 2)
        first = x = norm(x, group, "norm1")
        x = norm(ops.conv(x, params[group]["conv2"]["kernel"], 1, 1), group, "norm2")
        if "conv3" in params[group]:
            y = ops.conv(x, params[group]["conv3"]["kernel"], 1, 1)
            x = norm(y, group, "norm3", first)
    x = ops.max_pool(x, 3).reshape(len(x), -1)
    return x @ params["linear"]["kernel"] / (divisor or x.shape[1]), running


OF_96 = {"momentum": 0.9, "divisor": 9.0}


@pytest.fixture(scope="module", params=["airbench94", "airbench96"])
def case(request):
    """(model, reference, variables)."""
    of_96 = request.param == "airbench96"
    options = {"depth": 3, **OF_96} if of_96 else {}
    model = Airbench(num_classes=5, widths=(4, 6, 6), **options)
    defined = partial(network, **OF_96) if of_96 else network
    return model, defined, reference.random_variables(model, SHAPE[1:])


def test_it_is_its_definition_in_numpy(case):
    reference.compare_with_numpy(*case, *reference.batch(SHAPE, 5), frozen=FROZEN)


def test_it_is_its_definition_in_torch(case):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    reference.compare_with_torch(torch, *case, *reference.batch(SHAPE, 5), frozen=FROZEN)


def test_the_networks_of_airbench96_have_their_parameters():
    for name, count in (("airbench96", 9_915_704), ("airbench_small", 146_424)):
        model = models.create(name, num_classes=10, dtype="float32")
        variables = jax.eval_shape(partial(models.init, model, image_shape=(32, 32, 3)), KEY)
        assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


def test_its_layers_are_those_of_the_paper():
    model = models.create("airbench", num_classes=10, dtype="float32")
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)

    def run(key, images):
        variables = models.init(model, key, (32, 32, 3))
        layers = models.forward(model, variables, images, train=False, layers=True)[2]
        assert list(layers)[:4] == ["whiten", "gelu", "group1/conv1", "group1/pool"]
        return variables, layers

    variables, layers = jax.eval_shape(run, jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 1_971_640
    shapes = {name: value.shape[1:] for name, value in layers.items()}
    assert shapes["whiten"] == (31, 31, 24)
    assert shapes["group1/gelu2"] == (15, 15, 64)
    assert shapes["group2/gelu2"] == (7, 7, 256)
    assert shapes["group3/gelu2"] == (3, 3, 256)
    assert shapes["pool"] == (1, 1, 256)


def test_initial_filters_pass_their_channel_on():
    for channels, filters in ((3, 5), (5, 3)):
        kernel = np.asarray(airbench.partly_identity(jax.random.key(0), (3, 3, channels, filters)))
        expected = np.zeros((3, 3, channels, 3))
        expected[1, 1, range(3), range(3)] = 1
        np.testing.assert_array_equal(kernel[..., :3], expected)
        rest = np.abs(kernel[..., 3:]) * np.sqrt(9 * channels)
        assert not rest.size or 0.9 < rest.max() <= 1


def test_the_head_has_a_deviation_of_1():
    kernel = np.asarray(airbench.head(jax.random.key(0), (64, 10)))
    assert kernel.std(ddof=1) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_whitening_is_that_of_the_data(channels):
    """Patches come out uncorrelated, about zero, with a variance of 1 where they vary at all."""
    rng = np.random.default_rng(0)
    model = Airbench(widths=(4,))
    images = rng.normal(size=(600, 6, 5, channels)) @ rng.normal(size=(channels, channels)) + 0.5
    images = images.astype(np.float32)
    images[..., 1:, :] += images[..., :-1, :]
    start = reference.random_variables(model, images.shape[1:])
    variables = models.init_from_data(model, start, images)

    filters = np.asarray(variables["params"]["whiten"]["kernel"])
    count = 4 * channels
    assert filters.shape == (2, 2, channels, 2 * count)
    np.testing.assert_array_equal(filters[..., count:], -filters[..., :count])
    out = reference.Numpy().conv(images.astype(float), filters[..., :count]).reshape(-1, count)
    covariance = out.T @ out / len(out)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-5
    weakest = np.linalg.norm(filters.reshape(-1, 2 * count)[:, :count], axis=0)
    # |filter|² is 1 / (eigenvalue + 5e-4), and the variance eigenvalue / (eigenvalue + 5e-4).
    np.testing.assert_allclose(np.diag(covariance), 1 - 5e-4 * weakest**2, rtol=1e-4)
    assert (np.diff(weakest) >= 0).all()
    jax.tree.map(
        np.testing.assert_array_equal,
        {**variables, "params": {**variables["params"], "whiten": 0}},
        {**start, "params": {**start["params"], "whiten": 0}},
    )
    np.testing.assert_array_equal(
        variables["params"]["whiten"]["bias"], start["params"]["whiten"]["bias"]
    )


def test_a_model_without_it_starts_from_no_data():
    variables = {"params": {}}
    cnn = models.create("cnn", 10, "float32")
    assert models.images_to_fit(cnn) == 0
    assert models.init_from_data(cnn, variables, None) is variables


def test_more_images_than_it_takes_change_nothing(monkeypatch):
    assert models.images_to_fit(Airbench()) == 5_000
    monkeypatch.setattr(Airbench, "images_to_fit", 3)
    assert models.images_to_fit(Airbench()) == 3
    model = Airbench(widths=(4,))
    images = np.random.default_rng(0).normal(size=(5, 4, 4, 1)).astype(np.float32)
    start = reference.random_variables(model, images.shape[1:])
    found, expected = (models.init_from_data(model, start, x) for x in (images, images[:3]))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 32)])
def test_too_small_an_image_is_refused(size):
    message = f"Airbench cannot take images of {size[0]}x{size[1]}: .*larger config.inputs.size"
    with pytest.raises(UsageError, match=message):
        models.init(Airbench(widths=(4,)), jax.random.key(0), (*size, 3))


def test_a_bug_of_a_model_is_no_matter_of_size():
    with pytest.raises(TypeError, match="'float31' not understood"):
        models.init(Airbench(dtype="float31"), jax.random.key(0), (8, 8, 3))


@pytest.mark.parametrize("size", [2, 9, 24, 64])
def test_any_size_has_logits(size):
    model = Airbench(num_classes=3, dtype="bfloat16", widths=(4, 6, 6))
    images = jax.ShapeDtypeStruct((2, size, size + 1, 2), np.float32)

    def run(key, images):
        variables = models.init(model, key, images.shape[1:])
        return models.forward(model, variables, images, train=True)

    logits, state, _ = jax.eval_shape(run, jax.random.key(0), images)
    assert logits.shape == (2, 3) and logits.dtype == np.float32
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state))
