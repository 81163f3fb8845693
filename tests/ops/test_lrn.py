"""Local response normalisation and its gradient against a naive float64 loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.ops.lrn import lrn, lrn_plain


def naive(x, radius, bias, alpha, beta):
    result = np.empty_like(x)
    for c in range(x.shape[-1]):
        window = x[..., max(0, c - radius) : c + radius + 1]
        result[..., c] = x[..., c] / (bias + alpha * (window**2).sum(-1)) ** beta
    return result


def naive_gradient(x, g, *options):
    """Central differences of sum(g · lrn(x)), one value at a time."""
    result, h = np.empty_like(x), 1e-5
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        result[i] = (g * (naive(x + step, *options) - naive(x - step, *options))).sum() / (2 * h)
    return result


CASES = [  # shape, depth_radius, bias, alpha, beta
    ((2, 3, 12), 4, 1.0, 0.001 / 9, 0.75),
    ((3, 7), 4, 1.0, 0.001 / 9, 0.75),  # fewer channels than the window
    ((2, 2, 2, 9), 2, 2.0, 0.05, 0.75),
    ((4, 10), 3, 1.5, 0.02, 0.5),
    ((4, 10), 0, 1.0, 0.1, 1.0),
]


@pytest.mark.parametrize(("shape", "radius", "bias", "alpha", "beta"), CASES)
@pytest.mark.parametrize("function", [lrn, lrn_plain])
def test_value_and_gradient(function, shape, radius, bias, alpha, beta):
    rng = np.random.default_rng(0)
    x, g = 10 * rng.normal(size=shape), rng.normal(size=shape)
    options = (radius, bias, alpha, beta)
    value, pull = jax.vjp(lambda x: function(x, *options), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(value, naive(x, *options), rtol=2e-5, atol=1e-5)
    (gradient,) = pull(jnp.asarray(g, jnp.float32))
    np.testing.assert_allclose(gradient, naive_gradient(x, g, *options), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_squares_without_overflow(dtype):
    x = jnp.full((1, 16), 300.0, dtype)  # 300² is beyond float16
    value, pull = jax.vjp(lrn, x)
    assert value.dtype == x.dtype
    expected = naive(np.full((1, 16), 300.0), 4, 1.0, 0.001 / 9, 0.75)
    np.testing.assert_allclose(value.astype(jnp.float32), expected, rtol=1e-2)
    assert pull(jnp.ones_like(x))[0].dtype == x.dtype
    assert np.isfinite(pull(jnp.ones_like(x))[0].astype(jnp.float32)).all()


def test_it_compiles_without_a_power():
    """`pow` is most of the naive operation's time on a CPU."""
    x = jnp.ones((4, 4, 4, 64))
    both = jax.jit(lambda x: jax.value_and_grad(lambda x: lrn(x).sum())(x))
    assert "power" not in both.lower(x).as_text()
