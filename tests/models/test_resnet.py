"""ResNet-18 against its definition in numpy and, where it is installed, in PyTorch."""

from functools import partial

import jax
import numpy as np
import pytest

from cifar_jax import models
from cifar_jax.models.resnet import Block, ResNet18
from tests.models import reference

SHAPE = (4, 16, 16, 3)


def network(ops, variables, images, train):
    """The reference, with the weights' own sizes."""
    params, stats = variables["params"], variables["batch_stats"]
    running = {}

    def norm(x, weights, stats, path):
        y, running[path] = ops.batch_norm(x, weights, stats, train, 1e-5, 0.9)
        return y

    def block(x, p, s, path, stride):
        y = ops.conv(x, p["conv1"]["kernel"], stride, 1)
        y = ops.relu(norm(y, p["norm1"], s["norm1"], f"{path}/norm1"))
        y = ops.conv(y, p["conv2"]["kernel"], 1, 1)
        y = norm(y, p["norm2"], s["norm2"], f"{path}/norm2")
        if "projection" in p:
            x = ops.conv(x, p["projection"]["kernel"], stride)
            name = "projection_norm"
            x = norm(x, p[name], s[name], f"{path}/{name}")
        return ops.relu(x + y)

    x = ops.conv(images, params["conv1"]["kernel"], 1, 1)
    x = ops.relu(norm(x, params["norm1"], stats["norm1"], "norm1"))
    for number in (1, 2, 3, 4):
        for which, stride in (("block1", 1 if number == 1 else 2), ("block2", 1)):
            name = f"group{number}"
            x = block(x, params[name][which], stats[name][which], f"{name}/{which}", stride)
    x = x.reshape(len(x), -1, x.shape[-1]).mean(1)
    return x @ params["linear"]["kernel"] + params["linear"]["bias"], running


@pytest.fixture(scope="module")
def model():
    return ResNet18(num_classes=5, width=4)


@pytest.fixture(scope="module")
def variables(model):
    return reference.random_variables(model, SHAPE[1:])


def test_it_is_its_definition_in_numpy(model, variables):
    reference.compare_with_numpy(model, network, variables, *reference.batch(SHAPE, 5))


def test_it_is_its_definition_in_torch(model, variables):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    reference.compare_with_torch(torch, model, network, variables, *reference.batch(SHAPE, 5))


def test_there_are_11173962_parameters():
    model = models.create("resnet18", num_classes=10, dtype="float32")
    variables = jax.eval_shape(lambda key: models.init(model, key, (32, 32, 3)), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 11_173_962


def test_initial_distributions(model):
    """He's with the fan out: a stride of 2 and the projections make no difference."""
    block = Block(channels=64, stride=2)
    images = np.zeros((1, 2, 2, 16), np.float32)
    params = jax.jit(partial(block.init, train=False))(jax.random.key(0), images)["params"]
    for name, window in (("conv1", 3), ("conv2", 3), ("projection", 1)):
        kernel = np.asarray(params[name]["kernel"])
        expected = np.sqrt(2 / (window**2 * 64))
        assert kernel.std() == pytest.approx(expected, rel=3 / np.sqrt(2 * kernel.size))
        assert np.abs(kernel).max() > 2.5 * expected  # not truncated


@pytest.mark.parametrize("shape", [(2, 5, 7, 1), (1, 1, 1, 4)])
def test_any_size_any_channels_bfloat16(shape):
    model = ResNet18(num_classes=3, dtype="bfloat16", width=4)
    images = jax.ShapeDtypeStruct(shape, np.float32)

    def run(key, images):
        variables = models.init(model, key, shape[1:])
        return models.forward(model, variables, images, train=True, layers=True)

    logits, state, layers = jax.eval_shape(run, jax.random.key(0), images)
    assert logits.shape == (shape[0], 3) and logits.dtype == np.float32
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state))
    assert layers["group1/block1/conv1"].dtype == "bfloat16"
