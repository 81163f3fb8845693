"""Your own arrays: a folder with train.npz and test.npz, as `numpy.savez` writes them.

    images       uint8 [N, H, W] or [N, H, W, C], of one size in both files; C is 1, 3 or 4
    labels       whole numbers [N], from 0 on
    class_names  strings, one a class; without them the classes are called by their numbers

The training file says which classes there are.
"""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cifar_jax import files
from cifar_jax.data.dataset import CHANNELS, Split
from cifar_jax.data.sources.source import Source
from cifar_jax.errors import UserError, reason

_MAX_CLASSES = 1 << 16  # where no names say how many there are


class Npz(Source):
    def holds(self, folder: Path) -> bool:
        return any((folder / f"{split}.npz").is_file() for split in ("train", "test"))

    def load(self, config: ConfigDict, split: str) -> Split:
        folder = self.dir(config)
        return read(folder / f"{split}.npz", folder / "train.npz")


def read(path: Path, train: Path) -> Split:
    """The split in `path`, with the classes of `train`, the file of the training images.

    Raises UserError where a file cannot be read, or holds other arrays than expected.
    """
    found = _arrays(path, "images", "labels")
    names = _class_names(train)
    if path != train and _class_names(path, given=True) not in (None, names):
        raise _wrong(path, "class_names differs", f"that of {train.name}")
    images, labels = found["images"], found["labels"]
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in CHANNELS:
        raise _wrong(
            path,
            f"images is {images.dtype} {list(found['images'].shape)}",
            "uint8 [N, H, W] or [N, H, W, C] of 1, 3 or 4 channels",
        )
    if not all(images.shape[1:]):
        raise _wrong(path, "images has no pixels", "some")
    _check_labels(path, labels, len(images), len(names))
    return Split(np.ascontiguousarray(images), labels.astype(np.int32), names)


def _check_labels(path: Path, labels: np.ndarray, count: int, num_classes: int) -> None:
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        found = f"labels is {labels.dtype} {list(labels.shape)}"
        raise _wrong(path, found, f"whole numbers [{count}], one an image")
    if (wrong := np.flatnonzero((labels < 0) | (labels >= num_classes))).size:
        found = f"image {wrong[0]} has the label {labels[wrong[0]]}"
        raise _wrong(path, found, f"0 to {num_classes - 1}")


def _class_names(path: Path, *, given: bool = False) -> Any:
    """The classes that the file names; where it names none, their numbers, or None with `given`."""
    found = _arrays(path, "labels", optional="class_names")
    if (names := found.get("class_names")) is not None:
        if names.dtype.kind != "U" or names.ndim != 1 or not len(names):
            problem = f"class_names is {names.dtype} {list(names.shape)}"
            raise _wrong(path, problem, "an array of strings [classes]")
        return tuple(str(name) for name in names)
    if given:
        return None
    labels = found["labels"]
    if labels.dtype.kind not in "iu" or not labels.size or not 0 <= labels.max() < _MAX_CLASSES:
        problem = f"labels is {labels.dtype} {list(labels.shape)}"
        raise _wrong(path, problem, f"whole numbers below {_MAX_CLASSES:,}, or class_names")
    return tuple(str(number) for number in range(int(labels.max()) + 1))


def _arrays(path: Path, *names: str, optional: str = "") -> dict[str, np.ndarray]:
    """Those of the file's arrays; reads no others, and no pickles."""
    try:
        with files.opened(path) as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it is not an archive of arrays")
            if missing := [name for name in names if name not in archive]:
                raise ValueError(f"it has no array '{missing[0]}'")
            wanted = [*names, *([optional] if optional in archive else [])]
            found = {name: archive[name] for name in wanted}
            if odd := [name for name in wanted if not isinstance(found[name], np.ndarray)]:
                raise ValueError(f"'{odd[0]}' is not an array")  # but a file of any bytes
            return found
    except Exception as error:  # numpy, zipfile and zlib have a dozen kinds for damaged bytes
        expected = "what numpy.savez wrote, with images and labels"
        raise _wrong(path, reason(error), expected) from error


def _wrong(path: Path, problem: str, expected: str) -> UserError:
    return UserError(f"{path}: {problem}, expected {expected}. Write the file again.")
