"""What a checkpoint must not hold."""

import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.loop import saver


@pytest.mark.parametrize(("value", "expected"), [(1.0, True), (np.nan, False), (-np.inf, False)])
def test_all_finite(value, expected):
    assert bool(saver.all_finite({"a": jnp.ones(3), "b": jnp.array([0.0, value])})) is expected
