"""A model layer by layer: output shapes, parameters, multiply-adds."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from cifar_jax.models import activations


class LayerRow(NamedTuple):
    name: str  # its path
    shape: tuple[int, ...]  # of the layer's output for one image
    parameters: int
    multiply_adds: int  # for one image, of kernels alone


def layers(model: nn.Module, image_shape: tuple[int, int, int]) -> list[LayerRow]:
    """The rows of a model by path, in its order; computes nothing.

    A row for everything that the model publishes, and for each module within which nothing is
    published. Parameters outside of all these come last, with the shape (), as it is unknown.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    shapes: dict[str, tuple[int, ...]] = {}

    def run(variables, images):
        # flax itself publishes what each module returns, as "__call__".
        mutable = [activations.COLLECTION]
        _, found = model.apply(variables, images, mutable=mutable, capture_intermediates=True)
        outputs = activations.by_path(found.get(activations.COLLECTION, {}))
        shapes.update(_shapes(outputs))  # in the model's order: what a trace returns is sorted
        return outputs

    jax.eval_shape(run, variables, images)
    weights: dict[str, dict[str, Any]] = {path: {} for path in shapes}
    for path, array in activations.by_path(variables["params"]).items():
        owner = _owner(path, shapes)
        weights.setdefault(owner, {})[path.removeprefix(owner + "/")] = array
    return [_row(path, shapes.get(path, ()), arrays) for path, arrays in weights.items()]


def _shapes(outputs: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of one image, by path: of what is published, and of modules within which nothing is."""
    found: dict[str, tuple[int, ...]] = {}
    for path, value in outputs.items():
        module, _, name = path.rpartition("/")
        if name == "__call__":
            if not module or any(other.startswith(f"{module}/") for other in found):
                continue
            path, value = module, value[-1]  # flax keeps a tuple, of every call
        if isinstance(value, jax.Array):
            found[path] = value.shape[1:]
    return found


def _owner(path: str, layers: Iterable[str]) -> str:
    """The innermost of `layers` that has the parameter at `path`, or else its parent's path."""
    around = [layer for layer in layers if path.startswith(f"{layer}/")]
    return max(around, key=len, default=path.rpartition("/")[0] or path)


def _row(path: str, shape: tuple[int, ...], weights: dict[str, Any]) -> LayerRow:
    parameters = sum(array.size for array in weights.values())
    multiply_adds = 0
    if shape and "kernel" in weights:
        unshared = weights["kernel"].ndim > 4  # it holds the weights of each place
        places = 1 if unshared else math.prod(shape[:-1])  # where the kernel is put to
        multiply_adds = weights["kernel"].size * places
    return LayerRow(path, tuple(shape), parameters, multiply_adds)


def markdown(rows: Sequence[LayerRow]) -> str:
    """A table with percentages of the total, for TensorBoard's text and the console alike."""
    parameters = sum(row.parameters for row in rows) or 1
    products = sum(row.multiply_adds for row in rows) or 1
    heading = ("layer", "output", "parameters", "share", "multiply-adds", "share")
    cells = [
        (
            row.name,
            "×".join(map(str, row.shape)),
            f"{row.parameters:,}",
            f"{row.parameters / parameters:.1%}",
            f"{row.multiply_adds:,}",
            f"{row.multiply_adds / products:.1%}",
        )
        for row in rows
    ]
    cells.append(("total", "", f"{parameters:,}", "", f"{products:,}", ""))
    widths = [max(map(len, column)) for column in zip(heading, *cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        first = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        return "| " + " | ".join(first + numbers) + " |"

    rule = (
        "|"
        + "|".join("-" * (width + 1) + ("-" if i < 2 else ":") for i, width in enumerate(widths))
        + "|"
    )
    return "\n".join([line(heading), rule, *map(line, cells)])
