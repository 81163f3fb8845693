"""`python -m cifar_jax.data.look`: what its page says is what is in the folder, which stays as it
was; any name is text; copies across splits are found, and what only is as flat is not."""

import base64
import io
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cifar_jax.data import duplicates, look, pictures
from cifar_jax.data.dataset import Split
from tests.conftest import NAMES, ROOT

ODD = 'a <script>alert("ü")<'  # a class: no name of a file has a slash


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("CIFAR_JAX_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(pictures, "_said", set())
    monkeypatch.setattr(pictures, "_unsaved", {})


def draw(seed, size=32):
    """A picture of soft spots, which are still the same after JPEG or another size."""
    spots = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(spots).resize((size, size), Image.Resampling.BICUBIC)


def save(path, picture, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)


@pytest.fixture
def root(tmp_path):
    """3 and 6 training pictures; for the test an equal one, one of another label, a new one."""
    root = tmp_path / "my pictures"
    for i in range(3):
        save(root / "train" / ODD / f"{i}.png", draw(i))
    for i in range(6):
        save(root / "train" / "dog" / f"p {i} 'ж'.png", draw(10 + i, 48))
    save(root / "test" / ODD / "<b>.png", draw(1))
    save(root / "test" / "dog" / '2".jpg', draw(2), quality=80)
    save(root / "test" / "dog" / "new.png", draw(20))
    (root / "train" / "dog" / "notes <i>.txt").write_text("x")
    return root


class Page(HTMLParser):
    """Its elements by tag, and its text; fails where an element is not closed."""

    VOID = {"meta", "link", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.text = [], {}, ""
        self.feed(text)
        assert not self.open
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.found.setdefault(tag, []).append(dict(attrs))
        self.text += " " * (tag in ("br", "th", "td"))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data


@pytest.fixture
def made(tmp_path):
    """Calls the program, and returns its page."""

    def make(*argv):
        assert look.main([*map(str, argv), f"--out={tmp_path / 'look.html'}"]) == 0
        return Page((tmp_path / "look.html").read_text())

    return make


def state(root):
    return sorted((str(p), p.lstat().st_mtime_ns, p.lstat().st_mode) for p in root.rglob("*"))


def pixels(image):
    content = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(content)))


def test_the_page_says_what_is_in_the_folder(root, made, capsys):
    before = state(root)
    page = made(root)
    assert state(root) == before
    assert capsys.readouterr().out.splitlines()[-1].startswith("The page is /")
    assert "training pictures 9 · test pictures 3 · classes 2 · each as 32x32x3" in page.text
    assert "2 times as many training pictures as the smallest: 6 and 3." in page.text
    assert f"{ODD} 3 1 dog 6 2" in page.text
    assert "Smallest: 32 x 32; largest: 48 x 48; 2 different ones" in page.text
    assert "32 x 32 6 48 x 48 6" in page.text
    assert "skipped 1: 1 not pictures (train/dog/notes <i>.txt)" in page.text
    examples = [i for i in page.found["img"] if i["alt"].startswith("A training")][:9]
    assert [i["title"] for i in examples[:3]] == [f"train/{ODD}/{i}.png" for i in range(3)]
    np.testing.assert_array_equal(pixels(examples[1]), draw(1))
    assert {pixels(i).shape for i in examples} == {(32, 32, 3)}


def test_every_name_is_text_and_nothing_comes_from_elsewhere(root, made):
    page = made(root)
    assert not {"script", "b", "i"} & (page.found.keys() - {"b"})
    assert len(page.found["b"]) == 6  # the page's own
    assert all(i["alt"] and i["title"] in i["alt"] for i in page.found["img"])
    assert any(i["title"] == f"test/{ODD}/<b>.png" for i in page.found["img"])
    assert {i["src"][:22] for i in page.found["img"]} == {"data:image/png;base64,"}
    assert "prefers-color-scheme: dark" in (root.parent / "look.html").read_text()


def test_copies_across_splits_are_shown_side_by_side_the_closest_first(root, made):
    page = made(root)
    assert "or nearly: 2 " in page.text
    assert "equal 1 0 0.999 or more" in page.text and "0.99 or more 2 1 " in page.text
    first, second = re.split("All pairs from", page.text)[1].split("equal: ")[1].split("0.99", 1)
    assert f"train/{ODD}/1.png test/{ODD}/<b>.png" in first
    assert f"two labels: {ODD} and dog" in second and 'test/dog/2".jpg' in second
    pairs = [image["title"] for image in page.found["img"][-4:]]
    assert pairs[0::2] == [f"train/{ODD}/1.png", f"train/{ODD}/2.png"]


