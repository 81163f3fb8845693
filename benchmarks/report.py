"""From what was measured to a table and a JSON object. Used by `python -m benchmarks.compare`.

A ratio is this project's images/s over another's, so that above 1 this project is faster. Within
one start of the processes it is the median over the rounds of the ratio within each round: what
slows the machine down for a while slows both, which a ratio of two medians would not know. Rounds
in which other processes disturbed one of the two are left out, unless fewer than `ENOUGH` would
remain. What is reported is the median over several starts, and their range: processes of one code
differ for as long as they live.
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
from benchmarks.worker import OURS, OURS_HALF, QUIET, Speed, kind

BATCHES = {"cnn": 128, "airbench": 2_000}  # of the figures whose names do not say another
ENOUGH = 3
PHASES = {"train": "train", "evaluate": "eval"}  # as a worker calls it: as a figure's name does
_LIBRARIES = (
    *("jax", "jaxlib", "flax", "optax", "torch", "tensorflow", "tensorflow-cpu", "numpy"),
    "onednn-cpu-gomp",
)


class Case(NamedTuple):
    task: str  # of TASKS
    phase: str  # of PHASES
    batch_size: int
    name: str  # of the task's kinds

    @property
    def figure(self) -> str:
        """train/torch_stock, or train/torch_stock@512 for another batch size than the usual one;
        airbench/torch, and airbench_eval/torch."""
        phase = PHASES[self.phase]
        if self.task == "airbench":
            phase = "airbench" if phase == "train" else "airbench_eval"
        usual = self.batch_size == BATCHES[self.task]
        return f"{phase}/{self.name}{'' if usual else f'@{self.batch_size}'}"

    @property
    def half(self) -> bool:
        return kind(self.task, self.name).half

    @property
    def ours(self) -> "Case":
        """This project in the same precision."""
        return self._replace(name=OURS_HALF if self.half else OURS)


# Of each case and each start of its process the speeds, one a round. The rounds of one task and
# batch size go together.
Speeds = Mapping[Case, Sequence[Sequence[Speed]]]


class Spread(NamedTuple):
    """The least, the median and the largest."""

    lower: float
    median: float
    upper: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(*map(float, (min(values), np.median(values), max(values))))


def images_per_second(starts: Sequence[Sequence[Speed]]) -> Spread:
    """Over the starts: of each the median of the rounds that nothing disturbed."""

    def of_one(speeds: Sequence[Speed]) -> float:
        quiet = [speed for speed in speeds if speed.quiet]
        chosen = quiet if len(quiet) >= ENOUGH else speeds
        return float(np.median([speed.images_per_second for speed in chosen]))

    return spread([of_one(speeds) for speeds in starts])


def ratio(ours: Sequence[Sequence[Speed]], theirs: Sequence[Sequence[Speed]]) -> Spread:
    """Of two contenders' images/s, over the starts: of each the median over its rounds."""

    def of_one(pairs: list[tuple[Speed, Speed]]) -> float:
        quiet = [(our, their) for our, their in pairs if our.quiet and their.quiet]
        chosen = quiet if len(quiet) >= ENOUGH else pairs
        return float(
            np.median([our.images_per_second / their.images_per_second for our, their in chosen])
        )

    pairs = zip(ours, theirs, strict=True)
    return spread([of_one(list(zip(*start, strict=True))) for start in pairs])


def ratios(speeds: Speeds) -> dict[str, Spread]:
    """This project against each other contender of the same precision, and its faster precision
    against the fastest of all others: "train/best", "eval/best", and for airbench, whose only
    other is PyTorch, "airbench/torch_best"."""
    result = {}
    groups: dict[Case, list[Case]] = {}
    for case in speeds:
        groups.setdefault(case._replace(name=""), []).append(case)
        if case.name not in (OURS, OURS_HALF) and case.ours in speeds:
            result[case.figure] = ratio(speeds[case.ours], speeds[case])

    def speed(case: Case) -> float:
        return images_per_second(speeds[case]).median

    for group, cases in groups.items():
        ours = [case for case in cases if case.name in (OURS, OURS_HALF)]
        others = [case for case in cases if case not in ours]
        if ours and others:
            best = "torch_best" if group.task == "airbench" else "best"
            fastest = max(ours, key=speed), max(others, key=speed)
            name = group._replace(name=best).figure
            result[name] = ratio(*(speeds[case] for case in fastest))
    return result


def table(speeds: Speeds) -> Table:
    """A line for each case: images/s and the ratio, each as median and range over the starts."""
    result = Table(title="A ratio above 1: this project is faster", box=box.SIMPLE_HEAD)
    result.add_column("", no_wrap=True)
    for heading in ("images/s", "starts", "ratio", "starts", "quiet"):
        result.add_column(heading, justify="right", no_wrap=True)
    found = ratios(speeds)
    for case, starts in speeds.items():
        speed = images_per_second(starts)
        rounds = [round_ for start in starts for round_ in start]
        quotient = found.get(case.figure)
        result.add_row(
            case.figure,
            f"{speed.median:,.0f}",
            f"{speed.lower:,.0f}–{speed.upper:,.0f}",
            f"{quotient.median:.2f}" if quotient else "",
            f"{quotient.lower:.2f}–{quotient.upper:.2f}" if quotient else "",
            f"{sum(speed.quiet for speed in rounds)}/{len(rounds)}",
        )
    result.add_section()
    for name, quotient in found.items():
        if name.partition("@")[0].endswith("best"):
            shown = f"{quotient.median:.2f}", f"{quotient.lower:.2f}–{quotient.upper:.2f}"
            result.add_row(name, "", "", *shown, "")
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


def as_json(speeds: Speeds, programs: Sequence[WholeProgram] = ()) -> dict[str, Any]:
    """What `--json` writes: medians over the starts; least and largest stand apart."""
    spreads = {case.figure: images_per_second(starts) for case, starts in speeds.items()}
    found = ratios(speeds)
    if programs:
        spreads["whole_program"] = spread([each.images_per_second for each in programs])
        spreads["bare_step"] = spread([each.bare_images_per_second for each in programs])
        found["whole_program"] = spread([each.ratio for each in programs])
    return {
        "images_per_second": {name: value.median for name, value in spreads.items()},
        "images_per_second_range": _ranges(spreads),
        "ratios": {name: value.median for name, value in found.items()},
        "ratios_range": _ranges(found),
        "starts": max((len(starts) for starts in speeds.values()), default=len(programs)),
        "machine": machine(),
        "versions": versions(),
    }


def _ranges(spreads: Mapping[str, Spread]) -> dict[str, list[float]]:
    return {name: [value.lower, value.upper] for name, value in spreads.items()}


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
