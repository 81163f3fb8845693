"""ONNX whose file stores the weights in fewer bits. The computation stays float32: a runtime widens
them as it loads the file, so that it runs as fast as before."""

from collections.abc import Callable
from typing import Any

import numpy as np

_LEAST = 1024  # values of an array that is worth it; biases and statistics stay as they are


def store(model: Any, kind: str) -> None:
    """Stores the kernels of an onnx.ModelProto in place as `kind`: "float16", or "int8" with one
    scale for each output channel (their last axis), symmetric about 0."""
    from onnx import TensorProto, numpy_helper

    graph, widening = model.graph, []
    for tensor in list(graph.initializer):
        array = numpy_helper.to_array(tensor)
        if tensor.data_type == TensorProto.FLOAT and array.ndim > 1 and array.size >= _LEAST:
            arrays, node = _STORED[kind](array, tensor.name)
            graph.initializer.remove(tensor)
            graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
            widening.append(node)
    nodes = [*widening, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _float16(array: np.ndarray, name: str) -> tuple[dict[str, np.ndarray], Any]:
    from onnx import TensorProto, helper

    stored = f"{name}_float16"
    node = helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT)
    return {stored: array.astype(np.float16)}, node


def _int8(array: np.ndarray, name: str) -> tuple[dict[str, np.ndarray], Any]:
    from onnx import helper

    largest = np.abs(array).max(tuple(range(array.ndim - 1)))
    scale = np.where(largest > 0, largest / 127, np.float32(1))
    stored, scales = f"{name}_int8", f"{name}_scale"
    rounded: np.ndarray = np.round(array / scale).astype(np.int8)
    arrays = {stored: rounded, scales: scale}
    axis = array.ndim - 1
    return arrays, helper.make_node("DequantizeLinear", [stored, scales], [name], axis=axis)


_STORED: dict[str, Callable[[np.ndarray, str], tuple[dict[str, np.ndarray], Any]]] = {
    "float16": _float16,
    "int8": _int8,
}
