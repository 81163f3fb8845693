"""The tutorial's network: parameters, initial distributions, layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import models
from cifar_jax.ops.lrn import lrn_plain
from cifar_jax.ops.max_pool import max_pool_plain

LAYERS = {  # kernel shape, stddev, bias
    "conv1": ((5, 5, 3, 64), 0.05, 0.0),
    "conv2": ((5, 5, 64, 64), 0.05, 0.1),
    "local3": ((2304, 384), 0.04, 0.1),
    "local4": ((384, 192), 0.04, 0.1),
    "softmax_linear": ((192, 10), 1 / 192, 0.0),
}


@pytest.fixture(scope="module")
def model():
    return models.create("cnn", num_classes=10, dtype="float32")


@pytest.fixture(scope="module")
def params(model):
    variables = models.init(model, jax.random.key(0), (24, 24, 3))
    assert set(variables) == {"params"}
    return variables["params"]


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (4, 24, 24, 3))


def test_there_are_1068298_parameters(params):
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 1_068_298
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("layer", LAYERS)
def test_initial_distribution(params, layer):
    shape, stddev, bias = LAYERS[layer]
    kernel = np.asarray(params[layer]["kernel"])
    assert kernel.shape == shape
    assert np.abs(kernel).max() <= 2 * stddev
    # A normal distribution cut at two stddev has 0.8796 of it; three standard errors around that.
    tolerance = 3 / np.sqrt(2 * kernel.size)
    assert kernel.std() / stddev == pytest.approx(0.8796, rel=tolerance)
    assert abs(kernel.mean()) < 3 * stddev / np.sqrt(kernel.size)
    np.testing.assert_array_equal(params[layer]["bias"], np.float32(bias))


def test_layers_are_the_tutorials_formulas_one_by_one(model, params, images):
    """Each from the one before it, written the plain way: bias and ReLU before the pooling."""
    logits, _, layers = models.forward(model, {"params": params}, images, train=True, layers=True)

    def conv(x, name):
        dimensions = ("NHWC", "HWIO", "NHWC")
        weights = params[name]
        y = jax.lax.conv_general_dilated(
            x, weights["kernel"], (1, 1), "SAME", dimension_numbers=dimensions
        )
        return jax.nn.relu(y + weights["bias"])

    def dense(x, name):
        return x @ params[name]["kernel"] + params[name]["bias"]

    expected = {
        "conv1": conv(images, "conv1"),
        "pool1": max_pool_plain(layers["conv1"]),
        "norm1": lrn_plain(layers["pool1"]),
        "conv2": conv(layers["norm1"], "conv2"),
        "norm2": lrn_plain(layers["conv2"]),
        "pool2": max_pool_plain(layers["norm2"]),
        "local3": jax.nn.relu(dense(layers["pool2"].reshape(4, -1), "local3")),
        "local4": jax.nn.relu(dense(layers["local3"], "local4")),
        "softmax_linear": dense(layers["local4"], "softmax_linear"),
    }
    assert list(layers) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(layers[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(logits, layers["softmax_linear"])
    np.testing.assert_allclose(logits, model.apply({"params": params}, images), atol=1e-5)


def test_bias_after_the_pooling_is_bias_before_it(model, params, images):
    shifted = {**params, "conv1": {**params["conv1"], "bias": jnp.linspace(-1, 1, 64)}}
    _, _, layers = models.forward(model, {"params": shifted}, images, train=False, layers=True)
    np.testing.assert_allclose(layers["pool1"], max_pool_plain(layers["conv1"]), atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_computes_close_to_float32(model, params, images, dtype):
    half = models.create("cnn", num_classes=10, dtype=dtype)
    logits, _, layers = models.forward(half, {"params": params}, images, train=False, layers=True)
    assert logits.dtype == jnp.float32
    assert layers["conv2"].dtype == jnp.dtype(dtype)
    expected = model.apply({"params": params}, images)
    np.testing.assert_allclose(logits, expected, atol=0.02)


def test_other_numbers_of_classes():
    model = models.create("cnn", num_classes=100, dtype="float32")
    shape = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 24, 24, 3)))
    assert shape["params"]["softmax_linear"]["kernel"].shape == (192, 100)
