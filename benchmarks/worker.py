"""A contender in a process of its own, which works only while it is asked to.

`python -m benchmarks.compare` starts these; by hand, one command a line on standard input:

    $ python -m benchmarks.worker cnn torch_fast 128
    check outcome.npz
    {"written": "outcome.npz"}
    train 10
    {"seconds": 0.81, "others": 0.01}

Each answer is a line of JSON. `train K` and `evaluate K` run K steps from the first weights, after
`WARM_UP` steps outside the clock, and give their seconds and the share of the machine's CPU time
that other processes took meanwhile.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from benchmarks.task import Contender, Outcome

ROOT = Path(__file__).parent.parent
WARM_UP = 1  # steps, before each block
BLOCK_SECONDS = 1.0
QUIET = 0.04  # of the CPU may go to other processes; a block with more is measured again
ATTEMPTS = 3  # on a machine that is never quiet, the quietest of so many blocks


class Kind(NamedTuple):
    """What a worker runs: `make(variant, batch_size)` of a module, which needs a package."""

    package: str
    module: str
    variant: str
    task: str = "cnn"  # or "airbench"
    half: bool = False  # computes in bfloat16


OURS = "cifar_jax"
OURS_HALF = "cifar_jax_bf16"
KINDS = {
    OURS: Kind("jax", "benchmarks.jax_cnn", "cnn float32"),
    OURS_HALF: Kind("jax", "benchmarks.jax_cnn", "cnn bfloat16", half=True),
    "torch_stock": Kind("torch", "benchmarks.torch_cnn", "stock"),
    "torch_fast": Kind("torch", "benchmarks.torch_cnn", "fast"),
    "torch_bf16": Kind("torch", "benchmarks.torch_cnn", "bf16", half=True),
    "tf_native": Kind("tensorflow", "benchmarks.tensorflow_cnn", "native"),
    "tf_fast": Kind("tensorflow", "benchmarks.tensorflow_cnn", "fast"),
}
AIRBENCH_KINDS = {
    OURS: Kind("jax", "benchmarks.jax_cnn", "airbench float32", "airbench"),
    OURS_HALF: Kind("jax", "benchmarks.jax_cnn", "airbench bfloat16", "airbench", half=True),
    "torch": Kind("torch", "benchmarks.torch_airbench", "float32", "airbench"),
    "torch_bf16": Kind("torch", "benchmarks.torch_airbench", "bfloat16", "airbench", half=True),
}
TASKS = {"cnn": KINDS, "airbench": AIRBENCH_KINDS}
PROGRAM_STEP = "program_step"  # no contender: the bare step of `whole_program.py`
_PROGRAM = Kind("jax", "benchmarks.jax_cnn", "program")


def kind(task: str, name: str) -> Kind:
    return _PROGRAM if name == PROGRAM_STEP else TASKS[task][name]


class Block(NamedTuple):
    seconds: float
    others: float  # share of the machine's CPU time that other processes took


class Speed(NamedTuple):
    images_per_second: float
    quiet: bool  # other processes took at most `QUIET`


class WorkerError(Exception):
    """A worker ended before it answered; the end of what it wrote to standard error."""


def environment() -> dict[str, str]:
    """The variables of a process that is timed: CPUs alone, and no log lines from TensorFlow."""
    settings = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return {**os.environ, **settings}


class Worker:
    """The parent's end of a worker process; closes it at the end of a `with` block."""

    def __init__(
        self,
        name: str,
        batch_size: int,
        extra: Mapping[str, str] | None = None,
        task: str = "cnn",
    ):
        self.task, self.name, self.batch_size = task, name, batch_size
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed in __exit__)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", task, name, str(batch_size)],
            cwd=ROOT,
            env={**environment(), **(extra or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._steps: dict[str, int] = {}  # of a block, by phase

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            print(command, file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            self._errors.seek(0)
            raise WorkerError(f"{self.name} ended at '{command}':\n{self._errors.read()[-2000:]}")
        return json.loads(answer)

    def outcome(self) -> Outcome:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "outcome.npz"
            self._ask(f"check {path}")
            with np.load(path) as arrays:
                return dict(arrays)

    def block(self, phase: str, steps: int) -> Block:
        """Times `steps` steps of the phase "train" or "evaluate"."""
        return Block(**self._ask(f"{phase} {steps}"))

    def speed(self, phase: str) -> Speed:
        """Of one block of about `BLOCK_SECONDS`; the first call compiles and warms up, too."""
        if phase not in self._steps:
            self.block(phase, 1)
            self._steps[phase] = max(1, round(BLOCK_SECONDS / self.block(phase, 1).seconds))
        steps = self._steps[phase]
        best = self.block(phase, steps)
        for _ in range(ATTEMPTS - 1):
            if best.others <= QUIET:
                break
            best = min(best, self.block(phase, steps), key=lambda block: block.others)
        return Speed(steps * self.batch_size / best.seconds, best.others <= QUIET)


class Clock:
    """Times a `with` block in which one process works, and what others do in the meantime."""

    def __init__(self, process: int | str = "self"):
        self._process = process

    def __enter__(self) -> "Clock":
        self._start = time.perf_counter(), self._others()
        return self

    def __exit__(self, *error: object) -> None:
        others = self._others() - self._start[1]
        seconds = time.perf_counter() - self._start[0]
        self.block = Block(seconds, max(0.0, others / (seconds * (os.cpu_count() or 1))))

    def _others(self) -> float:
        """CPU seconds of all but the process so far; 0 where the system has no /proc."""
        try:
            with Path("/proc/stat").open() as file:
                all_ticks = [int(word) for word in file.readline().split()[1:9]]
            own = Path(f"/proc/{self._process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        idle, waiting = all_ticks[3:5]
        user, system = map(int, own[11:13])  # of the process and all its threads
        return (sum(all_ticks) - idle - waiting - user - system) / os.sysconf("SC_CLK_TCK")


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def make(task: str, name: str, batch_size: int) -> Contender:
    chosen = kind(task, name)
    if chosen.package == "jax":
        from cifar_jax.devices import runtime

        runtime.start()
    return importlib.import_module(chosen.module).make(chosen.variant, batch_size)


def answer(contender: Contender, command: str) -> dict[str, Any]:
    verb, _, argument = command.strip().partition(" ")
    if verb == "check":
        np.savez(argument, **cast(dict[str, Any], contender.outcome()))
        return {"written": argument}
    run = contender.train if verb == "train" else contender.evaluate
    contender.reset()
    run(WARM_UP)
    with Clock() as clock:
        run(int(argument))
    return clock.block._asdict()


def main() -> None:
    # A library that prints must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    contender = make(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    for command in sys.stdin:
        print(json.dumps(answer(contender, command)), file=answers, flush=True)


if __name__ == "__main__":
    main()
