"""Signals at random moments and at named ones."""

import random
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

from tests.faults.processes import FATAL, Bench, Outcome, killed_at_last, steps, wait_until

_LEAVE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def at_random_moments(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """kill -9, SIGTERM, SIGINT twice, SIGHUP: four in each run, which ends as if undisturbed."""
    outcome, per_run = Outcome("signals at random moments of training"), 4
    for number in range(-(-count // per_run)):
        workdir = bench.folder / f"random-{number}"
        for _ in range(per_run):
            process = bench.start(*bench.flags(workdir))
            with killed_at_last(process):
                time.sleep(rng.uniform(0.1, 9.0) ** rng.choice((0.7, 1.0)))
                _disturb(process, rng.choice(("kill", "term", "twice", "hangup")), rng, outcome)
        bench.finish(outcome, workdir, f"run {number}", per_run)
    return outcome


def _disturb(process: subprocess.Popen, how: str, rng: random.Random, outcome: Outcome) -> None:
    first = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "twice": signal.SIGINT}
    process.send_signal(first.get(how, signal.SIGHUP))
    if how == "twice":
        time.sleep(rng.uniform(0.0, 0.3))
        process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    if any(word in error for word in FATAL) or process.returncode == -signal.SIGSEGV:
        outcome.note(False, f"{how}: {process.returncode} {error[-500:]}")


def in_a_save(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """kill -9 once a checkpoint has appeared under its first name, or has just been sealed."""
    outcome, per_run = Outcome("kill -9 within a save"), 4
    for number in range(-(-count // per_run)):
        workdir = bench.folder / f"save-{number}"
        folder = workdir / "checkpoints"
        for _ in range(per_run):
            process = bench.start(*bench.flags(workdir))
            with killed_at_last(process):
                at = max(steps(workdir), default=0) + 5 * rng.randint(1, 3)
                pattern = rng.choice(
                    (f"{at}.unsealed*", f"{at}.unsealed/manifest.json*", str(at), "*.removing")
                )
                seen = partial(_ended_or_seen, process, folder, pattern)
                wait_until(seen, 60)
                time.sleep(rng.choice((0.0, 0.0, 0.003)))
        bench.finish(outcome, workdir, f"run {number}", per_run)
    return outcome


def _ended_or_seen(process: subprocess.Popen, folder: Path, pattern: str) -> bool:
    return process.poll() is not None or any(folder.glob(pattern))


def outside_of_training(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """In eval, report and while the first step compiles: the signal's code within 5 seconds."""
    outcome = Outcome("signals in eval, report and compilation")
    workdir = bench.folder / "evaluated"
    code, error = bench.run(*bench.flags(workdir, "--config.num_steps=10"))
    assert code == 0, error
    (workdir / "checkpoints" / "status.json").unlink()  # so that evaluation goes on to wait
    cold = bench.environment | {"JAX_COMPILATION_CACHE_DIR": ""}
    for number in range(count):
        mode = ("eval", "report", "compile")[number % 3]
        if mode == "compile":
            fresh = bench.flags(bench.folder / f"compiled-{number}")
            process = bench.start(*fresh, env=cold)
        else:
            process = bench.start(f"--mode={mode}", f"--workdir={workdir}")
        with killed_at_last(process):
            time.sleep(rng.uniform(0.1, 7.0))
            which, start = rng.choice(_LEAVE), time.monotonic()
            process.send_signal(which)
            try:
                _, error = process.communicate(timeout=15)
            except subprocess.TimeoutExpired:
                error = "it does not leave"
            took, code = time.monotonic() - start, process.returncode
            ended = mode == "report" and code == 0  # it was done
            right = code in (128 + which, 130, -which) or ended
            fatal = any(word in error for word in FATAL) and code != -which
            outcome.note(
                right and took < 5 and not fatal,
                f"{mode} {which}: {code} after {took:.1f} s {error}",
            )
    return outcome
