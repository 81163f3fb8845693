"""Pictures of a user's own: any file, either layout; what is skipped is said, the rest refused;
a second start decodes nothing."""

import os
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from cifar_jax import evaluate, train
from cifar_jax.data import pictures, prepare, shards, sources
from cifar_jax.data.sources import folder as folder_lib
from cifar_jax.errors import UsageError, UserError
from cifar_jax.workdir import description
from tests.conftest import NAMES, NUM_TRAIN


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CIFAR_JAX_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(pictures, "_said", set())
    monkeypatch.setattr(pictures, "_unsaved", {})
    return tmp_path / "cache" / "pictures"


@pytest.fixture
def root(tmp_path):
    """The user's folder: nothing in it may change while a test reads it."""
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


@pytest.fixture
def data(config, root):
    config.data.update(name="folder", dir=str(root))
    return config.data


def draw(seed, shape=(32, 32, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path, pixels=0, **options):
    """Pixels [H, W, C], or those of a seed; returns them."""
    pixels = draw(pixels) if isinstance(pixels, int) else pixels
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(path, **options)
    return pixels


@pytest.fixture
def layout(root):
    """train/ and test/ of two classes, 3 and 2 pictures each; returns the training pixels."""
    kept = []
    for i in range(3):
        for number, name in enumerate(("cat", "dog")):
            kept.append(save(root / "train" / name / f"{i}.png", 10 * number + i))
            if i < 2:
                save(root / "test" / name / f"{i}.png", 100 + 10 * number + i)
    return np.stack(kept)


def state(root):
    return sorted(
        (str(path), path.lstat().st_mtime_ns, path.lstat().st_mode) for path in root.rglob("*")
    )


def test_the_pixels_and_labels_are_those_of_the_files(data, root, layout):
    before = state(root)
    found = sources.load(data, "train")
    assert found.images.tobytes() == layout.tobytes()
    assert found.labels.tolist() == [0, 1, 0, 1, 0, 1] and found.labels.dtype == np.int32
    assert found.class_names == ("cat", "dog")
    assert sources.load(data, "test").labels.tolist() == [0, 1, 0, 1]
    assert state(root) == before


@pytest.mark.parametrize("shape", [(28, 28, 1), (96, 96, 3), (20, 30, 4)])
def test_sizes_and_channels(data, root, shape):
    drawn = [save(root / "train" / name / "a.png", draw(i, shape)) for i, name in enumerate("ab")]
    save(root / "test" / "a" / "b.png", draw(5, shape))
    data.pictures.update(size=shape[:2], channels=shape[2])
    assert sources.find(data).image_size(data) == shape[:2]
    np.testing.assert_array_equal(sources.load(data, "train").images, drawn)


def test_files_of_any_kind(data, root, layout):
    red = np.zeros((8, 6, 3), np.uint8) + np.array([200, 10, 10], np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    a, b = root / "train" / "cat", root / "train" / "dog" / "deep er" / "ü"
    save(a / "x 1.JPG", red, exif=exif)
    save(a / "x.webp", red)
    save(b / "ж.GIF", red)
    save(b / "x.tiff", red)
    save(b / "x.bmp", red)
    save(a / "y.png", np.zeros((4, 4, 4), np.uint8))  # transparent: white
    found = sources.load(data, "train")
    assert np.bincount(found.labels).tolist() == [6, 6]
    means = found.images.mean((1, 2)).round()
    odd = [i for i, mean in enumerate(means) if mean[0] > 190 and mean[1] < 20]
    assert len(odd) == 5 and (means == 255).all(1).sum() == 1


def test_what_is_not_a_picture_is_skipped_and_said(data, root, layout, capsys):
    cat = root / "train" / "cat"
    for hidden in (".DS_Store", "._0.png", ".git/x.png", "__MACOSX/0.png"):
        (cat / hidden).parent.mkdir(exist_ok=True)
        (cat / hidden).write_bytes(b"x")
    (root / ".hidden").mkdir()
    (cat / "notes.txt").write_text("x")
    (root / "train" / "loose.png").write_bytes(b"x")
    (cat / "torn.png").write_bytes((cat / "0.png").read_bytes()[:100])
    (cat / "text.jpg").write_text("no picture")
    (cat / "empty\n.png").write_bytes(b"")
    (cat / "nowhere.png").symlink_to("missing.png")
    (cat / "self.png").symlink_to("self.png")
    os.mkfifo(cat / "pipe.png")
    shutil.copy(cat / "1.png", root / "test" / "cat" / "again.png")
    assert len(sources.load(data, "train")) == 6
    assert len(sources.load(data, "test")) == 5
    first, skipped, twice = capsys.readouterr().out.splitlines()  # once for both splits
    assert first == f"folder {root}: 6 training and 5 test pictures of 2 classes, as 32x32x3"
    for text in (
        "skipped 8: ",
        "1 not pictures (train/cat/notes.txt)",
        "1 not in a class's folder (train/loose.png)",
        "3 not to be opened (train/cat/nowhere.png: No such file or directory",
        "pipe.png: it is not a file",
        "3 unreadable (train/cat/empty\\n.png: it is not a picture of a known format",
        "train/cat/torn.png: ",
    ):
        assert text in skipped
    assert twice.startswith("1 test pictures are training pictures, too") and "again.png" in twice


def test_links_are_followed_and_loops_end(data, root, layout, tmp_path):
    save(tmp_path / "elsewhere" / "x.png", 50)
    dog = root / "train" / "dog"
    (dog / "linked.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    (dog / "loop").symlink_to(dog)
    (dog / "up").symlink_to(root / "train" / "dog" / "loop")
    (dog / "folder").symlink_to(tmp_path / "elsewhere")
    assert np.bincount(sources.load(data, "train").labels).tolist() == [3, 5]


def test_a_share_of_each_class_is_drawn_for_the_test(data, root):
    for i in range(20):
        save(root / "big" / f"{i}.png", i)
    for i in range(2):
        save(root / "small" / f"{i}.png", 50 + i)
    save(root / "single" / "0.png", 60)
    data.folder.test = 0.25
    found = folder_lib.find(root, 0.25)
    names = {split: {each.name for each in found.pictures[split]} for split in found.pictures}
    assert [len(names["train"]), len(names["test"])] == [15 + 1 + 1, 5 + 1]
    assert not names["train"] & names["test"]
    big = sorted(f"big/{i}.png" for i in range(20))
    assert not set(big[:5]) <= names["test"]  # drawn, as neighbours may be alike
    assert len(sources.load(data, "train")) == 17 and len(sources.load(data, "test")) == 6
    save(root / "big" / "new.png", 70)  # others stay where they are, but for one at most
    again = {each.name for each in folder_lib.find(root, 0.25).pictures["test"]}
    assert len(names["test"] - again) <= 1


def remove(*names):
    return lambda root: [shutil.rmtree(root / name) for name in names]


def twin(root):
    save(root / "train" / "Cat" / "x.png")


def torn(root):
    for path in (root / "train" / "cat").iterdir():
        path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("train", "test"), "has no class with training pictures, expected two or more"),
        (remove("test"), "has no folder test beside"),
        (remove("train"), "has no folder train beside"),
        (remove("train/cat"), "has only the class dog with training pictures"),
        (lambda root: (root / "train" / "cow").mkdir(), "has no training picture of cow"),
        (lambda root: save(root / "test" / "cow" / "x.png"), "has test pictures of cow, of which"),
        (twin, "the classes Cat and cat, which differ by case only"),
        (torn, "has no training picture that can be read of cat"),
        (remove(""), "mine: No such file or directory. Expected a folder of pictures"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(data, root, layout, change, message):
    change(root)
    with pytest.raises(UserError, match=message) as caught:
        sources.load(data, "train")
    assert "\n" not in str(caught.value)


def test_a_folder_without_read_permission_is_refused(data, root, layout, monkeypatch):
    original = os.scandir

    def scandir(path):
        if str(path).endswith("dog"):  # tests may run as root, who may read everything
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"train/dog: Permission denied\. Expected a folder"):
        sources.load(data, "train")


def test_names_of_one_spelling_are_one_class(data, root, layout):
    for form in ("NFC", "NFD"):
        save(root / "train" / unicodedata.normalize(form, "café") / f"{form}.png")
    found = sources.load(data, "train")
    assert found.class_names == ("café", "cat", "dog")
    assert np.bincount(found.labels).tolist() == [2, 3, 3]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("dir", "", "config.data.dir is empty"),
        ("pictures.size", (32,), "expected height and width"),
        ("pictures.size", (32, 0), "expected height and width"),
        ("pictures.channels", 2, r"expected 1 \(grey\), 3"),
        ("folder.test", 0.0, "expected a share between 0 and 1"),
        ("folder.test", 1.0, "expected a share between 0 and 1"),
    ],
)
def test_fields_that_cannot_work(data, path, value, message):
    data.update_from_flattened_dict({path: value})
    with pytest.raises(UsageError, match=message):
        sources.check(data)


