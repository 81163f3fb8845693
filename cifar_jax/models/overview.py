"""A model layer by layer: what it puts out, how many parameters it has, what it costs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


class LayerRow(NamedTuple):
    name: str
    shape: tuple[int, ...]  # of what the layer puts out for one image
    parameters: int
    multiply_adds: int  # for one image, of kernels alone


def layers(model: nn.Module, image_shape: tuple[int, int, int]) -> list[LayerRow]:
    """The rows of a model that can `return_layers`; computes nothing."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    names: list[str] = []

    def run(variables, images):
        _, outputs = model.apply(variables, images, return_layers=True)
        names.extend(outputs)  # in the model's order: what a trace returns is sorted
        return outputs

    outputs, params = jax.eval_shape(run, variables, images), variables["params"]
    return [_row(name, outputs[name].shape[1:], params.get(name, {})) for name in names]


def _row(name: str, shape: tuple[int, ...], weights: dict[str, Any]) -> LayerRow:
    parameters = sum(array.size for array in weights.values())
    places = int(np.prod(shape[:-1]))  # where a kernel is put to
    multiply_adds = weights["kernel"].size * places if "kernel" in weights else 0
    return LayerRow(name, tuple(shape), parameters, multiply_adds)


def markdown(rows: Sequence[LayerRow]) -> str:
    """A table with the shares of the total, for TensorBoard's text and the console alike."""
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
