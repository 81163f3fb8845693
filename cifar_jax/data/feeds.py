"""How the batches of the coming steps get to the device, by where the images are.

`device`: the images are on the device, and only their indices travel. `host`: they are in the
host's memory. `stream`: they are in shards on disk. All three take them by `batches.train_indices`,
and so give the same batches, at any step, without a state to save.
"""

import collections
import functools
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding

from cifar_jax.data import batches
from cifar_jax.devices import replicas

PLACEMENTS = ("auto", "device", "host", "stream")
_ROOM = 1.5  # what must be free for each byte of images to keep them on the device: steps need some
_PART_IMAGES = 512  # that a thread reads at once: few are slow to read, many start late
_INDEX_IMAGES = 8_192  # whose places are drawn at once
_CLOSE_SECONDS = 1.0  # for threads in the middle of a read

Read = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # indices [n] to images and labels


class Feed(Protocol):
    """What travels to the device for some steps."""

    def get(self, step: int, count: int) -> tuple[Any, ...]:
        """For the `count` steps from `step` on; leading axes [count, global batch]."""

    def take_wait(self) -> float:
        """Seconds for which `get` kept its callers waiting since this was last asked."""

    @property
    def fill(self) -> float:
        """The share of the prefetched calls that are ready, 0 to 1."""

    def close(self) -> None:
        """Ends what runs beside the steps."""


def choose(placement: str, needed: float, free: float, otherwise: str = "host") -> str:
    """Settles 'auto': 'device' where the images fit with half as much again, else `otherwise`.

    `needed` and `free` are of one unit.
    """
    if placement != "auto":
        return placement
    return "device" if _ROOM * needed <= free else otherwise


def free_mib(devices: Sequence[jax.Device]) -> int:
    """MiB that each of the devices has free, at least; CPU devices share what the host has."""
    stats = [device.memory_stats() for device in devices if device.platform != "cpu"]
    known = [each["bytes_limit"] - each["bytes_in_use"] for each in stats if each]
    if known:
        return min(known) // 2**20
    return free_mib_of_host() // len(devices)


