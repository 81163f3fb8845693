"""What one GPU makes of this project: speeds, memory, and the tutorial's whole run.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --data ~/cifar --json figures.json
    python -m benchmarks.gpu --parts trainings published --airbench ~/airbench94_muon.py

Needs what the project itself needs, with JAX for the GPU, and no network. Its parts, in this order:

- runs: `main.py` and its evaluation, from start to end, for some recipes;
- trainings: time to an accuracy as the records count it (`whole_training.py`);
- published: the same by airbench94_muon.py in PyTorch, where `--airbench` has that script;
- speed, steps_per_call: the tutorial's step by arithmetic, batch size and steps in one program;
- members: several networks in one program beside one (`members.py`);
- torch: PyTorch's step, where PyTorch is installed.

The first three need CIFAR-10 in its folder (`--data`, else the usual one). What fails is said and
left out. Without a GPU it says so and ends.

Every figure has a process of its own, one after the other, with compilation and warm-up outside the
clock; a speed is the median of five blocks of a second. "highest" is float32 throughout, and
"tensorfloat32" lets matrix units round the factors to ten bits, which is JAX's default there.
"""

import argparse
import datetime
import importlib.util
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
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
RUNS: dict[str, tuple[str, ...]] = {
    "tutorial": ("default",),
    "tutorial, summaries every 1,000 steps": (
        "default",
        "--config.summaries.scalars=1000",
        "--config.summaries.images=1000",
        "--config.summaries.histograms=1000",
        "--config.log_every_steps=1000",
    ),
    "fast": ("fast",),
    "airbench94": ("airbench94", "--config.dtype=bfloat16"),
}
PARTS = ("runs", "trainings", "published", "speed", "steps_per_call", "members", "torch")
NETWORKS = (16, 64)
TRAININGS = (  # the last one takes ten times as long
    ("airbench94", "bfloat16", None, 1.0),
    ("airbench94", "float32", "tensorfloat32", 1.0),
    ("speedrun", "bfloat16", None, 1.0),
    ("airbench96", "bfloat16", None, 0.1),
)
_LIMIT = 300.0  # seconds of a process
_LINE = re.compile(r"^(\S+ \S+): step 0, loss")
_PRECISION = re.compile(r"precision @ 1 = (\S+)")

Ask = Callable[..., dict[str, Any]]


class Failed(Exception):
    """A measurement ended without a result; the end of what it wrote to standard error."""


def ask(measurement: str, **options: object) -> dict[str, Any]:
    """One measurement of `gpu_case.py`, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gpu_case", measurement, json.dumps(options)]
    return json.loads(_lines(command)[-1])


def _lines(command: Sequence[str]) -> list[str]:
    """What a command wrote to standard output."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"not done after {_LIMIT:.0f} s") from error
    if done.returncode:
        raise Failed(done.stderr.strip()[-500:])
    return done.stdout.splitlines()


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


def speeds(ask: Ask) -> dict[str, Callable[[], dict[str, Any]]]:
    """Speed and memory for each arithmetic and batch size."""
    return {
        f"{_name(dtype, precision)}/{batch}": partial(
            ask,
            "speed",
            dtype=dtype,
            precision=precision,
            batch=batch,
            steps_per_call=DEFAULT_STEPS,
        )
        for dtype, precision in ARITHMETIC
        for batch in BATCHES
    }


def steps_per_call(ask: Ask) -> dict[str, Callable[[], dict[str, Any]]]:
    """The same by the number of steps in one program, in JAX's default arithmetic."""
    options = {"dtype": "float32", "precision": None, "batch": 128}
    return {
        str(count): partial(ask, "speed", **options, steps_per_call=count)
        for count in STEPS_PER_CALL
    }


def torch(ask: Ask) -> dict[str, Callable[[], dict[str, Any]]]:
    """PyTorch's step at the two smaller batch sizes, in the arithmetic that both offer."""
    return {
        f"{_name(dtype, precision)}/{batch}{', compiled' * compile}": partial(
            ask, "torch", dtype=dtype, precision=precision, batch=batch, compile=compile
        )
        for compile in (False, True)
        for batch in BATCHES[:2]
        for dtype, precision in ARITHMETIC[1:]
    }


def _name(dtype: str, precision: str | None) -> str:
    return f"{dtype}, {precision}" if precision else dtype


# -- whole runs ----------------------------------------------------------------------------------


class Run(NamedTuple):
    seconds: float  # from start to end of the process
    after_compilation: float  # from the first line of the log to the end
    precision_at_1: float


def whole_run(config: str, data: Path | None, *flags: str) -> dict[str, Any]:
    """`main.py` with the config's own number of steps, then its evaluation."""
    with tempfile.TemporaryDirectory() as workdir:
        where = [f"--workdir={workdir}", *([f"--config.data.dir={data}"] if data else []), *flags]
        start = time.time()
        lines = _main([f"--config=configs/{config}.py", *where])
        end = time.time()
        (first,) = filter(None, map(_LINE.match, lines))
        began = datetime.datetime.fromisoformat(first[1]).timestamp()
        (found,) = filter(None, map(_PRECISION.search, _main(["--mode=eval", "--once", *where])))
        return Run(end - start, end - began, float(found[1]))._asdict()


def _main(flags: Sequence[str]) -> list[str]:
    return _lines([sys.executable, "main.py", *flags])


