"""What the layers of a network put out, for those who ask: telemetry and the table of layers."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import linen as nn

COLLECTION = "intermediates"


def wanted(module: nn.Module) -> bool:
    """Whether somebody asks, for what would be computed for `publish` alone."""
    return module.is_mutable_collection(COLLECTION)


def publish(module: nn.Module, name: str, value: jax.Array) -> jax.Array:
    """Returns `value`, which those who ask find at the module's path and `name`.

    Not the name of a module within `module`: flax keeps such a name for that module's own.
    """
    # By default `sow` collects a tuple of all calls' values.
    module.sow(COLLECTION, name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)
    return value


def by_path(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A collection as a flat dict, "module/name" -> value, in the tree's order."""
    return dict(_leaves(tree, ()))


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield "/".join((*path, name)), value
