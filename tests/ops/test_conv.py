"""Convolution against the plain form, in value and gradient, where the fast form applies or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.ops.conv import conv, conv_plain

pytestmark = pytest.mark.usefixtures("each_form")


def relative(found, expected):
    return float(jnp.sqrt(jnp.mean((found - expected) ** 2)) / jnp.std(expected))


@pytest.mark.parametrize(
    ("shape", "kernel_shape"),
    [
        ((3, 12, 12, 64), (5, 5, 64, 64)),  # conv2
        ((17, 4, 8, 16), (5, 5, 16, 32)),  # a chunk and one image more; one row of tiles
        ((2, 24, 24, 3), (5, 5, 3, 64)),  # conv1: too few channels
        ((2, 11, 12, 32), (5, 5, 32, 16)),  # no multiple of a tile
        ((2, 8, 8, 32), (3, 3, 32, 32)),  # another kernel
        ((2, 7, 8, 3), (4, 2, 3, 5)),  # of even sizes
    ],
)
def test_value_and_gradients_agree_with_the_plain_form(shape, kernel_shape):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], shape)
    kernel = 0.05 * jax.random.normal(keys[1], kernel_shape)
    dy = jax.random.normal(keys[2], (*shape[:3], kernel_shape[3]))

    def all_of(function):
        y, pull = jax.vjp(function, x, kernel)
        return y, *pull(dy)

    results = [jax.jit(all_of, static_argnums=0)(function) for function in (conv, conv_plain)]
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        assert relative(found, expected) < 1e-5


def test_borders_are_zero_padding():
    """Ones everywhere: a corner sees 3x3 of the kernel's 5x5, the middle all of it."""
    y = jax.jit(conv)(jnp.ones((1, 8, 8, 16)), jnp.ones((5, 5, 16, 16)))
    np.testing.assert_allclose(y[0, 0, 0, 0], 9 * 16, rtol=1e-5)
    np.testing.assert_allclose(y[0, 3, 3, 0], 25 * 16, rtol=1e-5)
    np.testing.assert_allclose(y[0, 7, 3, 5], 15 * 16, rtol=1e-5)


def test_half_precision_stays_direct():
    x, kernel = jnp.ones((1, 8, 8, 16), jnp.float16), jnp.ones((5, 5, 16, 16), jnp.float16)
    assert conv(x, kernel).dtype == jnp.float16
    assert "convolution" in jax.jit(conv).lower(x, kernel).as_text()


def test_the_fast_form_is_what_cpus_run():
    x, kernel = jnp.ones((1, 8, 8, 16)), jnp.ones((5, 5, 16, 16))
    assert "convolution" not in jax.jit(conv).lower(x, kernel).as_text()
