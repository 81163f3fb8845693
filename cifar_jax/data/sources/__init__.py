"""Where datasets come from: a registry of sources, each with the same interface.

A new source is a file with a `Source`, a line here, and its fields in configs/default.py.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cifar_jax.data.dataset import Examples, Split
from cifar_jax.data.sources import cifar, csv, folder, npz, svhn, synthetic, tfds
from cifar_jax.data.sources.source import Source
from cifar_jax.errors import UserError, unknown

SPLITS = ("train", "test")
SOURCES: dict[str, Source] = {
    "cifar10": cifar.Cifar10(),
    "cifar100": cifar.Cifar100(),
    "svhn": svhn.Svhn(),
    "synthetic": synthetic.Synthetic(),
    "tfds": tfds.Tfds(),
    "npz": npz.Npz(),
    "folder": folder.Folder(),
    "csv": csv.Csv(),
}


def check(config: ConfigDict) -> None:
    """Raises UsageError for an unknown `config.data.name`, and what its source cannot work with."""
    find(config).check(config)


def load(config: ConfigDict, split: str) -> Split:
    """The split 'train' or 'test' as the source of `config` (config.data) has it: from disk, drawn
    or downloaded. Nothing is held out of it: see `splits.open`.

    Raises UserError for files that are missing, damaged or out of reach, and for an empty split.
    """
    return _not_empty(find(config).load(config, _check_split(split)), config, split)


def examples(config: ConfigDict, split: str) -> Examples:
    """As `load`, but one image at a time where they are stored that way."""
    return _not_empty(find(config).examples(config, _check_split(split)), config, split)


def find(config: ConfigDict) -> Source:
    """The source of `config` (config.data). Raises UsageError where there is none of its name."""
    if config.name not in SOURCES:
        raise unknown("config.data.name", config.name, SOURCES)
    return SOURCES[config.name]


def recognise(folder: Path) -> list[str]:
    """The names of the sources that `folder` is laid out for. Beside another one's files, folders
    are taken for what those name, and not for classes."""
    found = [name for name, source in SOURCES.items() if source.holds(folder)]
    return found if found == ["folder"] else [name for name in found if name != "folder"]


def data_dir(config: ConfigDict) -> Path:
    """Absolute: `config.dir`, or else the source's default, $CIFAR_JAX_DATA or ~/.cache/cifar_jax
    for most. Raises UsageError for what is not a path, or where there is no home folder."""
    return find(config).dir(config)


def _check_split(split: str) -> str:
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return split


def _not_empty(found: Any, config: ConfigDict, split: str) -> Any:
    if not len(found):
        raise UserError(f"The {split} split of '{config.name}' is empty; expected images.")
    return found
