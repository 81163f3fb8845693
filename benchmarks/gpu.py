"""What one GPU makes of this project: speeds, memory, and the tutorial's whole run.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --data ~/cifar --json figures.json

Needs what the project itself needs, with JAX for the GPU, and no network: speeds are measured on
the built-in dataset. The two whole runs, of configs/default.py and configs/fast.py, need CIFAR-10
in its folder (`--data`, else the usual one) and are left out where it is not. Without a GPU it says
so and ends.

Every figure has a process of its own, one after the other, with compilation and warm-up outside the
clock; a speed is the median of five blocks of a second. "highest" is float32 throughout, and
"tensorfloat32" lets matrix units round the factors to ten bits, which is JAX's default there.
"""

import datetime
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.worker import ROOT

ARITHMETIC = (("float32", "highest"), ("float32", "tensorfloat32"), ("bfloat16", None))
BATCHES = (128, 1_024, 8_192)
STEPS_PER_CALL = (1, 10, 100)  # at batch 128, in JAX's default arithmetic
DEFAULT_STEPS = 10  # what main.py comes to, with scalars at every tenth step
RUNS = {"tutorial": "default", "fast": "fast"}
_LINE = re.compile(r"^(\S+ \S+): step 0, loss")
_PRECISION = re.compile(r"precision @ 1 = (\S+)")

Ask = Callable[..., dict[str, Any]]


class Failed(Exception):
    """A measurement ended without a result; the end of what it wrote to standard error."""


def ask(measurement: str, **options: object) -> dict[str, Any]:
    """One measurement of `gpu_case.py`, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gpu_case", measurement, json.dumps(options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise Failed(done.stderr.strip()[-500:])
    return json.loads(done.stdout.splitlines()[-1])


def training_flops(size: int = 24) -> float:
    """Multiplications and additions of the convolutions and dense layers, of one training image.

    Each is done three times, forward and for the two gradients, but for that of the pictures.
    """
    conv1 = 2 * size**2 * 5 * 5 * 3 * 64
    conv2 = 2 * (size // 2) ** 2 * 5 * 5 * 64 * 64
    dense = 2 * ((size // 4) ** 2 * 64 * 384 + 384 * 192 + 192 * 10)
    return 2 * conv1 + 3 * (conv2 + dense)


def matmul_rates(ask: Ask) -> dict[str, float]:
    """TFLOP/s of the card by arithmetic."""
    return {
        _name(dtype, precision): ask("matmul", dtype=dtype, precision=precision)["tflops"]
        for dtype, precision in ARITHMETIC
    }


def speeds(ask: Ask, rates: dict[str, float], say: Callable[[str], object]) -> dict[str, Any]:
    """Speed, memory and share of the card's rate for each arithmetic and batch size."""
    result: dict[str, Any] = {}
    for dtype, precision in ARITHMETIC:
        for batch in BATCHES:
            name = f"{_name(dtype, precision)}/{batch}"
            say(f"Measuring {name}")
            try:
                options = {"dtype": dtype, "precision": precision, "batch": batch}
                figures = ask("speed", **options, steps_per_call=DEFAULT_STEPS)
            except Failed as error:  # out of memory, say: the others are still worth having
                result[name] = {"error": str(error)}
                continue
            rate = figures["train_images_per_second"] * training_flops() / 1e12
            result[name] = {**figures, "matmul_share": rate / rates[_name(dtype, precision)]}
    return result


def steps_per_call(ask: Ask) -> dict[str, float]:
    """Images/s of training by the number of steps in one program."""
    return {
        str(count): ask("speed", dtype="float32", precision=None, batch=128, steps_per_call=count)[
            "train_images_per_second"
        ]
        for count in STEPS_PER_CALL
    }


def _name(dtype: str, precision: str | None) -> str:
    return f"{dtype}, {precision}" if precision else dtype


# -- whole runs ----------------------------------------------------------------------------------


