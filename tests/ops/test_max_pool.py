"""Max pooling against the plain form, in value and gradient, ties included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.ops.max_pool import (
    max_pool,
    max_pool_blocks,
    max_pool_blocks_plain,
    max_pool_plain,
)

pytestmark = pytest.mark.usefixtures("each_form")


def both(function, x, g):
    value, pull = jax.vjp(function, x)
    return value, pull(g)[0]


@pytest.mark.parametrize("shape", [(2, 24, 24, 3), (1, 12, 8, 5), (3, 2, 2, 1), (2, 7, 9, 3)])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_value_and_gradient_agree_with_the_plain_form(shape, ties, dtype):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 3, shape) if ties else rng.normal(size=shape)
    x = jnp.asarray(values, dtype)
    g = jnp.asarray(rng.integers(-4, 5, max_pool_plain(x).shape), dtype)  # sums without rounding
    value, gradient = both(max_pool, x, g)
    expected_value, expected_gradient = both(max_pool_plain, x, g)
    assert value.dtype == gradient.dtype == x.dtype
    np.testing.assert_array_equal(value, expected_value)
    np.testing.assert_array_equal(max_pool(x), expected_value)  # where no gradient is asked for
    np.testing.assert_array_equal(gradient, expected_gradient)


def test_the_padding_never_wins():
    x = jnp.full((1, 4, 4, 1), -5.0)
    value, gradient = both(max_pool, x, jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(value, -5)
    assert gradient.sum() == 4


def test_even_sizes_compile_without_select_and_scatter():
    """XLA's own gradient is the most expensive operation of the naive training step."""
    x = jnp.ones((2, 8, 8, 4))
    gradient = jax.jit(jax.grad(lambda x: max_pool(x).sum()))
    assert "select_and_scatter" not in gradient.lower(x).as_text()


@pytest.mark.parametrize(
    ("shape", "window"), [((2, 31, 30, 3), 2), ((3, 3, 3, 5), 3), ((1, 7, 8, 2), 3)]
)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_agree_with_the_plain_form(shape, window, ties, dtype):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 3, shape) if ties else rng.normal(size=shape)
    x = jnp.asarray(values, dtype)
    g = jnp.asarray(rng.integers(-4, 5, max_pool_blocks_plain(x, window).shape), dtype)
    expected, expected_gradient = both(lambda x: max_pool_blocks_plain(x, window), x, g)
    value, gradient = both(lambda x: max_pool_blocks(x, window), x, g)
    assert value.dtype == gradient.dtype == x.dtype
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(max_pool_blocks(x, window), expected)
    np.testing.assert_array_equal(gradient, expected_gradient)


def test_blocks_compile_without_select_and_scatter():
    gradient = jax.jit(jax.grad(lambda x: max_pool_blocks(x, 2).sum()))
    assert "select_and_scatter" not in gradient.lower(jnp.ones((2, 7, 8, 4))).as_text()
