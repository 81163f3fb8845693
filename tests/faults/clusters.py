"""Two processes of one run: what happens to one of them ends both or none, and nobody waits."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.faults.disks import mounted
from tests.faults.neighbours import clock_library
from tests.faults.processes import (
    FATAL,
    MAIN,
    ROOT,
    STEPS,
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
    """kill -9 or SIGTERM for one of the two, at a random moment. After the first, the launcher
    starts both again; after the second, by which they were asked to leave, we do."""
    outcome, expected = Outcome("one of two processes killed"), None
    for number in range(count + 1):
        workdir = bench.folder / f"two-{number}"
        which, hit = rng.choice((signal.SIGKILL, signal.SIGTERM)), True
        job = _start(bench, workdir, "--restarts=4")
        with killed_at_last(job):
            if number:  # the first run is the undisturbed one
                wait_until(lambda workdir=workdir: len(steps(workdir)) > 0, 120)
                time.sleep(rng.uniform(0.0, 1.0))
                children = _children(job.pid)[:: rng.choice((1, -1))][:1]
                hit = bool(children)
                for pid in children:
                    os.kill(pid, which)
            _, error = job.communicate(timeout=240)
        if number and which == signal.SIGTERM and job.returncode == 143:
            job = _start(bench, workdir)
            with killed_at_last(job):
                _, error = job.communicate(timeout=240)
        if not number:
            assert job.returncode == 0, error
            expected = final_bytes(workdir)
            continue
        if not hit:  # the run was over
            continue
        same = job.returncode == 0 and final_bytes(workdir) == expected
        outcome.note(same, f"{job.returncode} {error[-500:]}", wrong=job.returncode == 0)
    return outcome


def disturbed(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """A disk that is full, or a clock that jumps, for both or for one: they end together."""
    outcome = Outcome("two processes, a full disk or a jumping clock")
    kinds = (_full_for_both, _clock_of_both, _limit_for_one, _clock_of_one)
    for number in range(count):
        kind, workdir = kinds[number % len(kinds)], bench.folder / f"both-{number}"
        problem = kind(bench, workdir, rng)
        outcome.note(not problem, f"{kind.__name__}: {problem}")
    return outcome


def _full_for_both(bench: Bench, workdir: Path, rng: random.Random) -> str:
    with mounted("tmpfs", workdir, "-t", "tmpfs", "-o", "size=40m") as disk:
        job = _start(bench, disk / "run", more=("--config.checkpoint.keep=100",))
        return _ends(job, disk / "run", "No space left on device")


def _limit_for_one(bench: Bench, workdir: Path, rng: random.Random) -> str:
    before = f"prlimit --fsize={rng.choice((1 << 12, 1 << 16, 1 << 18))}"
    job = _start(bench, workdir, env=_for_one(bench, before, rng))
    return _ends(job, workdir, "could not be written")


def _ends(job: subprocess.Popen, workdir: Path, reason: str) -> str:
    with killed_at_last(job):
        _, error = job.communicate(timeout=240)
    whole = not any("damaged" in line for line in listing(workdir)[1])
    fatal = any(word in error for word in FATAL)
    fine = job.returncode == 1 and whole and reason in error and not fatal
    return "" if fine else f"{job.returncode} {error[-800:]}"


def _clock_of_both(bench: Bench, workdir: Path, rng: random.Random) -> str:
    clock = {"LD_PRELOAD": str(clock_library(bench.folder)), "AHEAD": str(workdir) + ".ahead"}
    return _jumps(bench, workdir, bench.environment | clock)


def _clock_of_one(bench: Bench, workdir: Path, rng: random.Random) -> str:
    before = f"env LD_PRELOAD={clock_library(bench.folder)} AHEAD={workdir}.ahead"
    return _jumps(bench, workdir, _for_one(bench, before, rng))


def _jumps(bench: Bench, workdir: Path, environment: dict[str, str]) -> str:
    """XLA's heartbeats go by the clock on the wall, and it may end all; then all are started again,
    as by a cluster's manager."""
    job = _start(bench, workdir, "--restarts=1", env=environment)
    with killed_at_last(job):
        wait_until(lambda: len(steps(workdir)) > 0, 120)
        Path(f"{workdir}.ahead").touch()
        _, error = job.communicate(timeout=240)
    fine = job.returncode == 0 and listing(workdir)[0] == 0 and STEPS in steps(workdir)
    return "" if fine else f"{job.returncode} {error[-800:]}"


def _for_one(bench: Bench, before: str, rng: random.Random) -> dict[str, str]:
    return bench.environment | {"BEFORE": before, "FAULTY": rng.choice("01")}


def _start(bench: Bench, workdir, *options: str, more=(), env=None) -> subprocess.Popen:
    if env and "BEFORE" in env:
        options = (*options, f"--program={Path(__file__).with_name('one_of_two.py')}")
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
