"""One measurement on one GPU, in a process of its own. Started by `python -m benchmarks.gpu`.

A process of its own, because the peak of the memory is that of a process, and because one that
runs out of memory takes nothing else with it. By hand:

    python -m benchmarks.gpu_case speed '{"dtype": "float32", "precision": "highest", "batch": 128}'

prints one line of JSON, its last.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from cifar_jax.devices import runtime

BLOCKS, BLOCK_SECONDS = 5, 1.0


def device() -> dict[str, Any]:
    """What JAX runs on by default here."""
    import jax

    first = jax.devices()[0]
    return {"platform": first.platform, "name": first.device_kind, "devices": jax.device_count()}


def torch(dtype: str, precision: str | None, batch: int, compile: bool) -> dict[str, Any]:
    """Images/s of PyTorch at its fastest on the tutorial's network."""
    from benchmarks import task, torch_gpu

    train, evaluate = torch_gpu.steps(dtype, precision, batch, compile)
    unit = task.NUM_BATCHES
    return {
        "train_images_per_second": batch / _seconds(train, unit),
        "eval_images_per_second": batch / _seconds(evaluate, unit),
    }


def trainings(
    recipe: str, data: str | None, seeds: int, precision: str | None, **fields: object
) -> dict[str, Any]:
    """Whole trainings of a recipe, compilation outside the clock."""
    import jax

    from benchmarks import whole_training

    jax.config.update("jax_default_matmul_precision", precision)
    found = whole_training.measure(recipe, data, seeds, **fields)
    return {"trainings": [each._asdict() | {"seconds": each.seconds} for each in found]}


def published(script: str, data: str | None, seeds: int, mode: str) -> dict[str, Any]:
    """airbench94_muon.py as published, but for the number of its runs, on the same images."""
    from benchmarks import published_airbench

    return {"trainings": published_airbench.measure(script, data, seeds, mode)}


def members(count: int, batch: int) -> dict[str, Any]:
    """Several networks in one program beside one."""
    from benchmarks import members

    return members.measure(count, batch)


def matmul(dtype: str, precision: str | None, size: int = 8192) -> dict[str, Any]:
    """The card's own rate: a chain of square matrix products."""
    import jax
    import jax.numpy as jnp

    matrix = jnp.full((size, size), 1 / size, dtype)  # its powers stay what it is

    @jax.jit
    def chain(x):
        for _ in range(10):
            x = jnp.matmul(x, matrix, precision=precision)
        return x

    seconds = _seconds(lambda count: _repeat(chain, matrix, count))
    return {"tflops": 10 * 2 * size**3 / seconds / 1e12}


def _repeat(function: Callable, argument: Any, count: int) -> None:
    for _ in range(count):
        argument = function(argument)
    argument.block_until_ready()


def speed(
    dtype: str, precision: str | None, batch: int, steps_per_call: int = 0, num_images: int = 12_000
) -> dict[str, Any]:
    """Images/s of training and evaluation as `main.py` has them, and the peak of the memory."""
    import jax

    from benchmarks import jax_cnn

    jax.config.update("jax_default_matmul_precision", precision)
    fields = {"batch_size": batch, "dtype": dtype, "steps_per_call": steps_per_call}
    config = jax_cnn.program_config(**fields, **{"data.synthetic.train": max(num_images, batch)})
    program = jax_cnn.ProgramStep(config)
    train = _seconds(program.train, unit=program.steps_per_call)
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "train_images_per_second": batch / train,
        "eval_images_per_second": batch / _seconds(program.evaluate),
        "peak_bytes": memory.get("peak_bytes_in_use"),
    }


def _seconds(run: Callable[[int], object], unit: int = 1) -> float:
    """Of one step of `run(steps)`: the median over blocks of about `BLOCK_SECONDS`."""
    run(unit)  # compiles, where that has not been done
    count = unit
    while (taken := _clock(run, count)) < BLOCK_SECONDS / 4:
        count *= 2
    count = max(1, round(count * BLOCK_SECONDS / taken / unit)) * unit
    return statistics.median(_clock(run, count) / count for _ in range(BLOCKS))


def _clock(run: Callable[[int], object], count: int) -> float:
    start = time.perf_counter()
    run(count)
    return time.perf_counter() - start


MEASUREMENTS: dict[str, Callable[..., dict[str, Any]]] = {
    "device": device,
    "matmul": matmul,
    "members": members,
    "published": published,
    "torch": torch,
    "trainings": trainings,
    "speed": speed,
}


if __name__ == "__main__":
    runtime.start()
    print(json.dumps(MEASUREMENTS[sys.argv[1]](**json.loads(sys.argv[2]))))
