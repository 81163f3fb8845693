"""Arrays of a user's own: of any size and channels; what is odd is a line that says what."""

import zipfile

import numpy as np
import pytest

from cifar_jax.data import sources
from cifar_jax.errors import UserError

SHAPES = [(28, 28, 1), (48, 64, 3), (5, 7, 4)]


@pytest.fixture
def write(config, tmp_path):
    """Writes both files into config.data.dir: 6 training and 4 test images of 3 classes, or what
    is given instead."""
    config.data.update(name="npz", dir=str(tmp_path))

    def save(shape=(28, 28, 1), train=None, test=None):
        for split, count, given in (("train", 6, train), ("test", 4, test)):
            images = np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)
            arrays = {"images": images, "labels": np.arange(count) % 3} | (given or {})
            kept = {name: array for name, array in arrays.items() if array is not None}
            np.savez(tmp_path / f"{split}.npz", **kept)
        return {split: sources.load(config.data, split) for split in sources.SPLITS}

    return save


@pytest.mark.parametrize("shape", SHAPES)
def test_images_of_any_size_and_channels(write, shape):
    found = write(shape, train={"class_names": np.array(["a", "b", "c"])})
    assert (len(found["train"]), len(found["test"])) == (6, 4)
    assert found["train"].shape == found["test"].shape == shape
    images = np.random.default_rng(6).integers(0, 256, (6, *shape), np.uint8)
    np.testing.assert_array_equal(found["train"].images, images)
    assert found["test"].labels.tolist() == [0, 1, 2, 0]
    assert found["test"].labels.dtype == np.int32
    assert found["test"].class_names == ("a", "b", "c")


def test_grey_images_may_do_without_an_axis_of_channels(write):
    assert write(shape=(28, 28))["train"].shape == (28, 28, 1)


def test_without_names_the_training_labels_say_how_many_classes_there_are(write):
    found = write(test={"labels": np.array([0, 0, 1, 1], np.uint8)})
    assert found["test"].class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("split", "arrays", "message"),
    [
        ("train", {"images": None}, "it has no array 'images'"),
        ("test", {"labels": None}, "it has no array 'labels'"),
        ("train", {"images": np.zeros((6, 4, 4), np.float32)}, r"images is float32 \[6, 4, 4\]"),
        ("train", {"images": np.zeros((6, 4, 4, 2), np.uint8)}, "1, 3 or 4 channels"),
        ("train", {"images": np.zeros((6, 0, 4, 3), np.uint8)}, "images has no pixels"),
        ("train", {"images": np.zeros(6, np.uint8)}, r"images is uint8 \[6\]"),
        ("train", {"labels": np.zeros(6)}, r"labels is float64 \[6\]"),
        ("train", {"labels": np.zeros((6, 1), int)}, r"labels is int64 \[6, 1\]"),
        ("train", {"labels": np.zeros(5, int)}, r"whole numbers \[6\], one an image"),
        ("train", {"labels": np.full(6, -1)}, "whole numbers below 65,536, or class_names"),
        ("train", {"labels": np.full(6, 2**40)}, "whole numbers below 65,536, or class_names"),
        ("train", {"labels": np.full(6, 2**63, np.uint64)}, "below 65,536, or class_names"),
        ("train", {"labels": np.array([0, 1, -2, 2, 0, 0])}, "image 2 has the label -2"),
        ("test", {"labels": np.array([0, 1, 3, 2])}, "image 2 has the label 3, expected 0 to 2"),
        ("train", {"class_names": np.array([1, 2, 3])}, r"class_names is int64 \[3\]"),
        ("train", {"class_names": np.array(["a", "b"])}, "label 2, expected 0 to 1"),
        ("train", {"class_names": np.array(["a", None], object)}, "allow_pickle=False"),
        ("test", {"class_names": np.array(["a", "b", "c"])}, "differs, expected that of train.npz"),
        ("train", {"images": np.zeros((0, 4, 4), np.uint8)}, r"\[0\], one an image"),
    ],
)
def test_odd_arrays_are_a_line(write, split, arrays, message):
    with pytest.raises(UserError, match=message) as caught:
        write(**{split: arrays})
    assert "\n" not in str(caught.value)


def test_files_that_are_none(config, write, tmp_path):
    write()
    whole = (tmp_path / "test.npz").read_bytes()
    for content in (b"", b"PK", whole[:-30], whole[:200] + b"\xff" * 50 + whole[250:]):
        (tmp_path / "test.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"test.npz: .*, expected what numpy.savez wrote") as e:
            sources.load(config.data, "test")
        assert "\n" not in str(e.value)
    with (tmp_path / "test.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match="it is not an archive of arrays"):
        sources.load(config.data, "test")
    with zipfile.ZipFile(tmp_path / "test.npz", "w") as archive:
        archive.writestr("images", "text")
        archive.writestr("labels", "text")
    with pytest.raises(UserError, match="'images' is not an array"):
        sources.load(config.data, "test")
    (tmp_path / "test.npz").unlink()
    with pytest.raises(UserError, match="test.npz: No such file"):
        sources.load(config.data, "test")


def test_an_empty_split_is_refused(write):
    with pytest.raises(UserError, match="The test split of 'npz' is empty"):
        write(test={"images": np.zeros((0, 28, 28), np.uint8), "labels": np.zeros(0, int)})
