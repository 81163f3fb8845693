"""SVHN's MATLAB files: generated ones in the published layout."""

import numpy as np
import pytest
from scipy import io

from cifar_jax import evaluate, train
from cifar_jax.config import recipe
from cifar_jax.data import download, sources, splits
from cifar_jax.data.sources import svhn
from cifar_jax.errors import UserError


def write(path, count, seed=0, **arrays):
    """Random images; the label of the n-th is 1 + n % 10."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (32, 32, 3, count), np.uint8)
    found = {"X": images, "y": (1 + np.arange(count) % 10).astype(np.uint8)[:, None]} | arrays
    io.savemat(path, found)
    return found["X"]


@pytest.fixture
def config(tmp_path):
    config = recipe("default")
    config.data.name, config.data.dir = "svhn", str(tmp_path)
    return config


def test_images_and_labels_are_the_files(config, tmp_path):
    images = write(tmp_path / "train_32x32.mat", 12)
    found = sources.load(config.data, "train")
    np.testing.assert_array_equal(found.images[7], images[..., 7])
    assert found.images.flags.c_contiguous
    assert found.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert (found.labels.dtype, found.class_names[0]) == (np.int32, "0")


def test_a_folder_with_its_files_is_recognised(tmp_path):
    assert sources.recognise(tmp_path) == []
    write(tmp_path / "train_32x32.mat", 1)
    assert sources.recognise(tmp_path) == ["svhn"]


def test_extra_images_follow_those_for_training(config, tmp_path):
    for number, part in enumerate(("train", "extra", "test")):
        write(tmp_path / f"{part}_32x32.mat", 10 + number, number)
    config.data.svhn.extra = True
    assert len(sources.load(config.data, "train")) == 21
    assert len(sources.load(config.data, "test")) == 12


def test_missing_files_are_downloaded_into_a_folder(config, tmp_path, monkeypatch):
    asked = []

    def ensure_file(file, folder):
        asked.append((file.url, folder))
        write(folder / file.name, 10)
        return folder / file.name

    (tmp_path / "svhn").mkdir()
    monkeypatch.setattr(download, "ensure_file", ensure_file)
    assert len(sources.load(config.data, "test")) == 10
    url = "http://ufldl.stanford.edu/housenumbers/test_32x32.mat"
    assert asked == [(url, tmp_path / "svhn")]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"<html>not found</html>" * 20, "expected a MATLAB 5 file"),
        (b"", "expected a MATLAB 5 file"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(600), "it is of MATLAB 7.3"),
        (1_000, "expected a MATLAB 5 file"),  # cut off there
        ({"X": np.zeros((32, 32, 3, 12))}, r"X is float64 \[32, 32, 3, 12\]"),
        ({"X": np.zeros((12, 32, 32, 3), np.uint8)}, r"X is uint8 \[12, 32, 32, 3\]"),
        ({"y": np.zeros((12, 1), np.uint8)}, "y has labels from 0 to 0"),
        ({"y": np.ones((5, 1), np.uint8)}, r"y is uint8 \[5, 1\]"),
        ({"y": np.full((12, 1), 1.5)}, "y is float64"),
    ],
)
def test_what_is_not_such_a_file_is_refused_in_a_line(tmp_path, content, problem):
    path = tmp_path / "train_32x32.mat"
    write(path, 12, **(content if isinstance(content, dict) else {}))
    if isinstance(content, bytes):
        path.write_bytes(content)
    if isinstance(content, int):
        path.write_bytes(path.read_bytes()[:content])
    with pytest.raises(UserError, match=problem) as caught:
        svhn.read(path)
    assert "\n" not in str(caught.value)


def test_a_file_without_labels_is_refused(tmp_path):
    io.savemat(tmp_path / "a.mat", {"X": np.zeros((32, 32, 3, 2), np.uint8)})
    with pytest.raises(UserError, match="it has no array 'y'"):
        svhn.read(tmp_path / "a.mat")


def test_no_recipe_mirrors_a_digit():
    for name in ("svhn", "svhn:tutorial"):
        assert "flip" not in recipe(name).inputs.transforms
        assert recipe(name).data.name == "svhn"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["svhn", "svhn:tutorial"])
def test_a_recipe_trains(tmp_path, name):
    for number, part in enumerate(("train", "test")):
        write(tmp_path / f"{part}_32x32.mat", 40, number)
    config = recipe(name)
    config.update(batch_size=16, num_steps=2)
    config.data.dir = str(tmp_path)
    train.train(config, tmp_path / "run")
    assert set(evaluate.evaluate(None, tmp_path / "run", once=True)) == {2}
    assert len(splits.load(config.data, "train", 0)) == 40
