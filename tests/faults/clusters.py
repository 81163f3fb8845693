"""Two processes of one run: what happens to one of them ends both or none, and nobody waits."""

import os
import random
import signal
import subprocess
import sys
import time

from tests.faults.disks import mounted
from tests.faults.neighbours import clock_library
from tests.faults.processes import (
    FATAL,
    MAIN,
    ROOT,
    Bench,
    Outcome,
    final_bytes,
    killed_at_last,
    listing,
    steps,
    wait_until,
)

_CPU = "--config.optim.learning_rate=0.02"  # at which the rounding of two sums stays small


def killed(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """kill -9 or SIGTERM for one of the two, at a random moment; the launcher starts both again."""
    outcome, expected = Outcome("one of two processes killed"), None
    for number in range(count + 1):
        workdir = bench.folder / f"two-{number}"
        job = _start(bench, workdir, "--restarts=4")
        with killed_at_last(job):
            if number:  # the first run is the undisturbed one
                wait_until(lambda workdir=workdir: len(steps(workdir)) > 0, 120)
                time.sleep(rng.uniform(0.0, 1.0))
                for pid in rng.sample(_children(job.pid), 1):
                    os.kill(pid, signal.SIGKILL)
            _, error = job.communicate(timeout=240)
        if not number:
            assert job.returncode == 0, error
            expected = final_bytes(workdir)
            continue
        same = job.returncode == 0 and final_bytes(workdir) == expected
        outcome.note(same, f"{job.returncode} {error[-500:]}", wrong=job.returncode == 0)
    return outcome


def disturbed(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """A disk that fills up under both, or a clock that jumps for both: they end together."""
    outcome = Outcome("two processes, a full disk or a jumping clock")
    library, mark = clock_library(bench.folder), bench.folder / "ahead-for-two"
    for number in range(count):
        workdir = bench.folder / f"both-{number}"
        if number % 2:
            environment = bench.environment | {"LD_PRELOAD": str(library), "AHEAD": str(mark)}
            job = _start(bench, workdir, env=environment)
            with killed_at_last(job):
                wait_until(lambda workdir=workdir: len(steps(workdir)) > 0, 120)
                mark.touch()
                _, error = job.communicate(timeout=240)
                mark.unlink()
            whole = listing(workdir)[0] == 0
            outcome.note(job.returncode == 0 and whole, f"clock: {job.returncode} {error[-500:]}")
            continue
        with mounted("tmpfs", workdir, "-t", "tmpfs", "-o", "size=40m") as disk:
            job = _start(bench, disk / "run", more=("--config.checkpoint.keep=100",))
            with killed_at_last(job):
                _, error = job.communicate(timeout=240)
            whole = not any("damaged" in line for line in listing(disk / "run")[1])
            said = "No space left on device" in error
            outcome.note(
                job.returncode == 1 and whole and said and not any(w in error for w in FATAL[1:]),
                f"full: {job.returncode} {error[-800:]}",
            )
    return outcome


def _start(bench: Bench, workdir, *options: str, more=(), env=None) -> subprocess.Popen:
    return subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "launch" / "local.py"), "--processes=2", "--grace=20"),
            *(*options, "--", *bench.flags(workdir, _CPU, "--config.heartbeat_seconds=5", *more)),
        ],
        env=env or bench.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _children(pid: int) -> list[int]:
    done = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True
    )
    lines = [line.split(None, 1) for line in done.stdout.splitlines()]
    return [int(found) for found, command in lines if MAIN[1] in command]
