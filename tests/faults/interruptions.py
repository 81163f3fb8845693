"""Signals at random moments and at named ones."""

import random
import shutil
import signal
import socket
import subprocess
import time
from functools import partial
from pathlib import Path

from tests.faults.processes import FATAL, Bench, Outcome, killed_at_last, steps, wait_until

_PER_RUN = 4  # disturbances
_LEAVE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def at_random_moments(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """kill -9, SIGTERM, SIGINT twice, SIGHUP: four in each run, which ends as if undisturbed.

    A run that was through before the signal came is no try, and is followed by a new one: moments
    are drawn from the time that a whole run takes here.
    """
    outcome = Outcome("signals at random moments of training")
    number, start = 0, time.monotonic()
    code, error = bench.run(*bench.flags(bench.folder / "timed"))
    assert code == 0, error
    whole = time.monotonic() - start
    while outcome.tried < count:
        workdir, met = bench.folder / f"random-{number}", 0
        for _ in range(min(_PER_RUN, count - outcome.tried)):
            process = bench.start(*bench.flags(workdir))
            with killed_at_last(process):
                time.sleep(0.1 + whole * rng.uniform(0.0, 0.9))
                if process.poll() is None:
                    how = rng.choice(("kill", "term", "twice", "hangup"))
                    problem = _disturb(process, how, rng)
                    if problem:
                        outcome.note(False, f"run {number}, {how}: {problem}")
                    met += not problem
        bench.finish(outcome, workdir, f"run {number}", met)
        shutil.rmtree(workdir, ignore_errors=True)  # fifty of them are some gigabytes
        number += 1
    return outcome


def _disturb(process: subprocess.Popen, how: str, rng: random.Random) -> str:
    """What is wrong with the way in which it leaves."""
    which = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "twice": signal.SIGINT}
    first = which.get(how, signal.SIGHUP)
    process.send_signal(first)
    if how == "twice":
        time.sleep(rng.uniform(0.0, 0.3))
        process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    code = process.returncode
    if code == -first:  # kill -9, or one that came before Python had run a line of ours
        return ""
    # It may have been within its last lines, after the last checkpoint.
    right = code == 128 + first or code == 0 or (how == "twice" and code == 130)
    fatal = any(word in error for word in FATAL)
    said = code == 0 or signal.Signals(first).name in error
    return "" if right and said and not fatal else f"{code} {error[-500:]}"


def in_a_save(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """kill -9 and SIGTERM where a checkpoint has just appeared under its first name, has its
    manifest, is sealed, or pushes out an older one."""
    outcome = Outcome("kill -9 and SIGTERM within a save")
    number, more = 0, ("--config.checkpoint.keep=2",)
    while outcome.tried < count:
        workdir, met = bench.folder / f"save-{number}", 0
        folder = workdir / "checkpoints"
        for _ in range(min(_PER_RUN, count - outcome.tried)):
            process = bench.start(*bench.flags(workdir, *more))
            with killed_at_last(process):
                at = max(steps(workdir), default=0) + 5 * rng.randint(1, 3)
                pattern = rng.choice(
                    (f"{at}.unsealed*", f"{at}.unsealed/manifest.json*", str(at), "*.removing")
                )
                wait_until(partial(_ended_or_seen, process, folder, pattern), 60)
                time.sleep(rng.choice((0.0, 0.0, 0.003)))
                if process.poll() is None:
                    problem = _disturb(process, rng.choice(("kill", "kill", "term")), rng)
                    if problem:
                        outcome.note(False, f"run {number}, {pattern}: {problem}")
                    met += not problem
        bench.finish(outcome, workdir, f"run {number}", met, *more)
        shutil.rmtree(workdir, ignore_errors=True)
        number += 1
    return outcome


def _ended_or_seen(process: subprocess.Popen, folder: Path, pattern: str) -> bool:
    return process.poll() is not None or any(folder.glob(pattern))


def outside_of_training(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """In eval, report, a download and while the first step compiles: a line that names the signal,
    and its code within 5 seconds."""
    outcome = Outcome("signals in eval, report, download and compilation")
    workdir = bench.folder / "evaluated"
    code, error = bench.run(*bench.flags(workdir, "--config.num_steps=10"))
    assert code == 0, error
    (workdir / "checkpoints" / "status.json").unlink()  # so that evaluation goes on to wait
    with socket.create_server(("127.0.0.1", 0), backlog=200) as silent:  # a network that hangs
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for number in range(count):
            mode = ("eval", "report", "compile", "download")[number % 4]
            fresh = bench.flags(bench.folder / f"outside-{number}")
            if mode == "compile":
                cold = bench.environment | {"JAX_COMPILATION_CACHE_DIR": ""}
                process = bench.start(*fresh, env=cold)
            elif mode == "download":
                away = bench.environment | {"https_proxy": proxy, "http_proxy": proxy}
                process = bench.start(
                    *fresh, f"--config.data.dir={bench.folder / 'away'}", env=away
                )
            else:
                process = bench.start(f"--mode={mode}", f"--workdir={workdir}")
            with killed_at_last(process):
                problem = _stop_within(process, 5.0, rng, mode == "report")
            outcome.note(not problem, f"{mode}: {problem}")
    return outcome


def _stop_within(
    process: subprocess.Popen, seconds: float, rng: random.Random, ended_by_itself: bool
) -> str:
    """What is wrong with the way in which it leaves after a signal at a random moment."""
    delay, which = rng.uniform(0.1, 7.0), rng.choice(_LEAVE)
    time.sleep(delay)
    start = time.monotonic()
    process.send_signal(which)
    try:
        _, error = process.communicate(timeout=15)
    except subprocess.TimeoutExpired:
        return f"{which.name} after {delay:.1f} s: it does not leave"
    took, code = time.monotonic() - start, process.returncode
    if code == -which and not error:  # before Python had run a line of ours, or after the last
        return "" if delay < 2 or ended_by_itself else f"{which.name} after {delay:.1f} s: no line"
    done = code == 0 or "Cannot download" in error  # it came with the last breath
    right = done or (code == 128 + which and which.name in error)
    fatal = any(word in error for word in FATAL)
    if right and took < seconds and not fatal:
        return ""
    return f"{which.name} after {delay:.1f} s: {code} after another {took:.1f} s {error}"
