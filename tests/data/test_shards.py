"""Shards give back what was written, and say so in a line where they cannot."""

import concurrent.futures
import json
import shutil

import numpy as np
import pytest

from cifar_jax.data import dataset, shards
from cifar_jax.data.dataset import Split
from cifar_jax.errors import UserError
from tests.conftest import NAMES, NUM_TRAIN, random_images

REMEDY = "python -m cifar_jax.data.prepare"


@pytest.fixture(scope="module")
def data():
    images, labels = random_images(NUM_TRAIN, seed=0)
    return images, labels.astype(np.int32)


@pytest.fixture
def folder(data, tmp_path):
    """90 training images in 4 files."""
    shards.write(tmp_path / "set", "train", Split(*data, NAMES), num_shards=4)
    return tmp_path / "set"


def files(folder):
    return sorted((folder / "train").glob("*.array_record"))


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_all_that_was_written_is_read_in_any_order(data, folder):
    found = shards.open(folder, "train")
    assert (len(found), found.shape, found.class_names) == (NUM_TRAIN, (32, 32, 3), NAMES)
    names = [path.name for path in files(folder)]
    assert names == [f"train-{n:05}-of-00004.array_record" for n in range(4)]
    rng = np.random.default_rng(0)
    for indices in (rng.permutation(NUM_TRAIN), np.array([89, 0, 0, 45, 89]), np.empty(0, int)):
        images, labels = found.read(indices.astype(np.int32))
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(images, data[0][indices])
        np.testing.assert_array_equal(labels, data[1][indices])
    images, labels, names = found.load()
    np.testing.assert_array_equal(images, data[0])
    np.testing.assert_array_equal(labels, data[1])
    assert names == NAMES


def test_they_know_their_name_and_moments(data, folder, tmp_path):
    found = shards.open(folder, "train")
    assert (found.name, found.moments) == (None, dataset.measure([data[0]]))
    shards.write(tmp_path, "train", Split(*data, NAMES), 2, name="caf\udce9")
    assert shards.open(tmp_path, "train").name == "caf\udce9"


@pytest.mark.parametrize("indices", [[90], [-1, 3]])
def test_outside_of_the_split_is_an_index_error(folder, indices):
    with pytest.raises(IndexError, match="of 90"):
        shards.open(folder, "train").read(np.array(indices))


def test_all_images_are_read_a_part_at_a_time(monkeypatch, data, folder):
    monkeypatch.setattr(dataset, "_LOAD_IMAGES", 40)
    images, labels, _ = shards.open(folder, "train").load()
    np.testing.assert_array_equal(images, data[0])
    np.testing.assert_array_equal(labels, data[1])


def test_threads_share_one(data, folder):
    found = shards.open(folder, "train")
    orders = [np.random.default_rng(n).permutation(NUM_TRAIN) for n in range(64)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for order, (images, labels) in zip(orders, pool.map(found.read, orders), strict=True):
            np.testing.assert_array_equal(images, data[0][order])
            np.testing.assert_array_equal(labels, data[1][order])


@pytest.mark.parametrize("shape", [(1, 8, 5, 1), (3, 2, 2, 4)])
def test_other_shapes_larger_labels_and_fewer_images_than_files(tmp_path, shape):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    labels = np.arange(70_000, 70_000 + len(images))
    names = tuple(map(str, range(70_003)))
    shards.write(tmp_path, "test", Split(images, labels, names), num_shards=8)
    found = shards.open(tmp_path, "test")
    assert len(list((tmp_path / "test").glob("*.array_record"))) == len(images)
    for read, written in zip(found.read(np.arange(len(images))), (images, labels), strict=True):
        np.testing.assert_array_equal(read, written)


def describe(folder, change):
    path = folder / "train" / "shards.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(shape=[32, 32]),
        lambda m: m.update(shape=[32, 32, True]),
        lambda m: m.update(shape=[32, 32, 10**300]),
        lambda m: m.update(shape=[32, 32, "3"]),
        lambda m: m.update(shape=None),
        lambda m: m.update(class_names=[1, 2]),
        lambda m: m.update(files=[]),
        lambda m: m["files"].update({"../x": {"images": 1, "bytes": 1, "ends": 1}}),
        lambda m: m["files"].update({"/etc/passwd": {"images": 1, "bytes": 1, "ends": 1}}),
        lambda m: m["files"].update({"..": {"images": 1, "bytes": 1, "ends": 1}}),
        lambda m: m["files"].update(x={"images": -1, "bytes": 1, "ends": 1}),
        lambda m: m["files"].update(x={"images": 1.5, "bytes": 1, "ends": 1}),
        lambda m: m.update(name=3),
        lambda m: m.update(name=None),
        lambda m: m.update(name=["cifar10"]),
        lambda m: m.pop("mean"),
        lambda m: m.update(std=None),
        lambda m: m.update(mean=[1.0, 2.0]),
        lambda m: m.update(mean=[1.0, 2.0, 256.0]),
        lambda m: m.update(std=[1.0, 2.0, -0.5]),
        lambda m: m.update(std=[1.0, 2.0, "3"]),
    ],
)
def test_a_description_of_a_stranger_is_refused_in_a_line(folder, tmp_path, change):
    copy = shutil.copytree(folder, tmp_path / "copy")
    describe(copy, change)
    with pytest.raises(UserError, match=r"train/shards.json: it is not a description of") as caught:
        shards.open(copy, "train")
    assert "\n" not in str(caught.value)
    assert f"Delete {copy} and" in str(caught.value)


