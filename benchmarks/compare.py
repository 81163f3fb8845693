"""This project beside PyTorch and TensorFlow: images/s of a training and an evaluation step.

    pip install -e '.[bench]'
    python -m benchmarks.compare
    python -m benchmarks.compare --starts 1 --rounds 6 --batch 128 --tasks cnn --json figures.json

Two tasks: the tutorial's network (`task.py`) and airbench94's (`airbench_task.py`), each in float32
and in bfloat16. Each contender has a process of its own, with all the CPU cores as its framework
uses them by default. It first shows that it computes the same as this project in float32: logits,
loss, gradients and the parameters after a step, from the same weights and batch, in bfloat16 logits
and loss at its precision; where they differ nothing is timed. Then the contenders take turns, a
block of about a second each, in so many rounds; only one works at a time, and warm-up and
compilation are over before. All of it is repeated with new processes. `report.py` says how the
ratios are formed, `whole_program.py` how `main.py` is timed.
"""

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.console import Console

from benchmarks import report, task, whole_program
from benchmarks.worker import (
    OURS,
    OURS_HALF,
    ROOT,
    TASKS,
    Kind,
    Speed,
    Worker,
    WorkerError,
    installed,
    kind,
)

# Images of the check. The gradient of a pooling or a ReLU jumps where two values, or a value and
# zero, are as good as equal, and there rounding decides: 6 of 9 million such places in a batch of
# 512 moved conv1's gradient by 2e-3. Among these images no place is so close.
CHECK_BATCH = {"cnn": 128, "airbench": 4}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = report.parser("compare", __doc__)
    parser.add_argument("--starts", type=positive, default=3, help="of all processes")
    parser.add_argument("--rounds", type=positive, default=5, help="blocks of each contender")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=tuple(TASKS))
    parser.add_argument("--batch", type=positive, action="append", help="cnn: 128 and 512")
    parser.add_argument("--airbench-batch", type=positive, action="append", help="2000")
    parser.add_argument("--no-whole-program", action="store_true", help="leave main.py out")
    parser.add_argument("--program-steps", type=positive, default=1_000, help="of main.py")
    return parser.parse_args(argv)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def present(
    kinds: Mapping[str, Kind],
    is_installed: Callable[[str], bool],
    say: Callable[[str], object],
) -> list[str]:
    """The contenders whose framework is installed; says which are skipped, a line a framework.

    In bfloat16 this project computes in float32 where the CPU has no instructions for it: it is
    left out then.
    """
    missing: dict[str, list[str]] = {}
    found = []
    for name, needs in kinds.items():
        if name == OURS_HALF and (reason := native_reason()):
            say(f"Skipped: {name}: {reason}.")
        elif is_installed(needs.package):
            found.append(name)
        else:
            missing.setdefault(needs.package, []).append(name)
    for package, skipped in missing.items():
        say(
            f"Skipped: {', '.join(skipped)}. {package} is not installed; "
            "to compare with it: pip install '.[bench]'"
        )
    return found


def native_reason() -> str | None:
    """Why this project does not compute in bfloat16 here. Asked in a process of its own: JAX would
    keep threads and memory of this one."""
    code = "from cifar_jax.ops import native; print(native.reason('bfloat16') or '')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or None


def check(workers: Sequence[Worker]) -> list[str]:
    """A line for each array that a worker has differently from this project's in float32."""
    outcomes = {worker.name: worker.outcome() for worker in workers}
    return [
        f"{worker.name}: {line}"
        for worker in workers
        for line in task.disagreements(
            outcomes[worker.name], outcomes[OURS], kind(worker.task, worker.name).half
        )
    ]


def race(workers: Sequence[Worker], rounds: int) -> dict[report.Case, list[Speed]]:
    """The speed of each worker in each phase and round, after one round that does not count."""
    speeds: dict[report.Case, list[Speed]] = {
        report.Case(worker.task, phase, worker.batch_size, worker.name): []
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
                    case = report.Case(worker.task, phase, worker.batch_size, worker.name)
                    speeds[case].append(speed)
    return speeds


def compare(
    names: Mapping[str, Sequence[str]],
    batch_sizes: Mapping[str, Sequence[int]],
    rounds: int,
    starts: int,
    say: Callable[[str], object],
) -> dict[report.Case, list[list[Speed]]]:
    """Checks and times the contenders of each task. Raises Disagreement where one computes
    something else."""
    for which, chosen in names.items():
        with started(which, chosen, CHECK_BATCH[which]) as workers:
            if lines := check(workers):
                raise Disagreement(
                    "\n".join(["Nothing is timed: not all compute the same.", *lines])
                )
    say("All compute the same.")
    speeds: dict[report.Case, list[list[Speed]]] = {}
    for start in range(1, starts + 1):
        for which, chosen in names.items():
            for batch_size in batch_sizes[which]:
                with started(which, chosen, batch_size) as workers:
                    say(f"{which}, batch {batch_size}: {rounds} rounds of start {start}.")
                    for case, measured in race(workers, rounds).items():
                        speeds.setdefault(case, []).append(measured)
    return speeds


@contextlib.contextmanager
def started(which: str, names: Sequence[str], batch_size: int) -> Iterator[list[Worker]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Worker(name, batch_size, task=which)) for name in names]


class Disagreement(Exception):
    """A line for each array that differs."""


def main(argv: Sequence[str]) -> int:
    args, console = parse(argv), Console()
    if not console.is_terminal:
        console.width = 120  # of the table, in a file

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    names = {which: present(TASKS[which], installed, say) for which in args.tasks}
    batch_sizes = {"cnn": args.batch or [128, 512], "airbench": args.airbench_batch or [2_000]}
    try:
        speeds = compare(names, batch_sizes, args.rounds, args.starts, say)
        console.print(report.table(speeds))
        programs = []
        for start in range(0 if args.no_whole_program else args.starts):
            say(f"The whole program, start {start + 1}: {args.program_steps} steps of main.py.")
            programs.append(whole_program.measure(args.program_steps))
            say(report.program_line(programs[-1]))
    except (Disagreement, WorkerError) as error:
        print(error, file=sys.stderr)
        return 1
    if args.json:
        args.json.write_text(json.dumps(report.as_json(speeds, programs), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
