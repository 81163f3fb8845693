"""How many images a second the host's feeds give, with nothing else to do.

    python -m benchmarks.input [--json FILE]

Batches of 128 random images of 32x32 pixels, shuffled over the whole set, are taken one after
another and sent to the device as fast as they come: `host` gathers them from memory, `stream` reads
them from ArrayRecord shards (which the system's file cache holds, as it would after an epoch, so
that the disk is not measured). A call takes 1 batch, as training on a CPU does, or 100, as on GPUs.
The feeds take turns in blocks of half a second, and a figure is the median over the blocks.
"""

import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.worker import Clock
from cifar_jax.devices import runtime

runtime.start()

import jax  # noqa: E402  (after the runtime)
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from cifar_jax.data import feeds, shards  # noqa: E402
from cifar_jax.data.dataset import Split  # noqa: E402
from cifar_jax.devices import replicas  # noqa: E402

BATCH, NUM_IMAGES, NUM_SHARDS = 128, 20_000, 8
DEPTH, THREADS = 16, 16  # as configs/default.py has them
COUNTS = (1, 100)  # steps a call: as on a CPU, and as on a GPU
GOALS = {"host": 50_000, "stream": 20_000}  # images/s, on two cores
BLOCKS, BLOCK_SECONDS = 7, 0.5


class Block(NamedTuple):
    images_per_second: float
    occupancy: float  # of the prefetch: mean fraction of its calls that were ready
    others: float  # share of the machine's CPU time that other processes took


class Contender:
    """A feed that is emptied as fast as it fills, `count` steps at a time."""

    def __init__(self, read: feeds.Read, count: int):
        sharding = NamedSharding(replicas.make_mesh(1), P(None, replicas.AXIS))
        self._feed = feeds.HostFeed(read, NUM_IMAGES, BATCH, 0, sharding, DEPTH, THREADS)
        self._step, self._count = 0, count
        self.close = self._feed.close

    def _take(self) -> None:
        jax.block_until_ready(self._feed.get(self._step, self._count))
        self._step += self._count

    def block(self, seconds: float) -> Block:
        for _ in range(max(2, DEPTH // self._count)):  # what it held ready before its turn
            self._take()
        first, occupancies = self._step, []
        with Clock() as clock:
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                self._take()
                occupancies.append(self._feed.occupancy)
        images = BATCH * (self._step - first)
        return Block(images / clock.block.seconds, statistics.mean(occupancies), clock.block.others)


def measure(folder: Path, num_blocks: int, seconds: float) -> dict[str, Block]:
    """The medians of each feed's blocks; its shards go to `folder`."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_IMAGES, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, NUM_IMAGES, np.int32)
    split = Split(images, labels, tuple(map(str, range(10))))
    shards.write(folder, "train", split, NUM_SHARDS)
    reads = {
        "host": split.read,
        "stream": shards.open(folder, "train").read,
    }
    blocks: dict[str, list[Block]] = {}
    with contextlib.ExitStack() as stack:
        contenders = {
            f"{name}/{count}": stack.enter_context(contextlib.closing(Contender(read, count)))
            for count in COUNTS
            for name, read in reads.items()
        }
        for _ in range(num_blocks):
            for name, contender in contenders.items():
                blocks.setdefault(name, []).append(contender.block(seconds))
    return {
        name: Block(*map(statistics.median, zip(*found, strict=True)))
        for name, found in blocks.items()
    }


def table(found: dict[str, Block]) -> Table:
    result = Table(title=f"Input alone, batch {BATCH}", box=box.SIMPLE_HEAD)
    result.add_column("placement/steps a call")
    for heading in ("images/s", "goal", "occupancy", "CPU of others"):
        result.add_column(heading, justify="right", no_wrap=True)
    for name, block in found.items():
        goal = f"{GOALS[name.partition('/')[0]]:,}"
        rate, shares = f"{block.images_per_second:,.0f}", (block.occupancy, block.others)
        result.add_row(name, rate, goal, *(f"{share:.0%}" for share in shares))
    return result


def main(argv: Sequence[str]) -> int:
    args = report.parser("input", __doc__).parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), BLOCKS, BLOCK_SECONDS)
    console = Console()
    device = jax.devices()[0]
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    console.print(f"{device.device_kind}, {cores} cores, load {load:.1f}", highlight=False)
    console.print(table(found))
    if args.json:
        figures = {
            "cores": cores,
            "device": device.device_kind,
            "input": {name: block._asdict() for name, block in found.items()},
        }
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
