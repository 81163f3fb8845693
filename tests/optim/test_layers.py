"""What is said of layers, by the paths of their parameters."""

import jax
import jax.numpy as jnp

from cifar_jax.optim import layers


def test_frozen_layers_are_not_dead_ones(default):
    """Nor is a parameter of the model itself a layer without a name."""
    params = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"bias": jnp.ones(2)}, "scale": jnp.ones(1)}
    default.optim.update(groups=({"params": "a/*", "name": "frozen"},), decay_params=("b/bias",))
    gradients = jax.tree.map(jnp.zeros_like, params)
    assert layers.names(params) == ["a", "b", "scale"]
    assert layers.without_gradient(gradients).tolist() == [True] * 3
    assert layers.learning(params, default.optim).tolist() == [False, True, True]