def trainings(ask: Ask, data: Path | None, seeds: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """Recipes of the records with one seed after the other, each in one process."""
    where = str(data) if data else None
    return {
        f"{recipe}, {_name(dtype, precision)}": partial(
            ask,
            "trainings",
            recipe=recipe,
            data=where,
            seeds=max(2, round(share * seeds)),
            precision=precision,
            dtype=dtype,
        )
        for recipe, dtype, precision, share in TRAININGS
    }


# -- the command ---------------------------------------------------------------------------------


def tables(figures: dict[str, Any]) -> list[Table]:
    made = []
    for part, title in (
        ("speed", "One step of main.py"),
        ("steps_per_call", "Steps in one program, batch 128"),
        ("torch", "One step of PyTorch"),
    ):
        headings = ("training images/s", "evaluation", "peak MiB", "of matmul rate")
        table = _table(title, "case", *headings)
        for name, found in figures.get(part, {}).items():
            train = found["train_images_per_second"]
            rate = figures.get("matmul_tflops", {}).get(name.split("/")[0])
            share = train * training_flops() / 1e12 / rate if rate else None
            table.add_row(
                name,
                f"{train:,.0f}",
                f"{found['eval_images_per_second']:,.0f}",
                f"{(found.get('peak_bytes') or 0) / 2**20:,.0f}",
                f"{share:.1%}" if share else "",
            )
        made.append(table)
    table = _table("Several networks in one program", "networks", "images/s in all", "of one's")
    for name, found in figures.get("members", {}).items():
        table.add_row(name, f"{found['all_images_per_second']:,.0f}", f"{found['ratio']:.1f}")
    made.append(table)
    table = _table("Whole runs", "run", "seconds", "after compilation", "precision @ 1")
    for name, run in figures.get("runs", {}).items():
        cells = (f"{run['seconds']:.1f}", f"{run['after_compilation']:.1f}")
        table.add_row(name, *cells, f"{run['precision_at_1']:.3f}")
    made.append(table)
    columns = ("seconds, median", "accuracy", "standard error", "single view", "n")
    table = _table("Trainings, compilation outside", "training", *columns)
    for name, found in (figures.get("trainings", {}) | figures.get("published", {})).items():
        seconds, accuracies, single = (
            [each[key] for each in found["trainings"]]
            for key in ("seconds", "accuracy", "single_view")
        )
        table.add_row(
            name,
            f"{statistics.median(seconds):.2f}",
            f"{statistics.mean(accuracies):.4f}",
            f"{statistics.stdev(accuracies) / len(accuracies) ** 0.5:.4f}",
            f"{statistics.mean(single):.4f}",
            str(len(seconds)),
        )
    made.append(table)
    return [table for table in made if table.row_count]


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def parts(args: argparse.Namespace) -> dict[str, dict[str, Callable[[], dict[str, Any]]]]:
    """What there is to measure: by part, by name."""
    script = args.airbench
    options = {"data": str(args.data) if args.data else None, "seeds": args.seeds}
    return {
        "runs": {
            name: partial(whole_run, recipe, args.data, *flags)
            for name, (recipe, *flags) in RUNS.items()
        },
        "trainings": trainings(ask, args.data, args.seeds),
        "published": {
            f"airbench94_muon.py, torch.compile {args.torch_mode}": partial(
                ask, "published", script=str(script), mode=args.torch_mode, **options
            )
        }
        if script
        else {},
        "speed": speeds(ask),
        "steps_per_call": steps_per_call(ask),
        "members": {
            f"{count} networks": partial(ask, "members", count=count, batch=128)
            for count in NETWORKS
        },
        "torch": torch(ask) if importlib.util.find_spec("torch") else {},
    }


def measure(
    args: argparse.Namespace, gpu: dict[str, Any], say: Callable[[str], object]
) -> dict[str, Any]:
    """Everything that was asked for; what is there so far is written after each measurement."""
    figures: dict[str, Any] = {"device": gpu, "versions": report.versions()}
    wanted = args.parts or parts(args)
    if "speed" in wanted:
        figures["matmul_tflops"] = matmul_rates(ask)
        say(f"Matrix products, TFLOP/s: {figures['matmul_tflops']}")
    for part in wanted:
        cases, figures[part] = parts(args)[part], {}
        for name, case in cases.items():
            start = time.monotonic()
            try:
                found = case()
            except Failed as error:  # out of memory, say: the others are still worth having
                say(f"{part}: {name} left out: {error}")
                continue
            figures[part][name] = found
            say(f"{part}: {name}: {_short(found)} ({time.monotonic() - start:.0f} s)")
            if args.json:
                args.json.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def _short(found: dict[str, Any]) -> str:
    if "trainings" in found:
        each = [(round(t["seconds"], 3), t["accuracy"]) for t in found["trainings"]]
        return f"{len(each)} trainings, the first {each[:3]}"
    return ", ".join(f"{key} {value:,.4g}" for key, value in found.items() if value)


def main(argv: Sequence[str]) -> int:
    parser = report.parser("gpu", __doc__)
    parser.add_argument("--data", type=Path, help="where CIFAR-10 is (config.data.dir)")
    parser.add_argument("--airbench", type=Path, help="where the published script is")
    parser.add_argument("--torch_mode", default="max-autotune", help="of torch.compile, for it")
    parser.add_argument("--seeds", type=int, default=50, help="trainings of each kind")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="not all")
    args = parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 120)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    gpu = ask("device")
    if gpu["platform"] != "gpu":
        say(f"No GPU: JAX runs on {gpu['platform']} here. Nothing was measured.")
        return 0
    figures = measure(args, gpu, say)
    say(f"{gpu['name']}, {figures['versions']}")
    for table in tables(figures):
        console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
