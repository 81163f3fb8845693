"""Where images come from: a registry of sources, each of which gives the same kind of dataset; or
the shards that `prepare` has made of one."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cifar_jax import files
from cifar_jax.data import download, native, shards, synthetic, tfds
from cifar_jax.errors import UserError, reason

CIFAR10 = download.Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    size=170_052_171,
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    folder="cifar-10-batches-bin",
)
CIFAR100 = download.Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    size=168_513_733,
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    folder="cifar-100-binary",
)


SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Split:
    images: np.ndarray  # uint8 [N, H, W, 3]
    labels: np.ndarray  # int32 [N]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        return zip(self.images, self.labels, strict=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: H, W, C."""
        return self.images.shape[1:]

    def load(self) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """Images, labels and class names, as shards on disk give them."""
        return self.images, self.labels, self.class_names


def load(config: ConfigDict, split: str) -> Split:
    """The split 'train' or 'test' of the dataset of `config.data`: from disk, drawn or downloaded.

    Raises UserError for files that are missing, damaged or out of reach, and for an empty split.
    """
    return _not_empty(_SOURCES[config.source](config, split), config, split)


def examples(config: ConfigDict, split: str) -> shards.Examples:
    """As `load`, but one image after the other where that is how they lie on disk."""
    if config.source == "tfds":
        return _not_empty(_tfds_examples(config, split), config, split)
    return load(config, split)


def open(config: ConfigDict, split: str) -> Split | shards.Shards:
    """The shards of `config.shards` where it names some, else as `load`; both can `load()`."""
    if config.shards:
        return shards.open(shards_dir(config), split)
    return load(config, split)


def _not_empty(found: Any, config: ConfigDict, split: str) -> Any:
    if not len(found):
        raise UserError(f"The {split} split of '{config.source}' is empty; expected images.")
    return found


def data_dir(config: ConfigDict) -> Path:
    """Absolute: `config.data.dir`, or $CIFAR_JAX_DATA, or ~/.cache/cifar_jax.

    The source 'tfds' has a default folder of its own, ~/tensorflow_datasets. Raises UsageError
    for what is no path, or where there is no home folder.
    """
    default = os.environ.get("CIFAR_JAX_DATA") or "~/.cache/cifar_jax"
    if config.source == "tfds":
        default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return files.resolve(config.dir or default, "config.data.dir")


def shards_dir(config: ConfigDict) -> Path:
    """Absolute. Raises UsageError where `config.shards` is no path."""
    return files.resolve(config.shards, "config.data.shards")


def image_size(source: str) -> int | None:
    """Height and width of a source's images where it is known before loading them."""
    return None if source == "tfds" else native.SIZE


def _cifar10(config: ConfigDict, split: str) -> Split:
    train_files = [f"data_batch_{number}.bin" for number in range(1, 6)]
    return _cifar10_layout(_binary(CIFAR10, config), split, train_files)


def _binary(archive: download.Archive, config: ConfigDict) -> Path:
    """The folder of the binary version: `config.dir` itself, or in it, or downloaded into it.

    Raises UserError where the version for Python or MATLAB lies there in its place.
    """
    folder = data_dir(config)
    if folder.name == archive.folder and folder.is_dir():
        return folder
    if not (folder / archive.folder).exists() and not (folder / archive.name).exists():
        name = archive.name.removesuffix("-binary.tar.gz")
        for other in (f"{name}-batches-py", f"{name}-python", f"{name}-python.tar.gz"):
            if (folder / other).exists():
                raise UserError(
                    f"{folder / other} is another version of the dataset, expected the binary "
                    f"one: put {archive.name} from {archive.url} there, or choose another "
                    "--config.data.dir to have it downloaded."
                )
    return download.ensure(archive, folder)


def _cifar10_layout(folder: Path, split: str, train_files: list[str]) -> Split:
    wanted = train_files if split == "train" else ["test_batch.bin"]
    names = native.read_names(folder / "batches.meta.txt", 10)
    return Split(*native.read([folder / name for name in wanted], 10), names)


def _cifar100(config: ConfigDict, split: str) -> Split:
    folder = _binary(CIFAR100, config)
    names = native.read_names(folder / "fine_label_names.txt", 100)
    return Split(*native.read([folder / f"{split}.bin"], 100, label_bytes=2), names)


def _synthetic(config: ConfigDict, split: str) -> Split:
    """Drawn once, then read from disk by the reader of CIFAR-10."""
    seed, num_train, num_test = config.synthetic_seed, config.synthetic_train, config.synthetic_test
    name = f"synthetic-{synthetic.VERSION}-{num_train}-{num_test}-{seed}"
    folder = data_dir(config) / name
    if not folder.exists():
        print(f"Drawing {num_train:,} training and {num_test:,} test images into {folder}")
        train = synthetic.draw(num_train, seed=2 * seed)
        test = synthetic.draw(num_test, seed=2 * seed + 1)
        try:
            native.write_folder(folder, train, test, synthetic.CLASS_NAMES)
        except OSError as error:
            raise UserError(
                f"Cannot write to {folder.parent}: {reason(error)}. "
                "Choose another folder with --config.data.dir=DIR or $CIFAR_JAX_DATA."
            ) from error
    return _cifar10_layout(folder, split, ["data_batch_1.bin"])


def _tfds(config: ConfigDict, split: str) -> Split:
    return Split(*_tfds_examples(config, split).load())


def _tfds_examples(config: ConfigDict, split: str) -> tfds.Examples:
    name = config.tfds_train_split if split == "train" else config.tfds_test_split
    return tfds.open(config.tfds_name, name, str(data_dir(config)))


_SOURCES: dict[str, Callable[[ConfigDict, str], Split]] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "synthetic": _synthetic,
    "tfds": _tfds,
}
NAMES = tuple(_SOURCES)