def test_a_dataset_without_copies_says_so(root, made):
    (root / "test" / ODD / "<b>.png").unlink()
    (root / "test" / "dog" / '2".jpg').unlink()
    save(root / "test" / "dog" / "alike.png", Image.blend(draw(1), draw(30), 0.15))
    page = made(root, "--size=16", "--channels=1")
    assert "0.99 or more 0 0 0.98 or more 1 1" in page.text
    assert page.text.endswith("There is none.")
    assert pixels(page.found["img"][0]).shape == (16, 16)


def test_of_many_classes_and_pictures_some_are_shown(tmp_path, made):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (400, 8, 8), np.uint8), np.arange(400) % 25
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=images, labels=labels)
    page = made(move(tmp_path))
    assert "Drawn from the training pictures of the first 20 of 25 classes" in page.text
    assert "The first 60 of 400 pairs" in page.text and "equal 400 0" in page.text
    assert len(page.found["img"]) == 20 * 10 + 2 * 60
    assert "All classes have 16 training pictures." in page.text
    assert "All pictures are 8 x 8" in page.text


def move(folder):
    (folder / "arrays").mkdir()
    for file in folder.glob("*.npz"):
        file.rename(folder / "arrays" / file.name)
    return folder / "arrays"


def test_a_class_without_training_pictures_is_said(tmp_path, made):
    arrays = {"images": np.zeros((2, 8, 8), np.uint8), "class_names": np.array(["a", "<b>"])}
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", labels=np.zeros(2, int), **arrays)
    assert "No training picture of: <b>." in made(move(tmp_path)).text


@pytest.mark.parametrize("folder", ["", "cifar-10-batches-bin"])
def test_cifar10_is_recognised(data_dir, made, folder):
    page = made(data_dir / folder)
    assert "read as cifar10 · training pictures 90 · test pictures 37" in page.text
    assert NAMES[9] in page.text and "Nothing was skipped" in page.text


def test_a_table_is_recognised_beside_its_folders(root, made):
    for split, lines in {"train": ["0.png,a", "1.png,b"], "test": ["2.png,b"]}.items():
        lines = [
            f'"train/{ODD.replace(chr(34), chr(34) * 2)}/{line[:5]}",{line[6:]}' for line in lines
        ]
        (root / f"{split}.csv").write_text("\n".join(["file,label", *lines]) + "\n")
    assert "read as csv · training pictures 2" in made(root, "--csv-path=file").text
    assert "read as folder · training pictures 9" in made(root, "--name=folder").text


def test_a_share_is_drawn_for_the_test(root, made):
    for i in range(10):
        save(root.parent / "flat" / "ab"[i % 2] / f"{i}.png", draw(i))
    page = made(root.parent / "flat", "--folder-test=0.4")
    assert "training pictures 6 · test pictures 4" in page.text


# -- the command line ----------------------------------------------------------------------------