def test_fewer_images_than_records_and_labels_beyond_the_classes(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    describe(copy, lambda m: min(m["files"].items())[1].update(images=3))
    with pytest.raises(UserError, match=r"it has \d+ records and not 3"):
        shards.open(copy, "train").read(np.arange(2))
    shutil.copy(folder / "train" / "shards.json", copy / "train")
    describe(copy, lambda m: m.update(class_names=["a", "b"]))
    with pytest.raises(UserError, match=r"image \d+ has the label \d, expected 0 to 1"):
        shards.open(copy, "train").read(np.arange(40))


def test_exchanged_files_are_found(data, tmp_path):
    split = Split(*data, NAMES)
    shards.write(tmp_path, "train", split, num_shards=2)
    one, other = sorted((tmp_path / "train").glob("*.array_record"))
    assert one.stat().st_size == other.stat().st_size
    one.rename(tmp_path / "x")
    other.rename(one)
    (tmp_path / "x").rename(other)
    found = shards.open(tmp_path, "train")
    for image in (0, len(found) - 1):
        with pytest.raises(UserError, match="it is another file than shards.json describes"):
            found.read(np.array([image]))


def test_progress_goes_up_to_the_end(monkeypatch, data, tmp_path):
    monkeypatch.setattr(shards, "_REPORT_EVERY", 20)
    told = []
    split = Split(*data, NAMES)
    shards.write(tmp_path, "train", split, 2, lambda done, total: told.append((done, total)))
    assert told == [(n, 90) for n in (0, 20, 40, 45, 45, 65, 85, 90)]


# -- damage --------------------------------------------------------------------------------------


def test_a_missing_file_is_found_at_once(folder):
    files(folder)[2].unlink()
    with pytest.raises(UserError) as error:
        shards.open(folder, "train")
    text = one_line(error)
    assert str(files(folder)[0].with_name("train-00002-of-00004.array_record")) in text
    assert "No such file" in text
    assert f"{REMEDY} --source=SOURCE --out={folder}" in text


def test_a_truncated_file_is_found_at_once(folder):
    path = files(folder)[1]
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError) as error:
        shards.open(folder, "train")
    assert f"{path}: it has {size - 100:,} bytes, expected {size:,}" in one_line(error)
    assert REMEDY in one_line(error)


def test_a_flipped_bit_is_found_when_it_is_read(data, folder):
    path = files(folder)[3]
    content = bytearray(path.read_bytes())
    place = content.index(data[0][80].tobytes())
    content[place + 1000] ^= 1
    path.write_bytes(content)
    found = shards.open(folder, "train")
    with pytest.raises(UserError) as error:
        found.read(np.array([3, 80]))
    assert str(path) in one_line(error)
    assert REMEDY in one_line(error)
    np.testing.assert_array_equal(found.read(np.array([3, 79]))[0], data[0][[3, 79]])


