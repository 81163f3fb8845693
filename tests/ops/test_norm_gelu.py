"""GELU and its own gradient against automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.ops.norm_gelu import gelu


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_gelu_and_its_gradient(dtype):
    x = jnp.asarray([*np.linspace(-12, 12, 193), -0.0, 1e-30, -1e-30], dtype)
    dy = jnp.asarray(np.random.default_rng(0).normal(size=x.shape), dtype)
    y, pull = jax.vjp(gelu, x)
    wide = x.astype(jnp.float32)
    expected, reference = jax.vjp(lambda x: jax.nn.gelu(x, approximate=False), wide)
    allowed = {"float32": 1e-6, "float16": 2e-3}[dtype]
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=allowed, atol=allowed)
    (dx,) = pull(dy)
    assert dx.dtype == x.dtype
    found, wanted = dx.astype(jnp.float32), reference(dy.astype(jnp.float32))[0]
    np.testing.assert_allclose(found, wanted, rtol=10 * allowed, atol=allowed)


def test_nothing_overflows():
    x = jnp.asarray([-1e20, -300.0, 300.0, 1e20, jnp.inf, jnp.nan])
    gradient = jax.grad(lambda x: gelu(x).sum())(x)
    np.testing.assert_array_equal(gradient[:4], [0, 0, 1, 1])
    assert jnp.isnan(gradient[5])