def test_the_command_as_documented(root, tmp_path):
    (tmp_path / "here").mkdir()
    command = [sys.executable, "-m", "cifar_jax.data.look", str(root)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path / "here", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["look.html"]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["none"], 1, "none is not a folder, expected one that holds a dataset."),
        (["file"], 1, "file is not a folder"),
        (["empty"], 1, "empty holds no dataset, expected folders of pictures, train.csv"),
        (["hollow"], 1, "hollow has no training picture of a, b. Put pictures there"),
        (["my pictures/train/dog"], 1, "dog holds no dataset"),
        (["two"], 2, "two holds cifar10 and npz. Choose one of them with --name=cifar10."),
        (["empty", "--name=cifar10"], 1, "empty is not laid out as 'cifar10'."),
        (["none", "--name=folder"], 1, "none: No such file or directory. Expected a folder"),
        (["two", "--name=tfds"], 2, "Unknown --name 'tfds'."),
        (["my pictures", "--size=0"], 2, "config.data.pictures.size = (0, 0), expected height"),
        (["my pictures", "--size=x"], 2, "Argument --size: invalid numbers value: 'x'."),
        (["my pictures", "--size=1,2,3"], 2, "config.data.pictures.size = (1, 2, 3), expected"),
        (["my pictures", "--channels=2"], 2, "config.data.pictures.channels = 2, expected"),
        (["my pictures", "--out=my pictures/look.html"], 2, "which is only read. Choose another"),
        (["my pictures", "--out=link/look.html"], 2, "which is only read. Choose another"),
        (["my pictures", "--out=a.png"], 2, "a.png, expected a name that ends in .html."),
        (["my pictures", "--out=no/look.html"], 1, "look.html: there is no folder /"),
        (["my pictures", "--out=folder.html"], 1, "folder.html: it is a folder. Expected a"),
        (["my pictures", "--out=/proc/look.html"], 1, "Cannot write to /proc/look.html: "),
        ([], 2, "The following arguments are required: DIR. --help names the flags."),
    ],
)
def test_what_cannot_work_is_a_line(root, monkeypatch, capsys, flags, code, message):
    here = root.parent
    monkeypatch.chdir(here)
    for name in ("empty", "hollow/a", "hollow/b", "folder.html", "two/cifar-10-batches-bin"):
        (here / name).mkdir(parents=True)
    (here / "two" / "train.npz").touch()
    (here / "file").touch()
    (here / "link").symlink_to(root)
    before = state(here)
    assert look.main(flags) == code
    error = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("decoding")]
    assert len(error) == 1 and message in error[0]
    assert [each for each in state(here) if "/cache" not in each[0]] == before


# -- near-duplicates -----------------------------------------------------------------------------


def split_of(images, labels=None):
    images = np.stack([np.asarray(image) for image in images])
    images = images[..., None] if images.ndim == 3 else images
    labels = np.zeros(len(images), np.int32) if labels is None else np.array(labels, np.int32)
    return Split(images, labels, ("a", "b", "c"))


def grey(*levels):
    return [np.full((32, 32, 3), level, np.uint8) for level in levels]


def test_flat_pictures_match_where_they_are_equal_alone():
    train = split_of([*grey(10, 200), draw(1)])
    pairs = duplicates.find(train, split_of([*grey(10, 20, 255), draw(2)]), least=0.9)
    assert [(pair.train, pair.test, pair.equal) for pair in pairs] == [(0, 0, True)]
    faint = np.asarray(draw(0)) // 64 + 100  # a few levels' difference: noise
    assert duplicates.find(split_of([faint]), split_of([faint + 50]), least=0.9) == []


def test_of_equal_training_pictures_one_of_another_label_is_taken():
    train = split_of([draw(0), draw(1), draw(1), draw(1)], [0, 1, 1, 2])
    (pair,) = duplicates.find(train, split_of([draw(1)], [1]))
    assert pair == (3, 0, 1.0, True, True)


@pytest.mark.parametrize("shape", [(32, 32), (28, 28), (5, 9), (45, 70)])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_any_shape_and_every_pair_counts(monkeypatch, shape, mode):
    monkeypatch.setattr(duplicates, "_CHUNK_PRODUCTS", 40)  # 2 test images at once
    monkeypatch.setattr(duplicates, "_CHUNK_LEVELS", 5 * 45 * 70)
    size = shape[::-1]
    images = [draw(i, 64).resize(size).convert(mode) for i in range(20)]
    brighter = [Image.fromarray((np.asarray(i) * 0.8).astype(np.uint8)) for i in images[::-2]]
    pairs = duplicates.find(split_of(images), split_of(brighter), least=0.98)
    assert {p.test: p.train for p in pairs} == {i: 19 - 2 * i for i in range(10)}
    found = [pair.similarity for pair in pairs]
    assert found == sorted(found, reverse=True) and found[0] <= 1


def test_thumbnails_are_means_of_parts():
    image = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(1, 16, 16, 3)
    expected = image.mean(-1).reshape(8, 2, 8, 2).mean((1, 3)).ravel()
    np.testing.assert_allclose(duplicates._thumbnails(image)[0], expected, rtol=1e-6)


def test_without_a_test_picture_there_is_no_pair():
    train = split_of([draw(0)])
    assert duplicates.find(train, Split(train.images[:0], train.labels[:0], ("a",))) == []