# -- the cache -----------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch):
    """The number of pictures that were decoded."""
    calls = []
    original = pictures.decode
    monkeypatch.setattr(pictures, "decode", lambda *a: (calls.append(1), original(*a))[1])
    return calls


def test_a_second_start_decodes_nothing(data, root, layout, cache, decoded, capsys):
    (root / "train" / "cat" / "torn.png").write_bytes(b"x")
    first = [sources.load(data, split) for split in sources.SPLITS]
    said = capsys.readouterr().out
    assert len(decoded) == 11
    pictures._said.clear()
    again = [sources.load(data, split) for split in sources.SPLITS]
    assert len(decoded) == 11 and capsys.readouterr().out == said and "1 unreadable" in said
    for one, other in zip(first, again, strict=True):
        assert one.images.tobytes() == other.images.tobytes()
        assert one.labels.tolist() == other.labels.tolist()
    assert not list(cache.glob("*.part*"))


def test_any_change_decodes_again(data, root, layout, decoded):
    file = root / "train" / "cat" / "0.png"

    def count():
        before = len(decoded)
        sources.load(data, "train")
        return len(decoded) - before

    assert (count(), count()) == (10, 0)
    data.pictures.channels = 1
    assert count() == 10
    data.pictures.update(channels=3, size=(16, 16))
    assert count() == 10
    data.pictures.size = (32, 32)
    assert count() == 0
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    content = bytearray(file.read_bytes())
    content[-13] ^= 1  # of the same size and time: only the inode's own time tells
    file.write_bytes(content)
    os.utime(file, ns=times)
    assert count() == 10
    save(root / "test" / "dog" / "more.png", 7)
    assert count() == 11