@pytest.mark.parametrize("change", ["junk", "swap", "gone"])
def test_other_content_of_the_same_size_is_found_when_it_is_read(tmp_path, folder, change):
    path = files(folder)[0]
    found = shards.open(folder, "train")
    if change == "junk":
        path.write_bytes(bytes(path.stat().st_size))
    elif change == "swap":
        images = np.zeros((90, 4, 4, 3), np.uint8)
        shards.write(
            tmp_path / "small",
            "train",
            Split(images, np.zeros(90, int), NAMES),
            num_shards=4,
        )
        files(tmp_path / "small")[0].rename(path)
    else:
        path.unlink()
    with pytest.raises(UserError) as error:
        found.read(np.arange(5))
    assert str(path) in one_line(error)
    assert REMEDY in one_line(error)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "there is no such file"),
        ("{", "it is not a description of shards"),
        ('{"format": 2}', "it is not a description of shards"),
        ("[]", "it is not a description of shards"),
        ('{"format": 9}', "it is of format 9, expected format 2"),
    ],
)
def test_a_manifest_that_is_none(folder, content, expected):
    path = folder / "train" / shards.MANIFEST
    path.unlink()
    if content:
        path.write_text(content)
    with pytest.raises(UserError) as error:
        shards.open(folder, "train")
    assert f"{path}: {expected}" in one_line(error)
    assert REMEDY in one_line(error)


# -- writing -------------------------------------------------------------------------------------


def test_complete_shards_are_not_overwritten(data, folder):
    before = (folder / "train" / shards.MANIFEST).stat().st_mtime_ns
    with pytest.raises(UserError, match="already holds shards"):
        shards.write(folder, "train", Split(*data, NAMES), num_shards=2)
    assert (folder / "train" / shards.MANIFEST).stat().st_mtime_ns == before
    assert [path.name for path in folder.iterdir()] == ["train"]


def test_incomplete_shards_are_written_anew(data, folder):
    files(folder)[0].unlink()
    shards.write(folder, "train", Split(*data, NAMES), num_shards=2)
    assert len(shards.open(folder, "train")) == 90
    assert len(files(folder)) == 2


@pytest.mark.parametrize("where", ["train", "train.part"])
def test_what_is_not_ours_is_never_deleted(data, tmp_path, where):
    (tmp_path / where / "deep").mkdir(parents=True)
    precious = tmp_path / where / "deep" / "thesis.tex"
    precious.write_text("all of it")
    with pytest.raises(UserError, match="holds deep/thesis.tex"):
        shards.write(tmp_path, "train", Split(*data, NAMES), num_shards=2)
    assert precious.read_text() == "all of it"


def test_an_interruption_leaves_nothing_and_a_kill_nothing_that_lasts(data, tmp_path):
    def interrupt(done, total):
        if done == 45:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.write(tmp_path, "train", Split(*data, NAMES), 2, interrupt)
    assert not list(tmp_path.iterdir())
    left = tmp_path / "train.part"  # by a process that was killed
    (left / "deep").mkdir(parents=True)
    (left / "train-00007-of-00008.array_record").write_text("half")
    with pytest.raises(UserError):
        shards.open(tmp_path, "train")
    shards.write(tmp_path, "train", Split(*data, NAMES), num_shards=2)
    assert [path.name for path in tmp_path.iterdir()] == ["train"]
    assert len(list((tmp_path / "train").iterdir())) == 3


def test_two_writers_do_not_meet_in_one_folder(data, tmp_path):
    with shards.appearing(tmp_path / "train") as part:
        (part / "train-00000-of-00001.array_record").write_text("half")
        with pytest.raises(UserError, match="another process is writing"):
            shards.write(tmp_path, "train", Split(*data, NAMES), num_shards=2)
        assert list(part.iterdir())


@pytest.mark.parametrize("where", ["file/set", "file"])
def test_where_nothing_can_be_written(data, tmp_path, where):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="(Cannot write to|is a file)"):
        shards.write(tmp_path / where, "train", Split(*data, NAMES), num_shards=2)


def test_a_full_disk(data, tmp_path, monkeypatch):
    class Writer:
        def __init__(self, path, options):
            pass

        def write(self, record):
            raise RuntimeError("write() failed: No space left on device;\n at byte 0")

    monkeypatch.setattr(shards, "ArrayRecordWriter", Writer)
    with pytest.raises(UserError, match="No space left on device; at byte 0"):
        shards.write(tmp_path, "train", Split(*data, NAMES), num_shards=2)
    assert not list(tmp_path.iterdir())
