"""Batch normalisation: the same on any number of devices, and where values leave it no room."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.models.batch_norm import BatchNorm
from tests.conftest import ROOT

PROGRAM = """
import sys
from cifar_jax.devices import runtime
runtime.start()
import jax, numpy as np
from flax import linen as nn
from jax import lax
from cifar_jax import models
from cifar_jax.devices import replicas
from cifar_jax.models.batch_norm import BatchNorm

class Network(nn.Module):
    dtype: str

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Dense(6, name="first", dtype=self.dtype)(x)
        x = nn.relu(BatchNorm(name="norm1")(x, train=train))
        x = nn.Dense(5, name="second", dtype=self.dtype)(x).mean((1, 2))
        norm = BatchNorm(use_scale=False, momentum=0.6, gelu=True, name="norm2")
        return norm(x, train=train).astype("float32")

model, rng = Network(sys.argv[2]), np.random.default_rng(0)
images = (3 + rng.normal(size=(16, 2, 3, 4)) * np.arange(1, 17)[:, None, None, None] / 8)
images, labels = images.astype(np.float32), rng.integers(0, 5, 16)
variables = models.init(model, jax.random.key(0), images.shape[1:])

def step(variables, images, labels):
    def loss_fn(params):
        logits, state, _ = models.forward(
            model, {**variables, "params": params}, images, train=True
        )
        losses = -jax.nn.log_softmax(logits)[np.arange(len(labels)), labels]
        return losses.mean(), (logits, state)
    # As in the training step: the gradient of this replica, for pmean to average.
    params = lax.pcast(variables["params"], replicas.AXIS, to="varying")
    (loss, (logits, state)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
    logits = lax.all_gather(logits, replicas.AXIS).reshape(-1, 5)
    every = lax.pmean((loss, gradient, logits), replicas.AXIS)
    return *every, state  # no average: it is one value for all replicas, or shard_map objects

for devices in (1, 2, 4, 8):
    mesh = replicas.make_mesh(devices)
    assert mesh.size == devices
    result = replicas.data_parallel(step, mesh, sharded={1: 0, 2: 0})(variables, images, labels)
    leaves, _ = jax.tree_util.tree_flatten_with_path(result)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    np.savez(f"{sys.argv[1]}/{devices}.npz", **dict(zip(names, [leaf for _, leaf in leaves])))
"""


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder, request.param],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_logits_gradients_and_statistics_are_those_of_one_device(folder, devices):
    one, several = np.load(folder / "1.npz"), np.load(folder / f"{devices}.npz")
    assert len(one.files) == len(several.files) == 1 + 7 + 1 + 4
    allowed = 2e-2 if "bfloat16" in folder.name else 1e-5
    for name in one.files:
        scale = np.abs(one[name]).max()
        np.testing.assert_allclose(several[name], one[name], atol=allowed * max(1, scale))


def run(norm, x, train=True):
    """(what comes out, new statistics), from statistics of mean 0 and variance 1."""
    channels = x.shape[-1]
    state = {"mean": jnp.zeros(channels), "var": jnp.ones(channels)}
    variables = {"params": {"bias": jnp.zeros(channels)}, "batch_stats": state}
    y, changed = norm.apply(variables, x, train=train, mutable=["batch_stats"] if train else [])
    return y, changed.get("batch_stats", state)


def test_a_large_mean_leaves_the_variance_right():
    """mean(x²) - mean² would have no digit left of it."""
    x = 3_000 + np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
    y, state = run(BatchNorm(use_scale=False, momentum=0.25), x)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(state["mean"], 0.75 * wide.mean(0), rtol=1e-6)
    np.testing.assert_allclose(state["var"], 0.25 + 0.75 * wide.var(0, ddof=1), rtol=1e-3)
    np.testing.assert_allclose(y, (wide - wide.mean(0)) / wide.std(0), atol=1e-2)


@pytest.mark.parametrize("count", [1, 7])
def test_equal_values_and_single_ones_stay_finite(count):
    y, state = run(BatchNorm(use_scale=False, epsilon=1e-12), jnp.full((count, 2), 0.3))
    assert np.abs(y).max() < 0.1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_half_precision_has_statistics_of_float32():
    """58,000 squared is beyond float16; in evaluation the running ones normalise."""
    x = jnp.asarray([[60_000.0], [2_000.0]], jnp.float16)
    y, state = run(BatchNorm(use_scale=False, momentum=0.0), x)
    assert y.dtype == jnp.float16 and y.ravel().tolist() == [1, -1]
    assert state["mean"].dtype == state["var"].dtype == jnp.float32
    assert (state["mean"].item(), state["var"].item()) == (31_000, 2 * 29_000**2)
    y, _ = run(BatchNorm(use_scale=False, epsilon=0.0), x, train=False)
    assert y.ravel().tolist() == [60_000, 2_000]