@pytest.mark.parametrize("name", ["train.npy", "decoded.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_cache_is_made_again(data, layout, cache, decoded, name, damage, capsys):
    sources.load(data, "train")
    (file,) = cache.glob(f"*/{name}")
    content = file.read_bytes()
    middle = len(content) - 40
    flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"flip": flipped, "cut": content[:middle], "empty": b""}[damage])
    assert sources.load(data, "train").images.tobytes() == layout.tobytes()
    assert len(decoded) == 20
    error = capsys.readouterr().err
    assert error.count("decoding again") == (damage != "gone") and "cannot be kept" not in error
    sources.load(data, "train")
    assert len(decoded) == 20


def test_a_cache_that_cannot_be_written_is_a_line(data, layout, cache, decoded, capsys):
    cache.parent.write_text("a file in its place")
    assert len(sources.load(data, "train")) == 6
    assert len(sources.load(data, "test")) == 4
    assert len(decoded) == 10  # for both
    assert not pictures._unsaved
    (line,) = [t for t in capsys.readouterr().err.splitlines() if "decoding:" not in t]
    assert line.endswith("the next start decodes them again.")


def test_nothing_is_written_into_the_users_folder(data, root, layout, monkeypatch, capsys):
    monkeypatch.setenv("CIFAR_JAX_DATA", str(root))
    before = state(root)
    assert len(sources.load(data, "train")) == 6
    assert state(root) == before
    assert "it is inside the folder of the pictures" in capsys.readouterr().err


# -- tables --------------------------------------------------------------------------------------


@pytest.fixture
def table(data, root):
    data.name = "csv"
    for i in range(6):
        save(root / "pic tures" / f"{i}.png", i)
    write(root, "train", "path,label", *(f"pic tures/{i}.png,{'ba'[i % 2]}" for i in range(4)))
    write(root, "test", "path,label", "pic tures/4.png,a", f"{root}/pic tures/5.png,b")
    return data


def write(root, split, *lines):
    (root / f"{split}.csv").write_text("\n".join(lines) + "\n")


