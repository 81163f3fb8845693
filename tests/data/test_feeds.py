"""All placements give the same batches, at any step; threads that fail or hang are no trap."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cifar_jax.data import batches, feeds, shards
from cifar_jax.data.dataset import Split
from cifar_jax.devices import replicas
from tests.conftest import NAMES, ROOT, random_images

NUM_IMAGES, BATCH, SEED = 90, 16, 5
CALLS = {
    "on": [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1)],  # and over an epoch's end
    "resumed": [(31, 2), (33, 2)],
    "far": [(510, 1), (511, 4), (515, 1)],  # where another block of indices begins
    "changing": [(0, 1), (1, 3), (4, 3), (7, 1), (8, 40), (48, 2)],  # 40: a call in parts
    "back": [(9, 2), (11, 2), (3, 1), (4, 1), (3, 1)],
}


@pytest.fixture(scope="module")
def data():
    images, labels = random_images(NUM_IMAGES, seed=0)
    return images, labels.astype(np.int32)


@pytest.fixture(scope="module")
def reads(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    shards.write(folder, "train", Split(*data, NAMES), num_shards=4)
    mapped = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, data[0].shape)
    mapped[:] = data[0]
    return {
        "array": Split(*data, NAMES).read,
        "memmap": Split(mapped, data[1], NAMES).read,
        "stream": shards.open(folder, "train").read,
    }


@pytest.fixture
def feed():
    """Makes feeds that end with the test."""
    sharding = NamedSharding(replicas.make_mesh(1), P(None, replicas.AXIS))
    with contextlib.ExitStack() as stack:

        def make(read, depth=3, threads=2):
            made = feeds.HostFeed(read, NUM_IMAGES, BATCH, SEED, sharding, depth, threads)
            return stack.enter_context(contextlib.closing(made))

        yield make


def same(batches, expected):
    assert len(batches) == len(expected)
    names = ("image", "label", "index", "epoch")[-len(expected) :]
    for name, other in zip(names, expected, strict=True):
        one = batches[name]
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def until(condition):
    """Waits for what a thread is about to do."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("name", ["array", "memmap", "stream"])
def test_all_placements_give_the_same_batches(data, reads, feed, name, calls):
    sharding = NamedSharding(replicas.make_mesh(1), P(None, replicas.AXIS))
    device = feeds.DeviceFeed(NUM_IMAGES, BATCH, SEED, sharding)
    host = feed(reads[name])
    for step, count in calls:
        index, epoch = batches.train_indices(SEED, step, count, BATCH, NUM_IMAGES)
        same(device.get(step, count), (index, epoch))
        same(host.get(step, count), (data[0][index], data[1][index], index, epoch))


@pytest.mark.parametrize(("depth", "threads"), [(1, 1), (1, 8), (20, 1), (20, 16)])
def test_neither_threads_nor_depth_change_anything(data, reads, feed, depth, threads):
    made = feed(reads["stream"], depth, threads)
    for step, count in CALLS["changing"]:
        index, epoch = batches.train_indices(SEED, step, count, BATCH, NUM_IMAGES)
        same(made.get(step, count), (data[0][index], data[1][index], index, epoch))


def test_parts_arriving_in_any_order_make_the_same_call(data, feed):
    images_of, turn = Split(*data, NAMES).read, threading.Semaphore(0)
    first = batches.train_indices(SEED, 0, 1, BATCH, NUM_IMAGES)[0][0]

    def read(indices):
        if np.array_equal(indices[:BATCH], first):  # the first part comes after the second
            assert turn.acquire(timeout=10)
        else:
            turn.release()
        return images_of(indices)

    index, epoch = batches.train_indices(SEED, 0, 64, BATCH, NUM_IMAGES)
    same(feed(read).get(0, 64), (data[0][index], data[1][index], index, epoch))


def test_it_reads_ahead_of_the_calls_and_no_further(data, feed):
    images_of, seen = Split(*data, NAMES).read, []

    def read(indices):
        seen.append(len(indices))
        return images_of(indices)

    made = feed(read, depth=3)
    assert made.occupancy == 0
    made.get(0, 1)
    until(lambda: made.occupancy == 1)
    assert len(seen) == 4  # the one that was asked for, and three
    made.get(1, 1)
    made.get(2, 1)
    until(lambda: made.occupancy == 1)
    assert len(seen) == 6
    made.get(3, 2)  # another count: two calls of two steps each follow it
    until(lambda: made.occupancy == 1)
    assert seen[6:] == [2 * BATCH] * 3
    made.get(5, 2)
    made.get(7, 2)
    until(lambda: made.occupancy == 1)
    assert len(seen) == 6 + 5  # none of them in vain


def test_the_arrays_are_sharded_over_the_devices_by_image(reads, feed):
    found = feed(reads["array"]).get(0, 2)
    wanted = NamedSharding(replicas.make_mesh(1), P(None, replicas.AXIS))
    assert all(isinstance(each, jax.Array) and each.sharding == wanted for each in found.values())


