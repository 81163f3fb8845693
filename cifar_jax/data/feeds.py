"""Feeds: what each step receives from the host, by where the images are stored.

`device`: the images are on the device, and the inputs are their indices. `host`: they are in the
host's memory. `stream`: they are in shards on disk. All three take them by `batches.train_indices`,
and so give the same batches, at any step, without a state to save.
"""

import collections
import functools
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding

from cifar_jax.data import batches
from cifar_jax.devices import replicas

PLACEMENTS = ("auto", "device", "host", "stream")
_ROOM = 1.5  # what must be free for each byte of images to keep them on the device: steps need some
_PART_IMAGES = 512  # that a thread reads at once: few are slow to read, many start late
_INDEX_IMAGES = 8_192  # whose places are drawn at once
_NAMES = ("image", "label", "index", "epoch")
_CLOSE_SECONDS = 1.0  # for threads in the middle of a read

Read = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # indices [n] to images and labels


class Feed(Protocol):
    """Gives the batches of some steps: "index" and "epoch" of each image, and, where the images are
    not on the device, "image" and "label"."""

    def get(self, step: int, count: int) -> dict[str, jax.Array]:
        """Of the `count` steps from `step` on; leading axes [count, global batch]."""

    def take_wait(self) -> float:
        """Seconds for which `get` kept its callers waiting since this was last asked."""

    @property
    def occupancy(self) -> float:
        """The prefetch occupancy: the fraction of the prefetched calls that are ready, 0 to 1."""

    def close(self) -> None:
        """Stops the threads that prefetch."""


