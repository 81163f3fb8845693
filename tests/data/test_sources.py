"""Every source gives the same kind of split; what is missing or damaged is named."""

import shutil

import numpy as np
import pytest

from cifar_jax.data import download, native, shards, sources, splits
from cifar_jax.data.sources import synthetic, tfds
from cifar_jax.errors import UserError
from tests.conftest import NAMES, NUM_TEST, NUM_TRAIN, random_images


@pytest.mark.parametrize(
    ("name", "count", "seed"), [("train", NUM_TRAIN, 0), ("test", NUM_TEST, 1)]
)
def test_cifar10(config, name, count, seed):
    split = sources.load(config.data, name)
    images, labels = random_images(count, seed)
    assert len(split) == count
    assert split.class_names == NAMES
    np.testing.assert_array_equal(split.images, images)
    np.testing.assert_array_equal(split.labels, labels)


def test_cifar100(config, tmp_path):
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for name, label in (("train", 99), ("test", 3)):
        np.array([1, label, *[7] * 3072], np.uint8).tofile(folder / f"{name}.bin")
    (folder / "fine_label_names.txt").write_text("\n".join(f"class {n}" for n in range(100)))
    config.data.update(name="cifar100", dir=str(tmp_path))
    split = sources.load(config.data, "test")
    assert split.labels.tolist() == [3]
    assert split.class_names[3] == "class 3"
    assert split.images.shape == (1, 32, 32, 3)
    assert sources.load(config.data, "train").labels.tolist() == [99]


def test_synthetic_is_drawn_once_and_read_as_cifar10(config, tmp_path, capsys):
    config.data.update(name="synthetic", dir=str(tmp_path), synthetic={"train": 20, "test": 8})
    train, test = (sources.load(config.data, name) for name in sources.SPLITS)
    assert capsys.readouterr().out.count("Drawing") == 1
    assert (len(train), len(test)) == (20, 8)
    assert train.class_names == synthetic.CLASS_NAMES
    assert not np.array_equal(train.images[:8], test.images)
    images, labels = synthetic.draw(20, seed=0)
    np.testing.assert_array_equal(train.images, images)
    np.testing.assert_array_equal(train.labels, labels)
    assert [path.name.startswith("synthetic-") for path in tmp_path.iterdir()] == [True]


def test_tfds_split_names_and_folder_come_from_the_config(config, monkeypatch):
    asked = []

    def open(*arguments):
        asked.append(arguments)
        return tfds.Examples("zeros", [{"image": np.zeros((28, 28, 3)), "label": 0}], ("zero",))

    monkeypatch.setattr(sources.tfds, "open", open)
    config.data.update(name="tfds", dir="/D")
    config.data.tfds.update(name="svhn_cropped", train_split="extra")
    sources.load(config.data, "train")
    sources.load(config.data, "test")
    assert asked == [("svhn_cropped", "extra", "/D"), ("svhn_cropped", "test", "/D")]


def test_an_empty_split_is_refused(config, monkeypatch):
    empty = tfds.Examples("nothing", [], ("zero",))
    monkeypatch.setattr(sources.tfds, "open", lambda *arguments: empty)
    config.data.name = "tfds"
    with pytest.raises(UserError, match="The test split of 'tfds' is empty"):
        sources.load(config.data, "test")


def test_a_missing_file_among_the_five(config, data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "data")
    config.data.dir = str(tmp_path / "data")
    (tmp_path / "data" / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(UserError, match="data_batch_3.bin: No such file"):
        sources.load(config.data, "train")
    assert len(sources.load(config.data, "test")) == NUM_TEST


def test_the_folder_comes_from_config_then_environment_then_home(config, monkeypatch, tmp_path):
    config.data.dir = ""
    monkeypatch.setenv("CIFAR_JAX_DATA", str(tmp_path))
    assert sources.data_dir(config.data) == tmp_path
    monkeypatch.delenv("CIFAR_JAX_DATA")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(sources.data_dir(config.data)) == "/home/somebody/.cache/cifar_jax"
    config.data.name = "tfds"
    assert str(sources.data_dir(config.data)) == "/home/somebody/tensorflow_datasets"


def test_the_first_use_downloads(config, tmp_path, monkeypatch):
    asked = []

    def ensure(archive, folder):
        asked.append((archive.url.rsplit("/", 1)[1], archive.size, folder))
        raise UserError("offline")

    monkeypatch.setattr(download, "ensure", ensure)
    config.data.dir = str(tmp_path)
    with pytest.raises(UserError, match="offline"):
        sources.load(config.data, "train")
    assert asked == [("cifar-10-binary.tar.gz", 170_052_171, tmp_path)]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(path, images, labels):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(native, "write", fail)
    with pytest.raises(OSError, match="No space left"):
        native.write_folder(tmp_path / "set", random_images(2, 0), random_images(2, 1), NAMES)
    assert list(tmp_path.iterdir()) == []


def test_shards_take_the_place_of_their_source(config, tmp_path):
    """For evaluation, too: whatever the source is called that they were made from."""
    expected = sources.load(config.data, "test")
    shards.write(tmp_path, "test", expected, num_shards=2)
    config.data.update(name="cifar100", shards=str(tmp_path))
    found = splits.open(config.data, "test", seed=0)
    assert found.class_names == NAMES
    np.testing.assert_array_equal(found.load()[0], expected.images)


def test_a_folder_that_is_the_dataset_itself(config, data_dir):
    config.data.dir = str(data_dir / "cifar-10-batches-bin")
    assert len(sources.load(config.data, "train")) == NUM_TRAIN


@pytest.mark.parametrize("field", ["dir", "shards"])
def test_paths_are_those_of_a_user(config, monkeypatch, field):
    monkeypatch.setenv("HOME", "/home/me")
    resolve = {"dir": sources.data_dir, "shards": splits.shards_dir}[field]
    config.data[field] = "~/x y"
    assert str(resolve(config.data)) == "/home/me/x y"
    config.data[field] = "gs://b"
    with pytest.raises(UserError, match=f"config.data.{field}=gs://b is a URL"):
        resolve(config.data)