PROCESS = """
import sys, jax, numpy as np
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[1]))
from jax.sharding import NamedSharding, PartitionSpec as P
from cifar_jax.devices import replicas
from cifar_jax.data import batches, feeds
from cifar_jax.data.dataset import Split
images = np.arange(90 * 4, dtype=np.uint8).reshape(90, 2, 2, 1)
data = Split(images, np.arange(90, dtype=np.int32), ("a",))
sizes = []
def read(indices):
    sizes.append(len(indices))
    return data.read(indices)
sharding = NamedSharding(replicas.make_mesh(0), P(None, replicas.AXIS))
feed = feeds.HostFeed(read, 90, 16, 5, sharding, depth=2, threads=1)
index, epoch = batches.train_indices(5, 3, 2, 16, 90)
expected = data.images[index], data.labels[index], index, epoch
for array, whole in zip(feed.get(3, 2).values(), expected, strict=True):
    assert array.shape == whole.shape
    (shard,) = array.addressable_shards
    np.testing.assert_array_equal(shard.data, whole[shard.index])
    print(shard.index[1].start, shard.index[1].stop)
feed.close()
assert set(sizes) == {2 * 8}, sizes
"""


def test_each_process_reads_what_its_devices_take():
    with socket.create_server(("localhost", 0)) as server:
        port = str(server.getsockname()[1])
    command = [sys.executable, "-c", PROCESS]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [*command, str(n), port],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(2)
    ]
    for process, columns in zip(processes, ("0 8\n", "8 16\n"), strict=True):
        out, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
        assert out == 4 * columns


def test_waiting_is_counted_once(data, feed):
    images_of, let_go = Split(*data, NAMES).read, threading.Event()

    def read(indices):
        assert let_go.wait(10)
        return images_of(indices)

    made = feed(read)
    threading.Timer(0.05, let_go.set).start()
    made.get(0, 1)
    assert made.take_wait() > 0 == made.take_wait()
    sharding = NamedSharding(replicas.make_mesh(1), P(None, replicas.AXIS))
    device = feeds.DeviceFeed(NUM_IMAGES, BATCH, SEED, sharding)
    device.get(0, 1)
    assert device.take_wait() > 0 == device.take_wait()


def test_what_a_thread_fails_with_reaches_the_caller_when_it_gets_there(data, feed):
    images_of, broken = Split(*data, NAMES).read, True
    third = batches.train_indices(SEED, 2, 1, BATCH, NUM_IMAGES)[0][0]

    def read(indices):
        if broken and np.array_equal(indices, third):
            raise SystemExit("no such disk")  # not even an Exception
        return images_of(indices)

    made = feed(read)
    made.get(0, 1)
    made.get(1, 1)
    for _ in range(2):
        with pytest.raises(SystemExit, match="no such disk"):
            made.get(2, 1)
    broken = False
    images = made.get(2, 1)["image"]  # a disk that came back
    np.testing.assert_array_equal(images[0], data[0][third])


def test_what_was_read_ahead_in_vain_may_fail(data, feed):
    images_of, failed = Split(*data, NAMES).read, threading.Event()
    second = batches.train_indices(SEED, 1, 1, BATCH, NUM_IMAGES)[0][0]

    def read(indices):
        if np.array_equal(indices, second):
            failed.set()
            raise OSError
        return images_of(indices)

    made = feed(read)
    made.get(0, 1)
    assert failed.wait(10)
    made.get(7, 1)
    made.get(8, 1)


def threads_of_feeds():
    return [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


def test_closing_ends_the_threads(reads, feed):
    made = feed(reads["array"])
    made.get(0, 1)
    assert threads_of_feeds()
    made.close()
    until(lambda: not threads_of_feeds())
    with pytest.raises(RuntimeError, match="after shutdown"):
        made.get(1, 1)


@pytest.mark.parametrize("count", [1, 64])
def test_closing_does_not_wait_for_a_read_that_hangs(monkeypatch, feed, count):
    """Nor do those begin that have not."""
    monkeypatch.setattr(feeds, "_CLOSE_SECONDS", 0.01)
    hanging, let_go, reading = threading.Event(), threading.Event(), []

    def read(indices):
        reading.append(True)
        hanging.set()
        let_go.wait(60)
        raise OSError

    made = feed(read)

    def interrupted(future):
        assert hanging.wait(10)
        raise KeyboardInterrupt  # as of a signal, while `get` waits

    monkeypatch.setattr(feeds.Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made.get(0, count)
    monkeypatch.undo()
    start = time.monotonic()
    made.close()
    assert time.monotonic() - start < 5
    assert threads_of_feeds()
    let_go.set()
    until(lambda: not threads_of_feeds())
    assert len(reading) <= 2  # no more than the threads had begun


@pytest.mark.parametrize(("needed", "free", "expected"), [(100, 150, "device"), (100, 149, "host")])
def test_auto_keeps_images_on_the_device_where_they_fit(needed, free, expected):
    assert feeds.choose("auto", needed, free) == expected
    other = "device" if expected == "device" else "stream"
    assert feeds.choose("auto", needed, free, otherwise="stream") == other
    for placement in ("device", "host", "stream"):
        assert feeds.choose(placement, needed, free) == placement


MIB = 2**20


class FakeDevice:
    def __init__(self, platform, limit=0, used=0):
        self.platform, self._stats = platform, {"bytes_limit": limit, "bytes_in_use": used}

    def memory_stats(self):
        return self._stats


def test_free_memory_is_that_of_the_fullest_device_or_a_share_of_the_host(monkeypatch):
    gpus = [FakeDevice("gpu", 100 * MIB, 30 * MIB), FakeDevice("gpu", 100 * MIB, 60 * MIB)]
    assert feeds.free_mib(gpus) == 40
    assert feeds.free_mib(jax.devices("cpu")) > 0
    monkeypatch.setattr(feeds, "free_mib_of_host", lambda: 1000)
    assert feeds.free_mib([FakeDevice("cpu")] * 4) == 250
