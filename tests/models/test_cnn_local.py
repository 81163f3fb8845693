"""The locally connected network: its operation against plain loops, its sizes."""

import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax import models
from cifar_jax.models import overview
from cifar_jax.ops.local_conv import local_conv


def by_loops(x, kernel):
    count, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((count, height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            window = padded[:, i : i + 3, j : j + 3]
            out[:, i, j] = np.tensordot(window, kernel[i, j], 3)
    return out


def test_each_place_has_a_kernel_of_its_own():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 4, 5, 3)), rng.normal(size=(4, 5, 3, 3, 3, 2))
    found = local_conv(jnp.array(x, jnp.float32), jnp.array(kernel, jnp.float32))
    np.testing.assert_allclose(found, by_loops(x, kernel), atol=1e-5)


def test_its_gradients_are_those_of_differences():
    rng = np.random.default_rng(1)
    x, kernel = rng.normal(size=(1, 3, 3, 2)), rng.normal(size=(3, 3, 3, 3, 2, 2))
    weight = rng.normal(size=(1, 3, 3, 2))
    dx, dk = jax.grad(lambda x, k: (local_conv(x, k) * weight).sum(), (0, 1))(
        jnp.array(x, jnp.float32), jnp.array(kernel, jnp.float32)
    )
    for place in [(0, 0, 0, 0), (0, 1, 2, 1)]:
        change = np.zeros_like(x)
        change[place] = 1.0
        assert np.isclose(dx[place], (by_loops(change, kernel) * weight).sum(), atol=1e-4)
    for place in [(0, 0, 0, 0, 0, 0), (1, 2, 1, 1, 1, 1)]:
        change = np.zeros_like(kernel)
        change[place] = 1.0
        assert np.isclose(dk[place], (by_loops(x, change) * weight).sum(), atol=1e-4)


def test_its_parameters_and_products():
    model = models.create("cnn_local", 10, "float32")
    rows = {row.name: row for row in overview.layers(model, (24, 24, 3))}
    assert rows["local3"].shape == (6, 6, 64)
    assert rows["local3"].parameters == 6 * 6 * 9 * 64 * 64 + 64
    assert rows["local3"].multiply_adds == 6 * 6 * 9 * 64 * 64
    assert rows["local4"].multiply_adds == 6 * 6 * 9 * 64 * 32
    assert rows["conv2"].multiply_adds == 12 * 12 * 25 * 64 * 64
    assert sum(row.parameters for row in rows.values()) == 2_109_610


def test_what_is_below_is_the_tutorials():
    key = jax.random.key(0)
    local, plain = (
        models.init(models.create(name, 10, "float32"), key, (24, 24, 3))["params"]
        for name in ("cnn_local", "cnn")
    )
    for name in ("conv1", "conv2"):
        np.testing.assert_array_equal(local[name]["kernel"], plain[name]["kernel"])
    assert abs(float(local["local3"]["kernel"].std()) / 0.04 - 0.88) < 0.01
