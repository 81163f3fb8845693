"""The outputs of a network's layers, published for summaries and the table of layers."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from flax import traverse_util

COLLECTION = "intermediates"


def wanted(module: nn.Module) -> bool:
    """Whether activations are collected: asked before computing what is for `publish` alone."""
    return module.is_mutable_collection(COLLECTION)


def publish(module: nn.Module, name: str, value: jax.Array) -> jax.Array:
    """Returns `value`; where activations are collected, stores it at the module's path and `name`.

    Not the name of a module within `module`: flax keeps such a name for that module's own.
    """
    # By default `sow` collects a tuple of all calls' values.
    module.sow(COLLECTION, name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)
    return value


def by_path(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A collection as a flat dict, "module/name" -> value, in the tree's order."""
    return traverse_util.flatten_dict(tree, sep="/")
