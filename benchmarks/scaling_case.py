"""How long steps take on 1, 2, 4, … devices: of one process, or of several that run this together.

Run by `python -m benchmarks.scaling`, which reads the line of JSON that process 0 prints. Times are
the medians of blocks in which all cases take turns; "128" is the global batch:

    {"platform": "cpu", "device_kind": "cpu", "devices": 8,
     "step": {"1/128": 0.05, "2/128": 0.05, …}, "all_reduce": {"1": 0.0001, …}}
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from cifar_jax.devices import runtime

runtime.start()

import jax  # noqa: E402  (after the runtime)
import numpy as np  # noqa: E402
from jax import lax  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from benchmarks import jax_cnn  # noqa: E402
from cifar_jax import models  # noqa: E402
from cifar_jax.devices import cluster, replicas  # noqa: E402

Run = Callable[[int], int]  # so many steps or a few more, and waits for the last; how many


def counts() -> Iterator[int]:
    """1, 2, 4, … devices, as many of each process."""
    count = jax.process_count()
    while count <= jax.device_count():
        yield count
        count *= 2


def cases(batch: int, shares: int) -> list[tuple[int, int]]:
    """(devices, global batch): the same global batch, the same for each device, and on one device
    the shares of 1/2, 1/4, … down to 1/`shares` of the batch."""
    found = [(count, size) for count in counts() for size in (batch, batch * count)]
    if 1 in counts():
        most = max(shares, *counts())
        found += [(1, batch // share) for share in (2**n for n in range(1, most.bit_length()))]
    return list(dict.fromkeys(found))


def make_step(count: int, batch: int) -> Run:
    config = jax_cnn.program_config(
        **{"num_devices": count, "batch_size": batch, "data.synthetic.train": max(batch, 2_048)}
    )
    return jax_cnn.ProgramStep(config).train


def make_all_reduce(count: int) -> Run:
    """The average over the devices of something that is as large as the gradients."""
    mesh = replicas.make_mesh(count)
    model = models.create("cnn", 10, "float32")
    params = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 24, 24, 3), np.float32))
    gradients = jax.tree.map(lambda leaf: np.ones((count, *leaf.shape), leaf.dtype), params)
    gradients = replicas.put(gradients, NamedSharding(mesh, P(replicas.AXIS)))
    compiled = replicas.data_parallel(
        lambda tree: lax.pmean(tree, replicas.AXIS), mesh, sharded={0: 0}
    )

    def run(steps: int) -> int:
        for _ in range(steps):
            result = compiled(gradients)
        jax.block_until_ready(result)
        return steps

    return run


def timed(run: Run, steps: int) -> float:
    """Seconds of a step, the slowest process's."""
    start = time.perf_counter()
    done = run(steps)
    return float(replicas.gather(time.perf_counter() - start).max()) / done


def medians(runs: dict[Any, Run], blocks: int, seconds: float) -> dict[Any, float]:
    for run in runs.values():  # compiles, and warms up
        run(2)
    # The same number of steps on all processes, which `timed` sees to.
    steps = {key: max(1, round(seconds / timed(run, 2))) for key, run in runs.items()}
    found: dict[Any, list[float]] = {key: [] for key in runs}
    for _ in range(blocks):
        for key, run in runs.items():
            found[key].append(timed(run, steps[key]))
    return {key: statistics.median(values) for key, values in found.items()}


def measure(batch: int, shares: int, blocks: int, seconds: float) -> dict[str, Any]:
    runs: dict[Any, Run] = {f"{n}/{size}": make_step(n, size) for n, size in cases(batch, shares)}
    runs |= {count: make_all_reduce(count) for count in counts()}
    found = medians(runs, blocks, seconds)
    return {
        "platform": jax.devices()[0].platform,
        "device_kind": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "step": {key: value for key, value in found.items() if isinstance(key, str)},
        "all_reduce": {str(count): found[count] for count in counts()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--shares", type=int, default=1)
    parser.add_argument("--blocks", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="of a block")
    parser.add_argument("--coordinator", default="")  # these three as for main.py
    parser.add_argument("--num_processes", type=int, default=-1)
    parser.add_argument("--process_id", type=int, default=-1)
    args = parser.parse_args()
    config = jax_cnn.program_config()
    with cluster.joined(config, args.coordinator, args.num_processes, args.process_id):
        print(json.dumps(measure(args.batch, args.shares, args.blocks, args.seconds)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
