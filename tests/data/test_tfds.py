"""Datasets of a few images, prepared and read without TensorFlow.

tensorflow-datasets needs TensorFlow to encode arrays, but not to write images that are PIL's.
"""

import importlib.util
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

from cifar_jax.data.sources import tfds
from cifar_jax.errors import UserError

NAMES = ("cat", "dog", "frog")


def make_image(i: int, shape: tuple[int, ...] = (4, 6, 3)) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, shape, np.uint8)


class Tiny(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """7 training and 3 test images; `change` replaces features of the example with that index."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def __init__(self, features: dict[str, Any], change: dict[int, Any], **kwargs: Any):
        self.feature_types = features
        self.change = change
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> Any:
        features = tensorflow_datasets.features.FeaturesDict(self.feature_types)
        return tensorflow_datasets.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[Any]]:
        return {
            "train": self._generate_examples(range(7)),
            "test": self._generate_examples(range(7, 10)),
        }

    def _generate_examples(self, indices: range) -> Iterator[Any]:
        for i in indices:
            example = {"image": Image.fromarray(make_image(i)), "label": i % 3}
            example |= self.change.get(i, {})
            yield i, {key: example[key] for key in self.feature_types}


def prepare(data_dir: Path, change: dict[int, Any] | None = None, **features: Any) -> None:
    """Writes dataset `tiny` under `data_dir`, in features and examples as asked."""
    features = {
        "image": tensorflow_datasets.features.Image(shape=(None, None, 3)),
        "label": tensorflow_datasets.features.ClassLabel(names=NAMES),
    } | features
    Tiny(features, change or {}, data_dir=data_dir).download_and_prepare()


def set_tensorflow(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    find_spec = importlib.util.find_spec

    def pretend(name: str, package: str | None = None) -> Any:
        return installed or None if name == "tensorflow" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", pretend)


@pytest.fixture(autouse=True)
def without_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    set_tensorflow(monkeypatch, installed=False)
    tensorflow_datasets.disable_progress_bar()


@pytest.fixture
def as_if_tensorflow(monkeypatch: pytest.MonkeyPatch, without_tensorflow: None) -> None:
    set_tensorflow(monkeypatch, installed=True)


def test_reads_images_labels_and_names(tmp_path: Path) -> None:
    prepare(tmp_path)
    images, labels, names = tfds.open("tiny", "train", str(tmp_path)).load()
    assert names == NAMES
    assert (images.dtype, images.shape) == (np.uint8, (7, 4, 6, 3))
    assert labels.dtype == np.int32
    # tensorflow-datasets shuffles as it prepares, the same way every time.
    order = [
        [np.array_equal(make_image(i), image) for i in range(7)].index(True) for image in images
    ]
    assert sorted(order) == list(range(7))
    assert labels.tolist() == [i % 3 for i in order]


@pytest.mark.parametrize("shape", [(4, 6, 1), (4, 6, 4)])
def test_grey_and_transparent_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    drawn = [make_image(i, shape) for i in range(10)]
    change = {i: {"image": Image.fromarray(image.squeeze())} for i, image in enumerate(drawn)}
    prepare(
        tmp_path, change, image=tensorflow_datasets.features.Image(shape=(None, None, shape[2]))
    )
    images, _, _ = tfds.open("tiny", "train", str(tmp_path)).load()
    assert sorted(i.tobytes() for i in images) == sorted(i.tobytes() for i in drawn[:7])
    assert images.shape[1:] == shape


@pytest.mark.parametrize(("split", "count"), [("test", 3), ("train[:2]", 2), ("train+test", 10)])
def test_split_notation(tmp_path: Path, split: str, count: int) -> None:
    prepare(tmp_path)
    images, labels, _ = tfds.open("tiny:1.0.0", split, str(tmp_path)).load()
    assert len(images) == len(labels) == count


@pytest.mark.parametrize("split", ["nope", "train[", "train[:0]"])
def test_wrong_split_names_the_splits(tmp_path: Path, split: str) -> None:
    prepare(tmp_path)
    with pytest.raises(UserError, match="Expected one of train, test") as caught:
        tfds.open("tiny", split, str(tmp_path)).load()
    assert "\n" not in str(caught.value)


def test_unknown_dataset_suggests_a_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Unknown dataset cifar11: .* Did you mean cifar10"):
        tfds.open("cifar11", "train", str(tmp_path)).load()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cifar10/config", "BuilderConfig config not found"),
        ("cifar10:9.9.9", "only: 3.0.2"),
        ("huggingface:mnist", "community dataset"),
        ("no name", "must be of the following format"),
    ],
)
def test_unusable_name(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        tfds.open(name, "train", str(tmp_path)).load()
    assert "\n" not in str(caught.value)


def test_unprepared_says_where_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        tfds.open("cifar10", "train", str(tmp_path)).load()
    message = str(caught.value)
    for part in (
        str(tmp_path / "cifar10"),
        "pip install 'cifar_jax[tensorflow]'",
        "copy that folder",
        "data.name='cifar10'",
    ):
        assert part in message
    assert "\n" not in message


def test_unprepared_without_a_network_fails_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_if_tensorflow: None
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(UserError, match="cs.toronto.edu.*: Network is unreachable"):
        tfds.open("cifar10", "train", str(tmp_path)).load()


def test_prepares_where_tensorflow_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_if_tensorflow: None
) -> None:
    features = {
        "image": tensorflow_datasets.features.Image(shape=(4, 6, 3)),
        "label": tensorflow_datasets.features.ClassLabel(names=NAMES),
    }
    monkeypatch.setattr(
        tfds, "_builder", lambda name, data_dir: Tiny(features, {}, data_dir=data_dir)
    )
    images, _, _ = tfds.open("tiny", "train", str(tmp_path)).load()
    assert len(images) == 7
    assert list(tmp_path.glob("tiny/1.0.0/tiny-train.array_record-*"))


def test_failed_preparation_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_if_tensorflow: None
) -> None:
    change = {0: {"image": tmp_path / "missing.png"}}
    features = {"image": tensorflow_datasets.features.Image(shape=(4, 6, 3))}
    builder = Tiny(features, change, data_dir=tmp_path)
    monkeypatch.setattr(tfds, "_builder", lambda name, data_dir: builder)
    with pytest.raises(UserError, match="not prepared at .*missing.png") as caught:
        tfds.open("tiny", "train", str(tmp_path)).load()
    assert "\n" not in str(caught.value)


def test_other_file_formats_are_refused(tmp_path: Path) -> None:
    prepare(tmp_path)
    path = tmp_path / "tiny/1.0.0/dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match="stored as tfrecord, expected array_record"):
        tfds.open("tiny", "train", str(tmp_path)).load()


@pytest.mark.parametrize(
    "features",
    [
        {"image": tensorflow_datasets.features.Text()},
        {"image": tensorflow_datasets.features.Image(shape=(None, None, 2))},
        {"image": tensorflow_datasets.features.Image(dtype=np.uint16, encoding_format="png")},
        {"label": tensorflow_datasets.features.Scalar(np.int64)},
    ],
    ids=["no-image", "two-channels", "16-bit", "no-classes"],
)
def test_wrong_features(tmp_path: Path, features: dict[str, Any]) -> None:
    text = isinstance(features.get("image"), tensorflow_datasets.features.Text)
    prepare(tmp_path, {i: {"image": "text"} for i in range(10)} if text else None, **features)
    with pytest.raises(UserError, match="has features .* expected an 'image'") as caught:
        tfds.open("tiny", "train", str(tmp_path)).load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "shape"), [([3], (5, 6, 3)), (range(7), (4, 6, 4))], ids=["size", "transparency"]
)
def test_unusable_image_shapes(
    tmp_path: Path, changed: Iterable[int], shape: tuple[int, ...]
) -> None:
    prepare(tmp_path, {i: {"image": Image.fromarray(make_image(i, shape))} for i in changed})
    with pytest.raises(UserError, match="of tiny train has shape .* the same for all"):
        tfds.open("tiny", "train", str(tmp_path)).load()


def test_unlabelled_images(tmp_path: Path) -> None:
    prepare(tmp_path, {8: {"label": -1}})
    with pytest.raises(UserError, match="Image . of tiny test has the label -1, expected 0 to 2"):
        tfds.open("tiny", "test", str(tmp_path)).load()
    assert len(tfds.open("tiny", "train", str(tmp_path))) == 7


def test_missing_library_is_an_error_the_user_can_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match="pip install tensorflow-datasets"):
        tfds.open("cifar10", "train", None).load()
