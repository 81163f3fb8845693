"""`main.py` as users run it, against its own compiled step. Run by `python -m benchmarks.compare`.

The program is `main.py --config=configs/default.py` on the built-in dataset: default logging,
summaries and checkpoints, batches of 128. The bare step is the same compiled step, with its gather
and its distortions, in a plain loop in another process. They take turns in slices of `SLICE` steps:
the program is stopped (SIGSTOP) while the bare step works, and then goes on (SIGCONT).

The clock of a slice runs from the continuation to the arrival of the log line `SLICE` steps later,
so every second in which the program works counts, those of checkpoints too. With the default of
1,000 steps, from one checkpoint to the next, exactly one is among them; start and compilation are
over before. The ratio is that of the images/s over all slices, as a median of slices would not see
the checkpoint; so it holds where few of them were disturbed by other processes, and their number is
reported.
"""

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.worker import PROGRAM_STEP, ROOT, Block, Clock, Worker, WorkerError, environment

BATCH, SLICE, WARM_UP = 128, 100, 20  # images; steps; steps. Lines come every 10 steps
_STEP_LINE = re.compile(r": step (\d+), loss")


class WholeProgram(NamedTuple):
    program: list[Block]  # slices
    bare: list[Block]

    @property
    def images_per_second(self) -> float:
        return BATCH * SLICE * len(self.program) / _seconds(self.program)

    @property
    def bare_images_per_second(self) -> float:
        return BATCH * SLICE * len(self.bare) / _seconds(self.bare)

    @property
    def ratio(self) -> float:
        """The share of the bare step's speed that the program keeps."""
        return _seconds(self.bare) / _seconds(self.program)


def _seconds(blocks: Sequence[Block]) -> float:
    return sum(block.seconds for block in blocks)


class Program:
    """`main.py` in a process that stands still, except within `advance`."""

    def __init__(self, workdir: Path, env: dict[str, str]):
        command = [sys.executable, "main.py", "--config=configs/default.py"]
        flags = [f"--workdir={workdir}", "--config.data.name=synthetic"]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed in __exit__)
        self._process = subprocess.Popen(
            command + flags,
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._step = 0

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()  # stopped processes, too
        self._process.communicate()
        self._errors.close()

    def advance(self, steps: int) -> Block:
        """Runs to the line that is `steps` further on, and times it."""
        self._step += steps
        with Clock(self._process.pid) as clock:
            self._process.send_signal(signal.SIGCONT)
            self._wait_for(self._step)
        self._process.send_signal(signal.SIGSTOP)
        return clock.block

    def _wait_for(self, step: int) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            found = _STEP_LINE.search(line)
            if found and int(found[1]) == step:
                return
        self._errors.seek(0)
        raise WorkerError(f"main.py ended before step {step}:\n{self._errors.read()[-2000:]}")


def measure(steps: int) -> WholeProgram:
    """Times `steps` steps of the program, rounded up to slices, and as many bare ones."""
    program, bare = [], []
    with tempfile.TemporaryDirectory() as folder:
        data = {"CIFAR_JAX_DATA": str(Path(folder) / "data")}
        with Program(Path(folder) / "run", {**environment(), **data}) as main:
            main.advance(WARM_UP)  # draws the images, too
            with Worker(PROGRAM_STEP, BATCH, data) as worker:
                worker.block("train", WARM_UP)
                for _ in range(-(-steps // SLICE)):
                    program.append(main.advance(SLICE))
                    bare.append(worker.block("train", SLICE))
    return WholeProgram(program, bare)
