"""Runs all faults, and prints one table: `make faults`, or

python -m tests.faults --seed=7 --only=power_cuts,full --scale=0.1
"""

import argparse
import concurrent.futures
import json
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.faults import clusters, damage, disks, interruptions, neighbours, readers
from tests.faults.processes import Bench, Outcome, Skipped

Scenario = Callable[[Bench, random.Random, int], Outcome]
# Each with the number of its tries, the longest first.
SCENARIOS: dict[Scenario, int] = {
    interruptions.at_random_moments: 200,
    neighbours.endurance: 600,  # seconds
    interruptions.outside_of_training: 100,
    neighbours.evaluation: 1_000,
    damage.of_files: 500,
    interruptions.in_a_save: 24,
    disks.power_cuts: 40,
    damage.for_the_moment: 20,
    damage.of_runs: 12,
    damage.bad_sectors: 6,
    damage.of_all: 4,
    damage.gone_back: 6,
    disks.full: 4,
    disks.limited: 6,
    disks.without_output: 6,
    neighbours.divergence: 8,
    neighbours.clocks: 6,
    neighbours.two_trainers: 4,
    clusters.killed: 6,
    clusters.disturbed: 4,
    readers.hostile: 10_000,
}
_HEADS = ("fault", "times tried", "recovered", "lost", "silently wrong")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--only", default="", help="names of scenarios, with commas between")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of tries")
    parser.add_argument("--out", type=Path, default=Path("faults.json"))
    options = parser.parse_args()
    names = [name for name in options.only.split(",") if name]
    known = {scenario.__name__: scenario for scenario in SCENARIOS}
    if unknown := [name for name in names if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; choices: {', '.join(known)}")
    chosen = [known[name] for name in names] or list(SCENARIOS)
    print(f"Seed {options.seed}: --seed={options.seed} does the same again.", flush=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        Path(folder).chmod(0o755)  # for those who run as another user
        bench = Bench(Path(folder))
        bench.undisturbed()
        start = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:  # on two cores
            jobs = [pool.submit(_run, each, bench, options, start) for each in chosen]
            results = [job.result() for job in jobs]
    outcomes = [result for result in results if isinstance(result, Outcome)]
    _print_table([outcome.row() for outcome in outcomes])
    for scenario, result in zip(chosen, results, strict=True):
        if isinstance(result, Skipped):
            print(f"{scenario.__name__} was skipped: {result}")
    options.out.write_text(json.dumps([outcome.row() for outcome in outcomes], indent=1) + "\n")
    return int(not all(outcome.good for outcome in outcomes))


def _run(
    scenario: Scenario, bench: Bench, options: argparse.Namespace, start: float
) -> Outcome | Skipped:
    name, count = scenario.__name__, max(2, round(SCENARIOS[scenario] * options.scale))
    print(f"[{time.monotonic() - start:5.0f} s] {name}: {count}", flush=True)
    try:
        outcome = scenario(bench, random.Random(f"{options.seed} {name}"), count)
    except Skipped as error:
        print(f"{name} is skipped: {error}", flush=True)
        return error
    except Exception as error:  # as a run that does not end; the others still have their table
        outcome = Outcome(name.replace("_", " "))
        outcome.note(False, "".join(traceback.format_exception(error)))
    row = outcome.row()
    print(f"[{time.monotonic() - start:5.0f} s] {name}: {list(row.values())[1:]}", flush=True)
    for note in outcome.notes[:20]:
        print(f"    {note}", flush=True)
    return outcome


def _print_table(rows: list[dict[str, str | int]]) -> None:
    cells = [list(_HEADS), *([str(row[head]) for head in _HEADS] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print()
    for name, *numbers in cells:
        others = (cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))
        print("  ".join([name.ljust(widths[0]), *others]))


if __name__ == "__main__":
    sys.exit(main())
