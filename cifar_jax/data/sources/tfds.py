"""Reads a prepared tensorflow-datasets dataset, without TensorFlow.

Preparing one is the part that needs TensorFlow; it is done here where TensorFlow is installed, and
can be done elsewhere: the prepared folder is all that is read. tensorflow-datasets itself is
imported only when a dataset is asked for.
"""

import difflib
import importlib.util
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from ml_collections import ConfigDict

from cifar_jax.data.dataset import CHANNELS, Split
from cifar_jax.data.download import NetworkError, open_url
from cifar_jax.data.sources.source import Source
from cifar_jax.errors import UserError, reason


class Tfds(Source):
    default_dir = "TFDS_DATA_DIR", "~/tensorflow_datasets"

    def load(self, config: ConfigDict, split: str) -> Split:
        return Split(*self.examples(config, split).load())

    def examples(self, config: ConfigDict, split: str) -> "Examples":
        name = config.tfds.train_split if split == "train" else config.tfds.test_split
        return open(config.tfds.name, name, str(self.dir(config)))

    def title(self, config: ConfigDict) -> str:
        return config.tfds.name


class Examples:
    """A split of a prepared dataset, decoded while iterating.

    Iterating raises UserError for an image of another size than the first, and for a label that
    has no class.
    """

    def __init__(self, what: str, source: Any, class_names: tuple[str, ...], channels: int = 3):
        self._what, self._source, self.class_names = what, source, class_names
        self._channels = channels
        self.shape: tuple[int, ...] = source[0]["image"].shape if len(source) else (0, 0, channels)

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        for i, example in enumerate(self._source):
            image, label = example["image"], int(example["label"])
            if image.shape != self.shape or image.shape[2:] != (self._channels,):
                raise UserError(
                    f"Image {i} of {self._what} has shape {image.shape} and image 0 {self.shape}, "
                    f"expected [H, W, {self._channels}], the same for all. Choose a dataset whose "
                    "images are all of one size."
                )
            if not 0 <= label < len(self.class_names):
                raise UserError(
                    f"Image {i} of {self._what} has the label {label}, expected 0 to "
                    f"{len(self.class_names) - 1}. Choose a split whose images are all labelled."
                )
            yield image, label

    def load(self) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """All images uint8 [N, H, W, C], their labels int32 [N] and the class names."""
        images = np.empty((len(self), *self.shape), np.uint8)
        labels = np.empty(len(self), np.int32)
        for i, example in enumerate(self):
            images[i], labels[i] = example
        return images, labels, self.class_names


def open(name: str, split: str, data_dir: str | None) -> Examples:
    """Opens a split, after preparing the dataset where that is possible and still to do.

    Args:
        name: Dataset, with config and version where they matter: `svhn_cropped`, `cifar10:3.0.2`.
        split: Split in tensorflow-datasets' notation: `train`, `train[:90%]`.
        data_dir: Folder of prepared datasets; None or "" for tensorflow-datasets' own default.

    Raises:
        UserError: an unknown name or split, a dataset that is not prepared and cannot be here, or
            one whose examples are not images of 1, 3 or 4 channels with a label.
    """
    builder = _builder(name, data_dir or None)
    if not builder.is_prepared():
        _prepare(name, builder)
    names, channels = _features(name, builder.info.features)
    return Examples(f"{name} {split}", _source(name, builder, split), names, channels)


def _builder(name: str, data_dir: str | None) -> Any:
    """Returns the `tfds.core.DatasetBuilder`; asks neither the network nor the data."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"Cannot import tensorflow-datasets: {error}. data.name='tfds' needs it: "
            "pip install tensorflow-datasets importlib_resources array_record pillow."
        ) from error
    if re.match(r"\w+:[A-Za-z]", name):  # Looked up over the network, for minutes without one.
        raise UserError(
            f"Dataset {name} is a community dataset, expected one of tensorflow-datasets' own. "
            "Prepare it elsewhere, and name it without what stands before the colon."
        )
    try:
        return tensorflow_datasets.builder(name, data_dir=data_dir)
    except tensorflow_datasets.core.DatasetNotFoundError as error:
        # The community's datasets would be looked up over the network.
        known = tensorflow_datasets.list_builders(with_community_datasets=False)
        similar = difflib.get_close_matches(name.split("/")[0].split(":")[0], known)
        hint = f"Did you mean {' or '.join(similar)}? " if similar else ""
        raise UserError(
            f"Unknown dataset {name}: neither prepared in {data_dir or 'the default folder'} nor "
            f"one of the {len(known)} that tensorflow-datasets knows. {hint}"
            "All are listed at https://www.tensorflow.org/datasets/catalog."
        ) from error
    except (ValueError, AssertionError, ImportError) as error:  # config, version, missing library
        raise UserError(
            f"Cannot use dataset {name}: {reason(error)}. Names, configs and versions are "
            "listed at https://www.tensorflow.org/datasets/catalog."
        ) from error


def _prepare(name: str, builder: Any) -> None:
    """Downloads the dataset and writes it in the format that is read without TensorFlow."""
    missing = f"Dataset {name} is not prepared at {builder.data_dir}"
    remedy = (
        "prepare it on another machine with download_and_prepare(file_format='array_record') and "
        "copy that folder here, or use data.name='cifar10', which needs neither."
    )
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"{missing}, and preparing it needs TensorFlow. Run pip install "
            f"'cifar_jax[tensorflow]' and start again with a network, or {remedy}"
        )
    # Without a network tensorflow-datasets retries for minutes before it says so.
    for url in {urlsplit(url).netloc: url for url in builder.url_infos or ()}.values():
        try:
            open_url(url).close()
        except NetworkError as error:
            if error.status is None:  # A refusal of this request is an answer, too.
                raise UserError(
                    f"{missing}, and cannot be downloaded from {url}: {error}. "
                    f"Start again with a network, or {remedy}"
                ) from error
    try:
        builder.download_and_prepare(file_format="array_record")
    except (OSError, AssertionError) as error:  # no network or disk; files to fetch by hand
        raise UserError(f"{missing}: {reason(error)}. Fix that, or {remedy}") from error


def _features(name: str, features: Any) -> tuple[tuple[str, ...], int]:
    """Checks that the examples are images with a label, and returns the classes' names and the
    images' channels."""
    import tensorflow_datasets

    found = dict(features.items()) if hasattr(features, "items") else {}
    image, label = found.get("image"), found.get("label")
    if (
        not isinstance(image, tensorflow_datasets.features.Image)
        or image.shape[-1] not in CHANNELS
        or image.np_dtype != np.uint8
        or not isinstance(label, tensorflow_datasets.features.ClassLabel)
    ):
        raise UserError(
            f"Dataset {name} has features {reason(ValueError(features))}, expected an 'image' of "
            "1, 3 or 4 channels of uint8 and a 'label' that is a ClassLabel. Choose a dataset for "
            "classification."
        )
    return tuple(label.names), image.shape[-1]


def _source(name: str, builder: Any, split: str) -> Any:
    """Returns the split as a sequence of examples."""
    try:
        return builder.as_data_source(split)
    except NotImplementedError as error:
        raise UserError(
            f"Dataset {name} at {builder.data_dir} is stored as {builder.info.file_format.value}, "
            "expected array_record. Move that folder away, and prepare the dataset again with "
            "download_and_prepare(file_format='array_record')."
        ) from error
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"Cannot read split {split} of dataset {name}: {reason(error)}. Expected one of "
            f"{', '.join(builder.info.splits)}, or a part of one, such as train[:90%]."
        ) from error
