"""CIFAR-10 and CIFAR-100 in their publisher's version for Python, whose files are pickles.

A pickle may run any code of its author's. Here none runs: of all the classes and functions that one
can name, those with which NumPy writes arrays are replaced by the plain containers below, and every
other is refused.
"""

import codecs
import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax import files
from cifar_jax.data.native import SIZE
from cifar_jax.errors import UserError, reason

_PIXELS = 3 * SIZE * SIZE


def read(paths: Sequence[Path], labels_key: str, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads `paths` in order: images uint8 [N, 32, 32, 3] and labels int32 [N].

    Raises UserError for a file that is missing, damaged or holds anything else.
    """
    images, labels = zip(*(_batch(path, labels_key, num_classes) for path in paths), strict=True)
    planes = np.concatenate(images).reshape(-1, 3, SIZE, SIZE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.concatenate(labels)


def read_names(path: Path, key: str, num_classes: int) -> tuple[str, ...]:
    """The class names. Raises UserError as `read` does."""
    names = _load(path).get(key)
    if not isinstance(names, list) or len(names) != num_classes:
        raise _wrong(path, f"it has no list '{key}' of {num_classes} names")
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


def _batch(path: Path, labels_key: str, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    found = _load(path)
    data, labels = found.get("data"), found.get(labels_key)
    if not isinstance(data, _Array) or not isinstance(labels, list):
        raise _wrong(path, f"it has no 'data' and '{labels_key}'")
    if not all(type(label) is int and 0 <= label < num_classes for label in labels):
        raise _wrong(path, f"a label is not a number from 0 to {num_classes - 1}")
    try:
        return data.uint8((len(labels), _PIXELS)), np.array(labels, np.int32)
    except ValueError as error:
        raise _wrong(path, reason(error)) from error


def _load(path: Path) -> dict[str, Any]:
    try:
        with files.opened(path) as file:
            found = _Reader(io.BytesIO(file.read()), encoding="bytes").load()
        if not isinstance(found, dict):
            raise ValueError("it is not a dict")
        return {k.decode() if isinstance(k, bytes) else str(k): v for k, v in found.items()}
    except Exception as error:  # a damaged pickle ends in almost any of them
        raise _wrong(path, reason(error)) from error


def _wrong(path: Path, problem: str) -> UserError:
    return UserError(
        f"{path}: {problem}, expected a file of the Python version of CIFAR-10 or CIFAR-100. "
        "Replace it by the publisher's."
    )


class _Array:
    """In place of numpy.ndarray: what a pickle says of one."""

    def __init__(self, *_: Any):
        self._state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        self._state = state if isinstance(state, tuple) else ()

    def uint8(self, shape: tuple[int, int]) -> np.ndarray:
        """Raises ValueError where it is of another type or shape."""
        if len(self._state) != 5:
            raise ValueError("it has an array of another version of NumPy")
        _, found, dtype, fortran, data = self._state
        if not isinstance(dtype, _Dtype) or dtype.name not in ("u1", "uint8"):
            raise ValueError("its 'data' is not uint8")
        if found != shape or not isinstance(data, bytes) or len(data) != shape[0] * shape[1]:
            raise ValueError(f"its 'data' is not of the shape {shape}")
        return np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Dtype:
    """In place of numpy.dtype."""

    def __init__(self, name: Any = "", *_: Any):
        self.name = name.decode("latin-1") if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment, which say nothing about bytes."""


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """In place of _codecs.encode, with which Python 3 writes bytes in protocol 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("it has bytes of an unknown encoding")
    return codecs.latin_1_encode(text)[0]


_KNOWN = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("_codecs", "encode"): _encode,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise ValueError(f"it names {module}.{name}, which is neither an array nor a number")
        return _KNOWN[module, name]