def choose(placement: str, needed: float, free: float, otherwise: str = "host") -> str:
    """Resolves 'auto': 'device' where the images fit with half as much again, else `otherwise`.

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
    """MiB of memory that the host has available, the file cache included."""
    try:  # Free memory and the file cache, which is as good.
        lines = Path("/proc/meminfo").read_text().splitlines()
        (available,) = (line for line in lines if line.startswith("MemAvailable:"))
        return int(available.split()[1]) // 1024
    except (OSError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20


class DeviceFeed:
    """For images on the device: their index and epoch, int32 [count, global batch] each."""

    occupancy = 1.0

    def __init__(self, num_images: int, batch_size: int, seed: int, sharding: NamedSharding):
        self._num_images, self._batch_size, self._seed = num_images, batch_size, seed
        self._sharding, self._waited = sharding, 0.0

    def get(self, step: int, count: int) -> dict[str, jax.Array]:
        start = time.monotonic()
        index, epoch = self._draw(step, count)
        self._waited += time.monotonic() - start
        return replicas.put({"index": index, "epoch": epoch}, self._sharding)

    def _draw(self, step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        return self._draw_by(self._seed, step, count)

    def _draw_by(self, seed: int, step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        return batches.train_indices(seed, step, count, self._batch_size, self._num_images)

    def take_wait(self) -> float:
        waited, self._waited = self._waited, 0.0
        return waited

    def close(self) -> None:
        pass


class MembersFeed(DeviceFeed):
    """For several networks that train together, each with the order of its seed: int32
    [count, networks, global batch]."""

    def __init__(
        self, num_images: int, batch_size: int, seeds: Sequence[int], sharding: NamedSharding
    ):
        super().__init__(num_images, batch_size, seeds[0], sharding)
        self._seeds = seeds

    def _draw(self, step: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        each = [self._draw_by(seed, step, count) for seed in self._seeds]
        index, epoch = zip(*each, strict=True)
        return np.stack(index, 1), np.stack(epoch, 1)


class _Call(NamedTuple):
    """The inputs of one `get`, which a pool is about to read."""

    steps: range
    parts: list[Future]  # that are read beside the last one; taken out as they are put together
    inputs: Future

    def cancel(self) -> None:
        for future in (*self.parts, self.inputs):
            future.cancel()


class HostFeed:
    """Images uint8 [count, global batch, H, W, C], and labels, indices and epochs int32 [count,
    global batch], on the devices of `sharding`, which splits the second axis.

    A pool of threads reads the inputs of the next calls and sends them to the devices, while these
    compute. The next calls are taken to go on where the last one ended, with as many steps; where
    one does not, it is read when it is asked for. `get` raises what a thread failed with. The
    feed itself is for one thread.
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
        self._drawn = _drawn(num_images, batch_size, seed, _local_columns(sharding, batch_size))
        self._calls: collections.deque[_Call] = collections.deque()  # the next ones, in order
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="feed")
        self._waited = 0.0

    def get(self, step: int, count: int) -> dict[str, jax.Array]:
        if not self._calls or self._calls[0].steps != range(step, step + count):
            self._drop()
            self._plan(step, count)
        start = time.monotonic()
        try:
            inputs = self._calls[0].inputs.result()
        except BaseException:
            self._drop()  # so that the next call tries again
            raise
        finally:
            self._waited += time.monotonic() - start
        self._calls.popleft()
        self._plan(self._calls[-1].steps.stop, count)
        return dict(zip(_NAMES, inputs, strict=True))

    def take_wait(self) -> float:
        waited, self._waited = self._waited, 0.0
        return waited

    @property
    def occupancy(self) -> float:
        return sum(call.inputs.done() for call in self._calls) / max(1, len(self._calls))

    def close(self) -> None:
        """Ends the threads; one that is in the middle of a read is not waited for long. (Where one
        hangs for good, Python itself waits for it at the end of the process, unless by os._exit.)
        """
        running = [call.inputs for call in self._calls if call.inputs.running()]
        self._drop()
        self._pool.shutdown(wait=False, cancel_futures=True)
        futures.wait(running, _CLOSE_SECONDS)

    def _plan(self, step: int, count: int) -> None:
        """Appends calls from `step` on until as many are planned as are to be held.

        The pool begins its jobs in their order. So when a call's last part is read, all others of
        it are under way, and to wait for them there is no deadlock, however few the threads are.
        """
        while len(self._calls) < max(2, math.ceil(self._depth / count)):
            steps = range(step, step + count)
            *early, last = steps[:: self._steps]
            parts = [self._pool.submit(self._read_part, first, self._steps) for first in early]
            inputs = self._pool.submit(self._finish, parts, last, steps.stop - last)
            self._calls.append(_Call(steps, parts, inputs))
            step += count

    def _drop(self) -> None:
        for call in self._calls:
            call.cancel()
        self._calls.clear()

    def _read_part(self, step: int, count: int) -> tuple[np.ndarray, ...]:
        index, epoch = map(np.stack, zip(*map(self._drawn, range(step, step + count)), strict=True))
        images, labels = self._read(index.ravel())
        shape = index.shape
        return images.reshape(*shape, *images.shape[1:]), labels.reshape(shape), index, epoch

    def _finish(self, parts: list[Future], step: int, count: int) -> tuple[jax.Array, ...]:
        """Reads the last part of a call, and puts it on the devices together with the others."""
        last = self._read_part(step, count)
        read = [parts.pop(0).result() for _ in range(len(parts))]
        if not read:
            return self._put(last)
        return self._put(tuple(map(np.concatenate, zip(*read, last, strict=True))))

    def _put(self, arrays: tuple[np.ndarray, ...]) -> tuple[jax.Array, ...]:
        """Starts the copies to the devices; memory is new each time, so nothing waits for them."""
        if self._sharding.is_fully_addressable:  # by one process, and so the quicker way
            return jax.device_put(arrays, self._sharding)

        def put(array: np.ndarray) -> jax.Array:
            shape = (len(array), self._batch_size, *array.shape[2:])
            return jax.make_array_from_process_local_data(self._sharding, array, shape)

        return tuple(map(put, arrays))


def _drawn(
    num_images: int, batch_size: int, seed: int, columns: slice
) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """A function that gives those `columns` of a step's `train_indices`: index and epoch, int32
    [its batch].

    Drawn for many steps at once: for one by itself they cost more than the reading.
    """
    steps = max(1, _INDEX_IMAGES // batch_size)

    @functools.lru_cache(maxsize=4)
    def block(number: int) -> tuple[np.ndarray, np.ndarray]:
        return batches.train_indices(seed, number * steps, steps, batch_size, num_images)

    def of_step(step: int) -> tuple[np.ndarray, np.ndarray]:
        index, epoch = block(step // steps)
        return index[step % steps, columns], epoch[step % steps, columns]

    return of_step


def _local_columns(sharding: NamedSharding, batch_size: int) -> slice:
    """The part of a global batch that the devices of this process take."""
    slices = sharding.addressable_devices_indices_map((1, batch_size)).values()
    bounds = [which[1].indices(batch_size)[:2] for which in slices if which]
    return slice(min(start for start, _ in bounds), max(end for _, end in bounds))
