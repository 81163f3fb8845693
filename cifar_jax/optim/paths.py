"""Parameters by path: `block1/conv/kernel`, chosen by shell patterns in which * is any text."""

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

from flax import traverse_util

from cifar_jax.errors import unknown


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of nested dicts by path, in the tree's own order."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(leaves: dict[str, Any]) -> Any:
    return traverse_util.unflatten_dict(leaves, sep="/")


def tree_map(function: Callable, tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` of nested dicts, with the path of each leaf before the leaves."""
    leaves = map(flatten, (tree, *rest))
    first, *others = leaves
    return unflatten({n: function(n, x, *(o[n] for o in others)) for n, x in first.items()})


def matching(paths: Sequence[str], patterns: Sequence[str], field: str) -> list[str]:
    """Those of `paths` that match any of `patterns`, pattern by pattern, each once.

    Raises UsageError for a pattern that matches none, with the nearest path and the `field` of the
    config that has it.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        matched = fnmatch.filter(paths, pattern)
        if not matched:
            raise unknown(f"parameter in config.optim.{field}", pattern, paths)
        found |= dict.fromkeys(matched)
    return list(found)
