"""Several networks in one program beside one network, in one process.

    python -m benchmarks.members --networks 4 16

The tutorial's training step as `main.py` has it, with the images on the device: one network and N
of them take turns, and a ratio is N networks' images/s, in all, over one's, as the median over the
rounds. 1.0: N networks take as long as N runs one after the other.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from benchmarks import report
from cifar_jax.devices import runtime

STEPS = 10  # in one program, where it is not a CPU's


class Networks(NamedTuple):
    """Some networks in one compiled call, ready to run."""

    number: int
    images: int  # of a call, of all networks
    call: Callable[[], None]  # waits for its end


def networks(count: int, batch: int, dtype: str) -> Networks:
    """Compiles them, as `train` does."""
    import jax

    from benchmarks import jax_cnn
    from cifar_jax import config as config_lib
    from cifar_jax.devices import replicas
    from cifar_jax.loop import run as run_lib
    from cifar_jax.loop import training
    from cifar_jax.loop.calls import compile_steps
    from cifar_jax.steps import Detail, members

    config = jax_cnn.program_config(batch_size=batch, dtype=dtype, num_seeds=count)
    config = config_lib.resolve(config)
    configs = config_lib.members(config)
    run = training.prepare(configs[0])
    step: Any = run.step
    state = run.state
    if count > 1:
        states = [training.first_state(run.step, run.data, own.seed) for own in configs]
        state = members.stack(states)
        step = partial(members.train_step, single=run.step, configs=configs, mesh=run.mesh)
    feed, dataset = run_lib.make_feed(config, run.data, run.mesh)
    steps = 1 if jax.default_backend() == "cpu" else STEPS
    held = [replicas.replicate(state, run.mesh)]
    batches, request = feed.get(0, steps), replicas.request(0, run.mesh)
    program = compile_steps(step, Detail.NONE, run.mesh, held[0], batches, dataset)

    def call() -> None:
        held[0] = jax.block_until_ready(program(held[0], batches, dataset, request)[0])

    call()
    return Networks(count, count * batch * steps, call)


def measure(
    count: int, batch: int = 128, dtype: str = "float32", rounds: int = 9, seconds: float = 1.0
) -> dict[str, Any]:
    """Images/s of one network and, in all, of `count`, and the ratio."""
    one, many = networks(1, batch, dtype), networks(count, batch, dtype)
    speeds: dict[int, list[float]] = {one.number: [], many.number: []}
    for _ in range(rounds):
        for each in (one, many):
            start, calls = time.perf_counter(), 0
            while (taken := time.perf_counter() - start) < seconds:
                each.call()
                calls += 1
            speeds[each.number].append(calls * each.images / taken)
    ratios = [many / one for one, many in zip(*speeds.values(), strict=True)]
    return {
        "one_images_per_second": statistics.median(speeds[1]),
        "all_images_per_second": statistics.median(speeds[count]),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def main(argv: Sequence[str]) -> int:
    parser = report.parser("members", __doc__)
    parser.add_argument("--networks", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args(argv)
    runtime.start()
    figures = {}
    for count in args.networks:
        found = measure(count, args.batch, args.dtype, args.rounds)
        figures[str(count)] = found
        print(
            f"{count} networks: {found['all_images_per_second']:,.0f} images/s in all, one "
            f"{found['one_images_per_second']:,.0f}: ratio {found['ratio']:.2f} "
            f"({found['lowest']:.2f} to {found['highest']:.2f})",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