class Run(NamedTuple):
    seconds: float  # from start to end of the process
    after_compilation: float  # from the first line of the log to the end
    precision_at_1: float


def whole_run(config: str, data: Path | None, *flags: str) -> Run:
    """`main.py` with the config's own number of steps, then its evaluation."""
    with tempfile.TemporaryDirectory() as workdir:
        where = [f"--workdir={workdir}", *([f"--config.data.dir={data}"] if data else []), *flags]
        start = time.time()
        lines = _main([f"--config=configs/{config}.py", *where])
        end = time.time()
        (first,) = filter(None, map(_LINE.match, lines))
        began = datetime.datetime.fromisoformat(first[1]).timestamp()
        (found,) = filter(None, map(_PRECISION.search, _main(["--mode=eval", "--once", *where])))
        return Run(end - start, end - began, float(found[1]))


def _main(flags: Sequence[str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "main.py", *flags], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise Failed(done.stderr.strip()[-500:])
    return done.stdout.splitlines()


# -- the command ---------------------------------------------------------------------------------


def tables(figures: dict[str, Any]) -> list[Table]:
    speed = Table(title="One step of main.py", box=box.SIMPLE_HEAD)
    for heading in ("arithmetic", "batch"):
        speed.add_column(heading, no_wrap=True)
    for heading in ("training images/s", "evaluation", "peak MiB", "of matmul rate"):
        speed.add_column(heading, justify="right", no_wrap=True)
    for name, found in figures["speed"].items():
        arithmetic, _, batch = name.rpartition("/")
        if "error" in found:
            speed.add_row(arithmetic, batch, "failed")
            continue
        speed.add_row(
            arithmetic,
            batch,
            f"{found['train_images_per_second']:,.0f}",
            f"{found['eval_images_per_second']:,.0f}",
            f"{(found['peak_bytes'] or 0) / 2**20:,.0f}",
            f"{found['matmul_share']:.1%}",
        )
    calls = Table(title="Steps in one program, batch 128", box=box.SIMPLE_HEAD)
    calls.add_column("steps")
    calls.add_column("training images/s", justify="right")
    for count, images_per_second in figures["steps_per_call"].items():
        calls.add_row(count, f"{images_per_second:,.0f}")
    runs = Table(title="Whole runs on CIFAR-10", box=box.SIMPLE_HEAD)
    for heading in ("run", "seconds", "after compilation", "precision @ 1"):
        runs.add_column(heading)
    for name, run in figures["runs"].items():
        cells = (f"{run['seconds']:.1f}", f"{run['after_compilation']:.1f}")
        runs.add_row(name, *cells, f"{run['precision_at_1']:.3f}")
    return [speed, calls, *([runs] if figures["runs"] else [])]


def measure(data: Path | None, gpu: dict[str, Any], say: Callable[[str], object]) -> dict[str, Any]:
    rates = matmul_rates(ask)
    figures = {
        "device": gpu,
        "versions": report.versions(),
        "matmul_tflops": rates,
        "speed": speeds(ask, rates, say),
        "steps_per_call": steps_per_call(ask),
        "runs": {},
    }
    for name, config in RUNS.items():
        say(f"Running configs/{config}.py")
        try:
            figures["runs"][name] = whole_run(config, data)._asdict()
        except Failed as error:
            say(f"Left out: {error}")
    return figures


def main(argv: Sequence[str]) -> int:
    parser = report.parser("gpu", __doc__)
    parser.add_argument("--data", type=Path, help="where CIFAR-10 is (config.data.dir)")
    args = parser.parse_args(argv)
    console = Console()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    gpu = ask("device")
    if gpu["platform"] != "gpu":
        say(f"No GPU: JAX runs on {gpu['platform']} here. Nothing was measured.")
        return 0
    figures = measure(args.data, gpu, say)
    say(f"{gpu['name']}, {figures['versions']}")
    say(f"Matrix products, TFLOP/s: {figures['matmul_tflops']}")
    for table in tables(figures):
        console.print(table)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
