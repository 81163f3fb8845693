"""From what was measured to a table and a JSON object. Used by `python -m benchmarks.compare`.

A ratio is this project's images/s over another's, so that above 1 this project is faster. It is the
median over the rounds of the ratio within each round: what slows the machine down for a while slows
both, which a ratio of two medians would not know. Rounds in which other processes disturbed one of
the two are left out, unless fewer than `ENOUGH` would remain.
"""

import argparse
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.table import Table

from benchmarks.whole_program import WholeProgram
from benchmarks.worker import KINDS, OURS, QUIET, Speed

BATCH = 128  # of the figures whose names do not say another
ENOUGH = 3
PHASES = {"train": "train", "evaluate": "eval"}  # as a worker calls it: as a figure's name does
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "torch", "tensorflow", "tensorflow-cpu", "numpy")


class Case(NamedTuple):
    phase: str  # of PHASES
    batch_size: int
    name: str  # of KINDS

    @property
    def figure(self) -> str:
        """train/torch_stock, or train/torch_stock@512 for another batch size than `BATCH`."""
        suffix = "" if self.batch_size == BATCH else f"@{self.batch_size}"
        return f"{PHASES[self.phase]}/{self.name}{suffix}"


Speeds = Mapping[Case, Sequence[Speed]]  # one a round; the rounds of one batch size go together


class Spread(NamedTuple):
    """Quartiles."""

    lower: float
    median: float
    upper: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(*map(float, np.percentile(values, (25, 50, 75))))


def images_per_second(speeds: Sequence[Speed]) -> Spread:
    """Over the rounds that nothing disturbed."""
    quiet = [speed for speed in speeds if speed.quiet]
    chosen = quiet if len(quiet) >= ENOUGH else speeds
    return spread([speed.images_per_second for speed in chosen])


def ratio(ours: Sequence[Speed], theirs: Sequence[Speed]) -> Spread:
    """Of two contenders' images/s, round by round."""
    pairs = list(zip(ours, theirs, strict=True))
    quiet = [(our, their) for our, their in pairs if our.quiet and their.quiet]
    chosen = quiet if len(quiet) >= ENOUGH else pairs
    return spread([our.images_per_second / their.images_per_second for our, their in chosen])


def ratios(speeds: Speeds) -> dict[str, float]:
    """This project against each other contender, and "eval/best" against the fastest of them."""
    result = {}
    fastest: dict[str, tuple[float, float]] = {}  # figure -> (images/s, ratio)
    for case, theirs in speeds.items():
        if case.name == OURS:
            continue
        value = result[case.figure] = ratio(speeds[case._replace(name=OURS)], theirs).median
        if case.phase == "evaluate":
            best = case._replace(name="best").figure
            entry = images_per_second(theirs).median, value
            fastest[best] = max(entry, fastest.get(best, entry))
    return result | {name: value for name, (_, value) in fastest.items()}


def table(speeds: Speeds) -> Table:
    """A line for each case: images/s and the ratio, each as its median and quartiles."""
    result = Table(title="A ratio above 1: this project is faster", box=box.SIMPLE_HEAD)
    result.add_column("", no_wrap=True)
    for heading in ("images/s", "quartiles", "ratio", "quartiles", "quiet"):
        result.add_column(heading, justify="right", no_wrap=True)
    for case, measured in speeds.items():
        speed = images_per_second(measured)
        quotient = ratio(speeds[case._replace(name=OURS)], measured)
        result.add_row(
            case.figure,
            f"{speed.median:,.0f}",
            f"{speed.lower:,.0f}–{speed.upper:,.0f}",
            f"{quotient.median:.2f}",
            f"{quotient.lower:.2f}–{quotient.upper:.2f}",
            f"{sum(speed.quiet for speed in measured)}/{len(measured)}",
            end_section=case.name == list(KINDS)[-1],
        )
    return result


def program_line(program: WholeProgram) -> str:
    pairs = list(zip(program.program, program.bare, strict=True))
    slices = spread([bare.seconds / whole.seconds for whole, bare in pairs])
    quiet = sum(max(whole.others, bare.others) <= QUIET for whole, bare in pairs)
    return (
        f"main.py {program.images_per_second:,.0f} images/s, bare step "
        f"{program.bare_images_per_second:,.0f}: whole program / bare step {program.ratio:.3f} "
        f"(slices: {slices.lower:.3f}–{slices.upper:.3f}, {quiet} of {len(pairs)} quiet)"
    )


def as_json(speeds: Speeds, program: WholeProgram | None) -> dict[str, Any]:
    """What `--json` writes; images/s are medians, their quartiles stand apart."""
    spreads = {case.figure: images_per_second(values) for case, values in speeds.items()}
    result: dict[str, Any] = {
        "images_per_second": {name: value.median for name, value in spreads.items()},
        "quartiles": {name: [value.lower, value.upper] for name, value in spreads.items()},
        "ratios": ratios(speeds),
        "rounds": max(map(len, speeds.values()), default=0),
        "machine": machine(),
        "versions": versions(),
    }
    if program:
        result["images_per_second"] |= {
            "whole_program": program.images_per_second,
            "bare_step": program.bare_images_per_second,
        }
        result["ratios"]["whole_program"] = program.ratio
    return result


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Of `python -m benchmarks.<name>`, with its --json FILE."""
    result = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--json", type=_new_file, help="where to write the figures")
    return result


def _new_file(text: str) -> Path:
    """Refuses a folder that is not there now, and not after ten minutes."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def machine() -> dict[str, Any]:
    return {"cpu": _cpu_name(), "cores": os.cpu_count(), "system": platform.platform()}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def versions() -> dict[str, str]:
    """Of Python and of the libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
