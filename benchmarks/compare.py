"""This project beside PyTorch and TensorFlow: images/s of a training and an evaluation step.

    pip install -e '.[bench]'
    python -m benchmarks.compare
    python -m benchmarks.compare --rounds 6 --batch 128 --no-whole-program --json figures.json

Each contender has a process of its own, with all the CPU cores as its framework uses them by
default. It first shows that it computes the same as this project: logits, loss, gradients and the
parameters after a step, from the same weights and batch; where they differ nothing is timed. Then
the contenders take turns, a block of about a second each, in so many rounds; only one works at a
time, and warm-up and compilation are over before. `report.py` says how the ratios are formed,
`whole_program.py` how `main.py` is timed.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.console import Console

from benchmarks import report, task, whole_program
from benchmarks.worker import KINDS, OURS, Speed, Worker, WorkerError, installed

# Images of the check. The gradient of a pooling or a ReLU jumps where two values, or a value and
# zero, are as good as equal, and there rounding decides: 6 of 9 million such places in a batch of
# 512 moved conv1's gradient by 2e-3. Among these images no place is so close.
CHECK_BATCH = 128


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = report.parser("compare", __doc__)
    parser.add_argument("--rounds", type=positive, default=15, help="blocks of each contender")
    parser.add_argument("--batch", type=positive, action="append", help="128 and 512 by default")
    parser.add_argument("--no-whole-program", action="store_true", help="leave main.py out")
    parser.add_argument("--program-steps", type=positive, default=1_000, help="of main.py")
    return parser.parse_args(argv)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def present(
    names: Iterable[str], is_installed: Callable[[str], bool], say: Callable[[str], object]
) -> list[str]:
    """The contenders whose framework is installed; says which are skipped, a line a framework."""
    missing: dict[str, list[str]] = {}
    found = []
    for name in names:
        if is_installed(name):
            found.append(name)
        else:
            missing.setdefault(KINDS[name].package, []).append(name)
    for package, skipped in missing.items():
        say(
            f"Skipped: {', '.join(skipped)}. {package} is not installed; "
            "to compare with it: pip install '.[bench]'"
        )
    return found


def check(workers: Sequence[Worker]) -> list[str]:
    """A line for each array that a worker has differently from this project's."""
    outcomes = {worker.name: worker.outcome() for worker in workers}
    return [
        f"{name}: {line}"
        for name, outcome in outcomes.items()
        for line in task.disagreements(outcome, outcomes[OURS])
    ]


def race(workers: Sequence[Worker], rounds: int) -> dict[report.Case, list[Speed]]:
    """The speed of each worker in each phase and round, after one round that does not count."""
    speeds: dict[report.Case, list[Speed]] = {
        report.Case(phase, worker.batch_size, worker.name): []
        for phase in report.PHASES
        for worker in workers
    }
    for number in range(rounds + 1):
        # Another one begins each round, so that none always follows the same one.
        first = number % len(workers)
        for phase in report.PHASES:
            for worker in (*workers[first:], *workers[:first]):
                speed = worker.speed(phase)
                if number:
                    speeds[report.Case(phase, worker.batch_size, worker.name)].append(speed)
    return speeds


def compare(
    names: Sequence[str], batch_sizes: Sequence[int], rounds: int, say: Callable[[str], object]
) -> dict[report.Case, list[Speed]]:
    """Checks and times all contenders. Raises Disagreement where one computes something else."""
    with started(names, CHECK_BATCH) as workers:
        if lines := check(workers):
            raise Disagreement("\n".join(["Nothing is timed: not all compute the same.", *lines]))
    say("All compute the same.")
    speeds: dict[report.Case, list[Speed]] = {}
    for batch_size in batch_sizes:
        with started(names, batch_size) as workers:
            say(f"Batch {batch_size}: timing {rounds} rounds.")
            speeds |= race(workers, rounds)
    return speeds


@contextlib.contextmanager
def started(names: Sequence[str], batch_size: int) -> Iterator[list[Worker]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Worker(name, batch_size)) for name in names]


class Disagreement(Exception):
    """A line for each array that differs."""


def main(argv: Sequence[str]) -> int:
    args, console = parse(argv), Console()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    names = present(KINDS, installed, say)
    try:
        speeds = compare(names, args.batch or [128, 512], args.rounds, say)
        console.print(report.table(speeds))
        program = None
        if not args.no_whole_program:
            say(f"The whole program: {args.program_steps} steps of main.py and as many bare ones.")
            program = whole_program.measure(args.program_steps)
            say(report.program_line(program))
    except (Disagreement, WorkerError) as error:
        print(error, file=sys.stderr)
        return 1
    if args.json:
        args.json.write_text(json.dumps(report.as_json(speeds, program), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
