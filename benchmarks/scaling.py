"""Step time against the number of devices and of processes, beside what it should be.

    python -m benchmarks.scaling [--json FILE]

The step is that of main.py, with its all-reduce. On 1, 2, 4, … devices of one process it is
measured at a constant global batch of 128 and at a constant 128 for each device; and the all-reduce
of the gradients alone. Then as many processes as there are GPUs (on a CPU: two) do the same
over loopback. All cases of a process take turns, and the processes themselves do.

What a step should take is the time of one device for its share of the batch, plus the all-reduce,
both measured alone. Without GPUs, eight devices are forced onto the CPU, where they share its
cores: there the devices' shares count as done one after the other. docs/scaling.md has the model
for GPUs.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import report
from benchmarks.worker import ROOT

BATCH = 128
FORCED = 8  # devices, where the CPU is all there is
CPU_PROCESSES = (1, 2)
BLOCKS, BLOCK_SECONDS, ROUNDS = 7, 0.5, 3

Figures = dict[str, Any]


def ask(launcher: Sequence[str], shares: int, **environment: str) -> Figures:
    """What `scaling_case.py` finds. Raises CalledProcessError, after it has shown why."""
    options = (f"--batch={BATCH}", f"--shares={shares}")
    blocks = (f"--blocks={BLOCKS}", f"--seconds={BLOCK_SECONDS}")
    done = subprocess.run(
        [sys.executable, *launcher, *options, *blocks],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    (line,) = (text for text in done.stdout.splitlines() if text.startswith("{"))
    return json.loads(line)


def ask_devices() -> Figures:
    """Of one process with all devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={FORCED}"
    return ask(["benchmarks/scaling_case.py"], FORCED, XLA_FLAGS=flags.strip())


def ask_processes(processes: int, shares: int) -> Figures:
    """Of several processes with a device each; one alone is also asked for shares of the batch."""
    program = "--program=benchmarks/scaling_case.py"
    return ask(["launch/local.py", f"--processes={processes}", program, "--"], shares)


def predict(figures: Figures, alone: Figures, count: int, batch: int) -> float:
    """Seconds of a step of `count` devices, from the step of one in `alone` and the all-reduce."""
    share = alone["step"][f"1/{batch // count}"]
    in_turn = count if figures["platform"] == "cpu" else 1  # they share the cores
    return in_turn * share + figures["all_reduce"][str(count)]


def row(figures: Figures, alone: Figures, count: int, batch: int) -> Figures:
    """The measured and the predicted step of `count` devices that share `batch`."""
    measured = figures["step"][f"{count}/{batch}"]
    predicted = predict(figures, alone, count, batch)
    base = alone["step"][f"1/{BATCH}"]
    return {
        "count": count,
        "batch": batch,
        "seconds": measured,
        "predicted": predicted,
        "ratio": measured / predicted,
        "speed_up": (batch / measured) / (BATCH / base),
        "all_reduce": figures["all_reduce"][str(count)],
    }


def cases(counts: Iterable[int]) -> list[tuple[int, int]]:
    """(count, global batch): constant in all, then constant for each device."""
    counts = list(counts)
    return list(dict.fromkeys([(n, BATCH) for n in counts] + [(n, BATCH * n) for n in counts]))


def device_rows(figures: Figures) -> list[Figures]:
    return [row(figures, figures, *case) for case in cases(map(int, figures["all_reduce"]))]


def process_rows(rounds: Sequence[dict[int, Figures]]) -> list[Figures]:
    """The medians over the rounds, in each of which every number of processes had its turn."""
    result = []
    for count, batch in cases(rounds[0]):
        rows = [row(found[count], found[1], count, batch) for found in rounds]
        result.append({key: statistics.median(each[key] for each in rows) for key in rows[0]})
    return result


def table(title: str, of: str, rows: Sequence[Figures]) -> Table:
    result = Table(title=title, box=box.SIMPLE_HEAD)
    headings = (of, "batch", "ms", "predicted", "ratio", "all-reduce", "speed-up")
    for heading in headings:
        result.add_column(heading, justify="right", no_wrap=True)
    for found in rows:
        result.add_row(
            f"{found['count']:.0f}",
            f"{found['batch']:,.0f}",
            *(f"{1e3 * found[name]:.2f}" for name in ("seconds", "predicted")),
            f"{found['ratio']:.2f}",
            f"{1e3 * found['all_reduce']:.2f}",
            f"{found['speed_up']:.2f}",
        )
    return result


def main(argv: Sequence[str]) -> int:
    args = report.parser("scaling", __doc__).parse_args(argv)
    console = Console()
    cores = len(os.sched_getaffinity(0))
    devices = ask_devices()
    on_cpu = devices["platform"] == "cpu"
    numbers = CPU_PROCESSES if on_cpu else tuple(map(int, devices["all_reduce"]))
    rounds = [{n: ask_processes(n, max(numbers)) for n in numbers} for _ in range(ROUNDS)]
    figures = {
        "machine": report.machine(),
        "versions": report.versions(),
        "device": devices["device_kind"],
        "cores": cores,
        "devices": device_rows(devices),
        "processes": process_rows(rounds),
    }
    load = os.getloadavg()[0]
    kind = f"{devices['devices']} devices of kind {devices['device_kind']}"
    console.print(f"{kind}, {cores} cores, load {load:.1f}", highlight=False)
    if on_cpu:
        console.print(
            f"They share the {cores} cores of one CPU, and do not show how much faster more "
            "hardware is. A speed-up below 1 is the cost of splitting and averaging; above 1, one "
            "device left cores unused.",
            highlight=False,
        )
    console.print(table("Devices of one process", "devices", figures["devices"]))
    console.print(table("Processes with one device each", "processes", figures["processes"]))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
