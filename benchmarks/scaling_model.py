"""What a training step should take on n GPUs, as docs/scaling.md explains it.

    python -m benchmarks.scaling_model [--fixed_us=100] [--tflops=50] [--gigabytes=370]

prints the tables of that page, for a GPU with these rates. None of the defaults was measured here:
the two of a GPU's step are guesses of their magnitude; those of the all-reduce are NCCL's own, from
the table by which it chooses an algorithm on eight Hopper GPUs a node (its src/graph/tuning.cc,
protocol LL128).
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.gpu import training_flops

GRADIENT_BYTES = 4 * 1_068_298  # float32; tests/models/test_cnn.py counts the parameters
COUNTS = tuple(2**power for power in range(11))
PER_DEVICE, GLOBAL = (128, 1_024), (128, 8_192)  # batch sizes of the tables


class Machine(NamedTuple):
    fixed: float = 100e-6  # s of a step on one GPU, however small its batch
    flops: float = 50e12  # FLOP/s that its convolutions and products come to
    bandwidth: float = 370e9  # bytes/s that one GPU sends, in the node and between nodes
    gpus_per_node: int = 8
    base: float = 14e-6  # s of any all-reduce
    ring: tuple[float, float] = (1.9e-6, 4.0e-6)  # s of a hop: within the node, between nodes
    tree: tuple[float, float] = (1.25e-6, 8.5e-6)
    ring_share: float = 0.92  # of the bandwidth; the rest is flags
    tree_share: float = 0.72


def compute(batch: float, machine: Machine) -> float:
    """Seconds of a step on one GPU, with no other."""
    return machine.fixed + batch * training_flops() / machine.flops


def ring_all_reduce(count: int, machine: Machine, size: int = GRADIENT_BYTES) -> float:
    """Seconds: 2(n-1) hops, at each of which every GPU sends 1/n of the gradients."""
    if count == 1:
        return 0.0
    nodes = math.ceil(count / machine.gpus_per_node)
    hops = 2 * (count - nodes), 2 * (nodes - 1)
    sent = 2 * (count - 1) / count * size
    latency = sum(number * each for number, each in zip(hops, machine.ring, strict=True))
    return machine.base + latency + sent / (machine.ring_share * machine.bandwidth)


def tree_all_reduce(count: int, machine: Machine, size: int = GRADIENT_BYTES) -> float:
    """Seconds: along the node's GPUs and up a binary tree of nodes, and back."""
    if count == 1:
        return 0.0
    nodes = math.ceil(count / machine.gpus_per_node)
    hops = 2 * (math.ceil(count / nodes) - 1), 2 * math.ceil(math.log2(nodes))
    latency = sum(number * each for number, each in zip(hops, machine.tree, strict=True))
    return machine.base + latency + 2 * size / (machine.tree_share * machine.bandwidth)


def all_reduce(count: int, machine: Machine) -> float:
    """Seconds of the quicker one, which NCCL takes."""
    return min(ring_all_reduce(count, machine), tree_all_reduce(count, machine))


def step(count: int, global_batch: float, machine: Machine) -> float:
    """Seconds of a step on `count` GPUs, whose all-reduce begins when the gradients are there."""
    return compute(global_batch / count, machine) + all_reduce(count, machine)


def efficiency(count: int, global_batch: float, machine: Machine) -> float:
    """Images/s of a GPU among `count` that share a batch, over those of one GPU with its share."""
    return step(1, global_batch / count, machine) / step(count, global_batch, machine)


def speed_up(count: int, global_batch: float, machine: Machine) -> float:
    """How many times faster than one GPU `count` of them are done with the same batch."""
    return step(1, global_batch, machine) / step(count, global_batch, machine)


def markdown(machine: Machine) -> list[str]:
    """The lines of the table, one for each number of GPUs."""
    lines = [
        "| GPUs | ring, µs | tree, µs "
        + "".join(f"| {batch:,} per GPU: efficiency " for batch in PER_DEVICE)
        + "".join(f"| {batch:,} in all: speed-up " for batch in GLOBAL)
        + "|",
        "|--:" * (3 + len(PER_DEVICE) + len(GLOBAL)) + "|",
    ]
    for count in COUNTS:
        algorithms: list[Callable[..., float]] = [ring_all_reduce, tree_all_reduce]
        cells = [f"{count:,}", *(f"{1e6 * of(count, machine):,.0f}" for of in algorithms)]
        cells += [f"{efficiency(count, count * batch, machine):.2f}" for batch in PER_DEVICE]
        cells += [
            f"{speed_up(count, batch, machine):.2f}" if count <= batch else "" for batch in GLOBAL
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fixed_us", type=float, default=100.0, help="of a step on one GPU")
    parser.add_argument("--tflops", type=float, default=50.0, help="that a step comes to")
    parser.add_argument("--gigabytes", type=float, default=370.0, help="a second that a GPU sends")
    args = parser.parse_args(argv)
    for name, value in vars(args).items():
        if not value > 0:
            parser.error(f"--{name}={value:g}, expected more than 0")
    machine = Machine(1e-6 * args.fixed_us, 1e12 * args.tflops, 1e9 * args.gigabytes)
    print("\n".join(markdown(machine)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