def free_mib_of_host() -> int:
    try:  # What is free and what files were read into, which is as good.
        lines = Path("/proc/meminfo").read_text().splitlines()
        (available,) = (line for line in lines if line.startswith("MemAvailable:"))
        return int(available.split()[1]) // 1024
    except (OSError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20


def gather(images: np.ndarray, labels: np.ndarray) -> Read:
    """Reads from arrays in memory, or from a np.memmap: uint8 [N, H, W, C] and int32 [N]."""
    return lambda indices: (np.take(images, indices, axis=0), np.take(labels, indices))


class DeviceFeed:
    """For images on the device: the indices, int32 [count, global batch]."""

    fill = 1.0

    def __init__(self, num_images: int, batch_size: int, seed: int, sharding: NamedSharding):
        self._num_images, self._batch_size, self._seed = num_images, batch_size, seed
        self._sharding, self._waited = sharding, 0.0

    def get(self, step: int, count: int) -> tuple[jax.Array]:
        start = time.monotonic()
        index = batches.train_indices(self._seed, step, count, self._batch_size, self._num_images)
        self._waited += time.monotonic() - start
        return (replicas.put(index, self._sharding),)

    def take_wait(self) -> float:
        waited, self._waited = self._waited, 0.0
        return waited

    def close(self) -> None:
        pass


class _Call:
    """The batches of one `get`, read in parts of some steps each."""

    def __init__(self, step: int, count: int, num_parts: int):
        self.step, self.count = step, count
        self.parts: list[tuple[np.ndarray, np.ndarray] | None] = [None] * num_parts
        self.untaken, self.unread = num_parts, num_parts
        self.arrays: tuple[jax.Array, jax.Array] | None = None
        self.error: BaseException | None = None


class HostFeed:
    """Images uint8 [count, global batch, H, W, C] and labels int32 [count, global batch], on the
    devices of `sharding`, which splits the second axis.

    Threads read the batches of the next calls and send them to the devices, while these compute.
    The next calls are taken to go on where the last one ended, with as many steps; where one does
    not, it is read when it is asked for. What a thread fails with, `get` raises.
    """

    def __init__(
        self,
        read: Read,
        num_images: int,
        batch_size: int,
        seed: int,
        sharding: NamedSharding,
        depth: int,
        threads: int,
    ):
        """`depth` batches are held in advance, and two calls in any case; `threads` read them."""
        self._read, self._sharding, self._depth = read, sharding, depth
        self._batch_size = batch_size
        self._steps = max(1, _PART_IMAGES // batch_size)  # of a part
        self._index = _indices(num_images, batch_size, seed, _local_columns(sharding, batch_size))
        self._calls: collections.deque[_Call] = collections.deque()  # the next ones, in order
        self._lock = threading.Lock()  # of what follows, of _calls and of what is in them
        self._to_read, self._done = threading.Condition(self._lock), threading.Condition(self._lock)
        self._closed, self._waited = False, 0.0
        self._threads = [
            threading.Thread(target=self._work, name=f"feed-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def get(self, step: int, count: int) -> tuple[jax.Array, jax.Array]:
        with self._lock:
            if not self._calls or (self._calls[0].step, self._calls[0].count) != (step, count):
                self._drop()
                self._plan(step, count)
            call, start = self._calls[0], time.monotonic()
            self._done.wait_for(lambda: self._closed or call.error or call.arrays)
            self._waited += time.monotonic() - start
            if self._closed:
                raise RuntimeError("The feed is closed.")
            if call.error:
                self._drop()  # so that the next call tries again
                raise call.error
            self._calls.popleft()
            last = self._calls[-1]
            self._plan(last.step + last.count, count)
        assert call.arrays
        return call.arrays

    def take_wait(self) -> float:
        waited, self._waited = self._waited, 0.0
        return waited

    @property
    def fill(self) -> float:
        with self._lock:
            ready = sum(call.arrays is not None for call in self._calls)
            return ready / max(1, len(self._calls))

    def close(self) -> None:
        """Ends the threads; one that is in the middle of a read is not waited for long."""
        with self._lock:
            self._closed = True
            self._drop()
            self._to_read.notify_all()
            self._done.notify_all()
        end = time.monotonic() + _CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _plan(self, step: int, count: int) -> None:
        """Appends calls from `step` on until as many are planned as are to be held."""
        while len(self._calls) < max(2, math.ceil(self._depth / count)):
            num_parts = math.ceil(count / self._steps)
            self._calls.append(_Call(step, count, num_parts))
            self._to_read.notify(num_parts)
            step += count

    def _drop(self) -> None:
        for call in self._calls:
            call.parts.clear()  # which tells the threads that are at it
        self._calls.clear()

    def _work(self) -> None:
        while job := self._next_job():
            call, part = job
            try:
                self._read_part(call, part)
            except BaseException as error:  # whatever it is, `get` must not wait for ever
                with self._lock:
                    call.error = error
                    self._done.notify_all()
            del job, call  # else held while this thread waits for the next

    def _next_job(self) -> tuple[_Call, int] | None:
        """Waits for a part to read, the earliest first; None where the feed is closed."""
        with self._lock:
            while not self._closed:
                for call in self._calls:
                    if call.untaken:
                        call.untaken -= 1
                        return call, len(call.parts) - call.untaken - 1
                self._to_read.wait()
        return None

    def _read_part(self, call: _Call, part: int) -> None:
        first = part * self._steps
        count = min(self._steps, call.count - first)
        index = np.stack([self._index(call.step + first + i) for i in range(count)])
        images, labels = self._read(index.ravel())
        with self._lock:
            if not call.parts:  # dropped in the meantime
                return
            shape = index.shape
            call.parts[part] = images.reshape(*shape, *images.shape[1:]), labels.reshape(shape)
            call.unread -= 1
            if call.unread:
                return
            parts, call.parts = call.parts, []
        arrays = self._put(parts)
        with self._lock:
            call.arrays = arrays
            self._done.notify_all()

    def _put(self, parts: list[Any]) -> tuple[jax.Array, jax.Array]:
        """Starts the copies to the devices; memory is new each time, so nothing waits for them."""
        images, labels = (
            each[0] if len(each) == 1 else np.concatenate(each) for each in zip(*parts, strict=True)
        )

        if self._sharding.is_fully_addressable:  # by one process, and so the quicker way
            return jax.device_put((images, labels), self._sharding)

        def put(array: np.ndarray) -> jax.Array:
            shape = (len(array), self._batch_size, *array.shape[2:])
            return jax.make_array_from_process_local_data(self._sharding, array, shape)

        return put(images), put(labels)


def _indices(
    num_images: int, batch_size: int, seed: int, columns: slice
) -> Callable[[int], np.ndarray]:
    """A function that gives those `columns` of a step's `train_indices`, int32 [its batch].

    Drawn for many steps at once: for one by itself they cost more than the gather.
    """
    steps = max(1, _INDEX_IMAGES // batch_size)

    @functools.lru_cache(maxsize=4)
    def block(number: int) -> np.ndarray:
        start = number * steps
        return batches.train_indices(seed, start, steps, batch_size, num_images)[:, columns]

    return lambda step: block(step // steps)[step % steps]


def _local_columns(sharding: NamedSharding, batch_size: int) -> slice:
    """The part of a global batch that the devices of this process take."""
    slices = sharding.addressable_devices_indices_map((1, batch_size)).values()
    bounds = [which[1].indices(batch_size)[:2] for which in slices if which]
    return slice(min(start for start, _ in bounds), max(end for _, end in bounds))
