"""The binary layout: byte for byte as the CIFAR pages define it, and every fault named."""

import numpy as np
import pytest

from cifar_jax.data import native
from cifar_jax.errors import UserError
from tests.conftest import random_images


def test_a_record_is_a_label_and_three_planes(tmp_path):
    record = np.zeros(3073, np.uint8)
    record[0] = 7
    record[1 + 0 * 1024 + 3 * 32 + 5] = 10  # red of row 3, column 5
    record[1 + 1 * 1024 + 3 * 32 + 5] = 20
    record[1 + 2 * 1024 + 31 * 32 + 0] = 30  # blue of the last row, first column
    record.tofile(tmp_path / "one.bin")
    images, labels = native.read([tmp_path / "one.bin"], 10)
    assert images.shape == (1, 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    assert labels.tolist() == [7]
    assert images[0, 3, 5].tolist() == [10, 20, 0]
    assert images[0, 31, 0].tolist() == [0, 0, 30]
    assert images.sum(dtype=int) == 60


def test_round_trip_over_two_files(tmp_path):
    images, labels = random_images(7, seed=3)
    native.write(tmp_path / "a.bin", images[:4], labels[:4])
    native.write(tmp_path / "b.bin", images[4:], labels[4:])
    read_images, read_labels = native.read([tmp_path / "a.bin", tmp_path / "b.bin"], 10)
    np.testing.assert_array_equal(read_images, images)
    np.testing.assert_array_equal(read_labels, labels)


def test_cifar100_has_a_coarse_label_before_the_fine_one(tmp_path):
    record = np.zeros(3074, np.uint8)
    record[:3] = 19, 99, 5
    record.tofile(tmp_path / "train.bin")
    images, labels = native.read([tmp_path / "train.bin"], 100, label_bytes=2)
    assert labels.tolist() == [99]
    assert images[0, 0, 0].tolist() == [5, 0, 0]


@pytest.mark.parametrize("size", [0, 3072, 3074, 2 * 3073 - 1])
def test_a_size_that_is_no_multiple_of_the_record(tmp_path, size):
    path = tmp_path / "cut.bin"
    path.write_bytes(bytes(size))
    with pytest.raises(
        UserError, match=rf"cut.bin has {size:,} bytes.*multiple of 3,073.*replace it"
    ):
        native.read([path], 10)


def test_a_missing_file_is_named_with_its_remedy(tmp_path):
    with pytest.raises(UserError, match=r"gone.bin: No such file.*3,073-byte records: put"):
        native.read([tmp_path / "gone.bin"], 10)


def test_a_label_out_of_range_is_located(tmp_path):
    images, labels = random_images(5, seed=0)
    native.write(tmp_path / "a.bin", images[:3], labels[:3])
    native.write(tmp_path / "b.bin", images[3:], np.array([9, 10]))
    with pytest.raises(UserError, match=r"b.bin: record 1 has label 10, expected 0 to 9"):
        native.read([tmp_path / "a.bin", tmp_path / "b.bin"], 10)


def test_class_names_must_be_as_many_as_classes(tmp_path):
    assert native.read_names(tmp_path / "gone.txt", 3) == ("0", "1", "2")
    (tmp_path / "names.txt").write_text("cat\ndog\n\n")
    assert native.read_names(tmp_path / "names.txt", 2) == ("cat", "dog")
    with pytest.raises(UserError, match="names 2 classes, expected 3"):
        native.read_names(tmp_path / "names.txt", 3)