def test_a_table_of_pictures(table, root):
    found = sources.load(table, "train")
    assert found.images.tobytes() == np.stack([draw(i) for i in range(4)]).tobytes()
    assert found.labels.tolist() == [1, 0, 1, 0] and found.class_names == ("a", "b")
    assert sources.load(table, "test").labels.tolist() == [0, 1]


def test_columns_of_other_names_and_classes_of_numbers(table, root):
    table.csv.update(path="file", label="is")
    lines = (f"pic tures/{i}.png,{label}" for i, label in enumerate((10, 9, 10, 2)))
    write(root, "train", "\ufefffile,is", *lines, "")
    write(root, "test", "x,is,file", "0,9,pic tures/4.png")
    assert sources.load(table, "train").class_names == ("2", "9", "10")
    assert sources.load(table, "train").labels.tolist() == [2, 1, 2, 0]
    assert sources.load(table, "test").labels.tolist() == [1]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,class", "a,b"], "train.csv has no column 'label', but path, class. Name yours"),
        (["path,label", "no.png,a", "p/x.png,b"], r"2 files cannot be found \(no.png of train: No"),
        (["path,label", "pic tures/0.png,a", ",b"], "picture 2 has no path or no class"),
        (["path,label", "pic tures/0.png,a", "pic tures/1.png"], "picture 2 has no path or no"),
        (["path,label", "pic tures/0.png,a"], "only the class a"),
        (["path,label", "pic tures/0.png,a", "pic tures/1.png,A"], "differ by case only"),
        (["path,label", "pic tures/0.png,a", "pic tures/1.png,c"], "has test pictures of b"),
        (["path,label"], "has no class with training pictures"),
        ([], "has no column 'path'"),
        (["path,label", f"{'x' * 200_000},a"], r"train.csv: field larger than"),
    ],
)
def test_a_table_that_cannot_work_is_refused(table, root, lines, message):
    write(root, "train", *lines)
    with pytest.raises(UserError, match=message) as caught:
        sources.load(table, "train")
    assert "\n" not in str(caught.value)


def test_a_table_that_cannot_be_read(table, root):
    (root / "train.csv").write_bytes(b"path,label\n\xff\xfe,a\n")
    with pytest.raises(UserError, match=r"train.csv: 'utf-8' codec can't decode"):
        sources.load(table, "train")
    (root / "train.csv").unlink()
    with pytest.raises(UserError, match=r"train.csv: No such file"):
        sources.load(table, "train")


def test_parquet(table, root, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    expected = sources.load(table, "train")
    columns = {"path": [f"pic tures/{i}.png" for i in range(4)], "label": ["b", "a"] * 2}
    parquet.write_table(pyarrow.table(columns), root / "train.parquet")
    (root / "train.csv").unlink()
    found = sources.load(table, "train")
    assert found.images.tobytes() == expected.images.tobytes()
    assert found.labels.tolist() == expected.labels.tolist()
    (root / "train.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(UserError, match=r"train.parquet: .*Expected a table"):
        sources.load(table, "train")


def test_parquet_without_pyarrow_says_what_to_install(table, root, monkeypatch):
    (root / "train.csv").rename(root / "train.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UsageError, match="pip install pyarrow"):
        sources.load(table, "train")


# -- with the rest -------------------------------------------------------------------------------


def test_a_training_and_its_evaluation(config, root, tmp_path, data_dir):
    """On the pictures that other tests train on from binary files, so that no program is new."""
    arrays = {split: sources.load(config.data, split) for split in sources.SPLITS}
    for split, found in arrays.items():
        for i, (image, label) in enumerate(found):
            save(root / split / NAMES[label] / f"{i}.png", image)
    config.data.update(name="folder", dir=str(root))
    train.train(config, tmp_path / "run")
    known = description.load_dataset(tmp_path / "run")
    assert (known.name, known.class_names, known.sizes["train"]) == ("folder", NAMES, NUM_TRAIN)
    assert list(evaluate.evaluate(None, tmp_path / "run", once=True)) == [6]


def test_shards_of_pictures(root, layout, tmp_path):
    out = tmp_path / "out"
    flags = ["--source=folder", f"--data-dir={root}", f"--out={out}", "--pictures-size=16,24"]
    assert prepare.main([*flags, "--num-shards=1"]) == 0
    assert shards.open(out, "train").shape == (16, 24, 3)
