"""Parameters, gradients and updates layer by layer: a layer is a module with parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from cifar_jax.optim import paths
from cifar_jax.optim.groups import assign


def names(params: Any) -> list[str]:
    """The paths of the modules that have parameters of their own, sorted; a parameter of the model
    itself counts as one."""
    return list(_by_layer(params))


def _by_layer(tree: Any) -> dict[str, list[Any]]:
    layers: dict[str, list[Any]] = {}
    for name, leaf in paths.flatten(tree).items():
        layers.setdefault(name.rpartition("/")[0] or name, []).append(leaf)
    return dict(sorted(layers.items()))


def learning(params: Any, config: ConfigDict) -> np.ndarray:
    """bool [layers], in the order of `names`: whether any parameter of the layer is not
    frozen by `config.optim.groups`."""
    groups = paths.unflatten(assign(params, config))
    return np.array(
        [any(group.name != "frozen" for group in layer) for layer in _by_layer(groups).values()]
    )


def without_gradient(gradients: Any) -> jax.Array:
    """bool [layers], in the order of `names`: whether no gradient reaches the layer's
    vectors, above all its bias, as its activations, or all those of a later layer, are 0."""

    def is_zero(leaves: list[jax.Array]) -> jax.Array:
        vectors = [leaf for leaf in leaves if leaf.ndim == 1] or leaves
        return jnp.stack([(leaf == 0).all() for leaf in vectors]).all()

    return jnp.stack([is_zero(leaves) for leaves in _by_layer(gradients).values()])


def norms(gradients: Any, params: Any, updates: Any) -> dict[str, jax.Array]:
    """Euclidean norms of gradients and parameters, and update / parameter norms: of all parameters,
    and of each layer."""
    by_layer = [_by_layer(tree) for tree in (gradients, params, updates)]
    result: dict[str, jax.Array] = {}
    for suffix, *trees in (
        ("", gradients, params, updates),
        *((f"/{name}", *(layers[name] for layers in by_layer)) for name in by_layer[0]),
    ):
        gradient, parameter, update = map(optax.tree.norm, trees)
        result |= {
            f"gradient_norm{suffix}": gradient,
            f"parameter_norm{suffix}": parameter,
            f"update_ratio{suffix}": update / (parameter + 1e-12),
        }
    return result
