"""Every value comes through as it is."""

import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.ops.materialize import materialize


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_float_is_itself(dtype):
    limits = jnp.finfo(dtype)
    values = [0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, limits.max, limits.min, limits.tiny]
    x = jnp.array(values, dtype)
    found = materialize(x)
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(found.astype(jnp.float32), x.astype(jnp.float32))
    assert materialize(jnp.array(-0.0, dtype)) == 0


def test_small_integers_are_themselves():
    x = jnp.arange(-127, 128, dtype=jnp.int8)
    np.testing.assert_array_equal(materialize(x), x)
