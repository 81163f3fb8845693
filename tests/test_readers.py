"""Every reader, of any bytes: a result or one line, and nothing outside of its folder."""

import contextlib
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cifar_jax import files
from cifar_jax.data import download, native, shards
from cifar_jax.data.dataset import CHANNELS, Description
from cifar_jax.data.sources import npz
from cifar_jax.errors import UserError
from cifar_jax.workdir import checkpoint, description

ANY = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
CONTENT = st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode())


@pytest.fixture
def inside(tmp_path):
    """A folder; what lies beside it must stay alone."""
    folder = tmp_path / "inside"
    folder.mkdir()
    yield folder
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


def calm(read, *arguments):
    try:
        return read(*arguments)
    except UserError as error:
        assert "\n" not in str(error)
        return None


def known_keys(**values):
    """Objects that have the right keys with any values."""
    return st.fixed_dictionaries({}, optional=values).map(lambda v: json.dumps(v).encode())


@ANY
@given(st.binary(max_size=7000), st.sampled_from([1, 10, 256]), st.sampled_from([1, 2]))
def test_records(inside, content, classes, label_bytes):
    (inside / "x").write_bytes(content)
    if found := calm(native.read, [inside / "x"], classes, label_bytes):
        assert len(found[0]) == len(found[1]) == len(content) // (3072 + label_bytes)
        assert found[1].max() < classes


@ANY
@given(st.binary(max_size=60), st.integers(1, 4))
def test_class_names(inside, content, classes):
    (inside / "x").write_bytes(content)
    assert len(calm(native.read_names, inside / "x", classes) or range(classes)) == classes


@ANY
@given(st.binary(max_size=2000))
def test_archives(inside, content):
    (inside / "a.tar").write_bytes(content)
    calm(download._unpack, inside / "a.tar", inside / "a")


@ANY
@given(CONTENT | known_keys(step=JSON, files=st.dictionaries(st.text(max_size=9), JSON)))
def test_manifests(inside, content):
    path = inside / "7"
    path.mkdir(exist_ok=True)
    (path / "a").write_text("a")
    (path / checkpoint.MANIFEST).write_bytes(content)
    assert checkpoint.check(path)  # damaged, whatever it says: no sum is right
    assert "\n" not in checkpoint.check(path)


@ANY
@given(CONTENT | known_keys(good=JSON, finished=JSON, diverged=JSON))
def test_status(inside, content):
    (inside / checkpoint.STATUS).write_bytes(content)
    found = checkpoint.status(inside)
    assert type(found.finished) in (int, type(None)) and "\n" not in found.diverged


@ANY
@given(CONTENT | known_keys(config=JSON, changes=JSON, versions=JSON))
def test_configs(inside, content):
    (inside / description.FILE).write_bytes(content)
    calm(description.load, inside)
    assert isinstance(description._changes(inside / description.FILE, {"config": {}}, 3), list)


@ANY
@given(
    CONTENT
    | known_keys(
        format=st.just(shards.FORMAT),
        shape=st.lists(st.integers(-1, 5), max_size=4),
        class_names=st.lists(st.text(max_size=3), max_size=3),
        files=st.dictionaries(st.text(max_size=5), JSON, max_size=2),
    )
)
def test_descriptions_of_shards(inside, content):
    folder = inside / "train"
    folder.mkdir(exist_ok=True)
    (folder / shards.MANIFEST).write_bytes(content)
    found = calm(shards.open, inside, "train")
    if found is not None:
        calm(found.read, np.arange(min(1, len(found))))


SMALL = st.integers(0, 3)
ARRAYS = st.builds(
    np.zeros,
    st.lists(SMALL, max_size=5),
    st.sampled_from([np.uint8, np.int8, np.uint64, np.float32, bool, "U3", "S3", "M8[s]", "u1,f4"]),
)


@ANY
@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(["images", "labels", "class_names"], ARRAYS)),
    st.integers(0, 2000),
    st.binary(max_size=30),
)
def test_arrays(inside, arrays, place, damage):
    """Archives of any arrays, with any bytes somewhere."""
    path = inside / "train.npz"
    np.savez(path, **arrays)
    content = bytearray(path.read_bytes())
    place %= len(content) + 1
    content[place : place + len(damage)] = damage
    path.write_bytes(content)
    if found := calm(npz.read, path, path):
        assert found.images.dtype == np.uint8 and found.shape[2] in CHANNELS
        assert len(found.images) == len(found.labels) == len(found)
        assert not len(found) or 0 <= found.labels.max() < len(found.class_names)


@ANY
@given(st.binary(max_size=300), st.sampled_from([b"", b"PK\3\4", b"\x93NUMPY\1\0"]))
def test_arrays_of_any_bytes(inside, content, magic):
    (inside / "train.npz").write_bytes(magic + content)
    assert calm(npz.read, inside / "train.npz", inside / "train.npz") is None


NUMBERS = st.lists(st.integers(-1, 300) | st.floats(), min_size=1, max_size=4)


@ANY
@given(
    CONTENT
    | known_keys(config=JSON, dataset=JSON)
    | st.fixed_dictionaries(
        {
            "config": st.just({}),
            "dataset": st.fixed_dictionaries(
                {
                    "name": st.text(max_size=3) | JSON,
                    "class_names": st.lists(st.text(max_size=3), max_size=3) | JSON,
                    "image_shape": st.just([5, 4, 3]) | NUMBERS | JSON,
                    "sizes": st.just({"train": 4}) | JSON,
                    "mean": st.just([1, 2.5, 3]) | NUMBERS | JSON,
                    "std": NUMBERS | JSON,
                }
            ),
        }
    ).map(lambda value: json.dumps(value).encode())
)
def test_datasets(inside, content):
    (inside / description.FILE).write_bytes(content)
    found = calm(description.load_dataset, inside)
    if found is not None:
        assert Description.from_json(json.loads(json.dumps(found.to_json()))) == found


@ANY
@given(CONTENT)
def test_json(inside, content):
    (inside / "x").write_bytes(content)
    found = None
    with contextlib.suppress(ValueError):  # which callers expect
        found = files.read_json(inside / "x")
    assert found is None or found == json.loads(content)
