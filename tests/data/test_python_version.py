"""The publisher's version for Python: read as written, by Python 2 and 3, and nothing is run."""

import pickle
import struct

import numpy as np
import pytest

from cifar_jax.data import python_version, sources
from cifar_jax.errors import UserError
from tests.conftest import NAMES, random_images


class Python2(pickle._Pickler):
    """Writes texts and bytes as Python 2 does: without saying which of the two they are."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_string(self, text):
        data = text if isinstance(text, bytes) else text.encode()
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(text)

    dispatch[bytes] = dispatch[str] = save_string


def write(path, value, version=2):
    with path.open("wb") as file:
        if version == 3:
            pickle.dump(value, file, protocol=2)
            return
        Python2(file, protocol=2).dump(value)
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.", b"cnumpy.core."))


def batch(images, labels, key="labels"):
    data = images.transpose(0, 3, 1, 2).reshape(len(images), 3072)
    return {"data": np.ascontiguousarray(data), key: [int(label) for label in labels]}


@pytest.mark.parametrize("version", [2, 3])
def test_cifar10_is_what_was_written(config, tmp_path, version):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images, labels = random_images(20, seed=3)
    for n in range(5):
        part = slice(4 * n, 4 * n + 4)
        write(folder / f"data_batch_{n + 1}", batch(images[part], labels[part]), version)
    write(folder / "test_batch", batch(images[:3], labels[:3]), version)
    write(folder / "batches.meta", {"label_names": list(NAMES)}, version)
    for where in (tmp_path, folder):
        config.data.dir = str(where)
        train, test = (sources.load(config.data, split) for split in ("train", "test"))
        np.testing.assert_array_equal(train.images, images)
        np.testing.assert_array_equal(train.labels, labels)
        np.testing.assert_array_equal(test.images, images[:3])
        assert train.class_names == NAMES
        assert train.labels.dtype == np.int32


def test_cifar100_has_fine_labels(config, tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    images, labels = random_images(5, seed=4)
    write(folder / "train", batch(images, labels + 80, "fine_labels"))
    write(folder / "meta", {"fine_label_names": [f"class {n}" for n in range(100)]})
    config.data.update(name="cifar100", dir=str(tmp_path))
    found = sources.load(config.data, "train")
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.labels, labels + 80)
    assert found.class_names[99] == "class 99"


def test_an_archive_that_is_still_packed_is_named(config, tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").touch()
    config.data.dir = str(tmp_path)
    with pytest.raises(UserError, match=r"python.tar.gz is packed, .*: tar -xzf .* -C "):
        sources.load(config.data, "train")
    assert len(list(tmp_path.iterdir())) == 1  # nothing was downloaded


class Harm:
    def __reduce__(self):
        return pytest.fail, ("the pickle has run this",)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (Harm(), "names .*Fail, which is neither"),
        ([1], "not a dict"),
        ({"labels": [1]}, "no 'data' and 'labels'"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, "not a number from 0 to 9"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [True]}, "not a number from 0 to 9"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, r"not of the shape \(1, 3072\)"),
        ({"data": np.zeros((1, 3072), np.int8), "labels": [1]}, "not uint8"),
        ({"data": np.array([["a"]], object), "labels": [1]}, "not uint8"),
    ],
)
def test_what_else_a_pickle_may_hold_is_refused(tmp_path, value, problem):
    write(tmp_path / "batch", value, version=3)
    with pytest.raises(UserError, match=problem):
        python_version.read([tmp_path / "batch"], "labels", 10)


def test_a_damaged_file_ends_in_an_error_of_ours(tmp_path):
    images, labels = random_images(2, seed=5)
    write(tmp_path / "whole", batch(images, labels))
    data = bytearray((tmp_path / "whole").read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data[: rng.integers(len(data))] if rng.random() < 0.5 else data)
        for place in rng.integers(max(1, min(len(damaged), 200)), size=3):
            if damaged:
                damaged[place] = rng.integers(256)
        (tmp_path / "batch").write_bytes(damaged)
        try:
            python_version.read([tmp_path / "batch"], "labels", 10)
        except UserError as error:
            assert "\n" not in str(error)
