"""Disks: power cuts, full ones, limits on files; and output that nobody reads."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.processes import (
    FATAL,
    Bench,
    Outcome,
    Skipped,
    final_bytes,
    killed_at_last,
    listing,
    steps,
    wait_until,
)


@contextlib.contextmanager
def mounted(source: Path | str, target: Path, *options: str) -> Iterator[Path]:
    target.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", *options, str(source), str(target)], capture_output=True, text=True
    )
    if done.returncode:
        raise Skipped(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield target
    finally:
        subprocess.run(["umount", "-l", str(target)], check=False)


def power_cuts(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """What had reached the disk at some moment of a run, looked at after its journal was replayed.

    Of every eighth copy, the same command goes on.
    """
    outcome = Outcome("power cuts while checkpoints are saved")
    if os.getuid() or not shutil.which("mkfs.ext4"):
        raise Skipped("it needs the right to mount, and mkfs.ext4")
    for keep in (1, 5):
        image = bench.folder / f"disk-{keep}.img"
        with image.open("wb") as file:
            file.truncate(256 << 20)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
        more = ("--config.num_steps=100000", f"--config.checkpoint.keep={keep}")
        cuts = []
        with mounted(image, bench.folder / f"disk-{keep}", "-o", "loop") as disk:
            process = bench.start(*bench.flags(disk / "run", *more))
            with killed_at_last(process):
                wait_until(lambda disk=disk: len(steps(disk / "run")) > 0, 120)
                for number in range(count // 2):
                    copy = bench.folder / f"cut-{keep}-{number}.img"
                    cuts.append((copy, _cut(process, disk / "run", image, copy, rng)))
        for number, (copy, sealed) in enumerate(cuts):
            with mounted(copy, bench.folder / "after", "-o", "loop") as after:
                problem = _after_cut(after / "run", sealed)
                if not problem and number % 8 == 0:
                    problem = _goes_on(bench, after / "run", sealed, f"{more[1]}")
                outcome.note(not problem, f"keep={keep}, sealed {sealed}: {problem}")
            copy.unlink()
        image.unlink()
    return outcome


def _cut(process: subprocess.Popen, run: Path, image: Path, copy: Path, rng: random.Random) -> int:
    """Copies the disk at a random moment; returns the last step that was sealed by then."""
    time.sleep(rng.uniform(0.0, 1.0))
    sealed = max(steps(run))
    # Saves come one after the other: with the next one, the sync of this one's name is over.
    _wait_for(lambda: any(_step_of(path) > sealed for path in (run / "checkpoints").iterdir()))
    time.sleep(rng.uniform(0.0, 0.5) ** 2)  # mostly within that save
    process.send_signal(signal.SIGSTOP)
    while True:  # the kernel may still write for the writer: that would be no moment, but two
        written = image.stat().st_mtime_ns
        subprocess.run(["cp", "--sparse=always", str(image), str(copy)], check=True)
        if image.stat().st_mtime_ns == written:
            break
    process.send_signal(signal.SIGCONT)
    return sealed


def _wait_for(condition: Callable[[], bool]) -> None:
    if not wait_until(condition, 120):
        raise TimeoutError("the run stands still")


def _step_of(path: Path) -> int:
    step = path.name.partition(".")[0]
    return int(step) if step.isdigit() else -1


def _after_cut(run: Path, sealed: int) -> str:
    _, lines, _ = listing(run)
    whole = [int(line.split()[0]) for line in lines if line.endswith(" whole")]
    damaged = any("damaged" in line for line in lines)
    config = (run / "config.json").stat().st_size > 0
    return "" if max(whole, default=-1) >= sealed and config and not damaged else f"{lines}"


def _goes_on(bench: Bench, run: Path, sealed: int, keep: str) -> str:
    newest = max(steps(run))
    more = (keep, f"--config.num_steps={newest + 7}")
    process = bench.start(*bench.flags(run, *more), stdout=subprocess.PIPE)
    with killed_at_last(process):
        out, error = process.communicate(timeout=240)
    resumed = newest >= sealed and f"Resuming from step {newest} " in out
    whole = listing(run)[0] == 0 and max(steps(run)) == newest + 7
    fine = process.returncode == 0 and not error and resumed and whole
    return "" if fine else f"it does not go on: {process.returncode} {error} {out[-300:]}"


def full(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """A disk of some megabytes that fills up, or a limit on the size of files: one line, exit code
    1, earlier checkpoints whole; and the undisturbed bytes once there is room."""
    outcome = Outcome("a full disk")
    for number in range(count):
        more = ("--config.checkpoint.keep=100",)
        size = rng.randint(30, 60)
        workdir = bench.folder / f"full-{number}"
        with mounted("tmpfs", workdir, "-t", "tmpfs", "-o", f"size={size}m") as disk:
            code, error = bench.run(*bench.flags(disk / "run", *more))
            line = error.count("\n") == 1 and "No space left on device" in error
            _, lines, _ = listing(disk / "run")
            whole = bool(lines) and not any("damaged" in line for line in lines)
            if code != 1 or not line or not whole:
                outcome.note(False, f"{size} MB: {code} {error} {lines}")
                continue
            room = ["mount", "-o", "remount,size=1g", str(disk)]
            subprocess.run(room, check=True)
            bench.finish(outcome, disk / "run", f"room after {size} MB", 1, *more)
    return outcome


def limited(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """RLIMIT_FSIZE, as of a quota: no traceback, and the run goes on without the limit."""
    outcome = Outcome("a limit on the size of files")
    for number in range(count):
        workdir = bench.folder / f"limited-{number}"
        limit = rng.randint(1 << 12, 4 << 20)
        code, error = bench.run(*bench.flags(workdir), before=("prlimit", f"--fsize={limit}"))
        line = error.count("\n") == 1 and not any(word in error for word in FATAL)
        if code not in (0, 1) or (code == 1 and not line):
            outcome.note(False, f"{limit} bytes: {code} {error[-300:]}")
            continue
        if any("damaged" in line for line in listing(workdir)[1]):
            outcome.note(False, f"{limit} bytes: {listing(workdir)[1]}")
            continue
        bench.finish(outcome, workdir, f"after {limit} bytes", 1)
    return outcome


def without_output(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """stdout closed at the start, closed by its reader, or full: it costs output alone."""
    outcome = Outcome("stdout closed or full")
    for number in range(count):
        workdir, kind = bench.folder / f"silent-{number}", number % 3
        closed = ("sh", "-c", 'exec "$@" >&-', "sh")
        full_disk = os.open("/dev/full", os.O_WRONLY)
        if kind == 0:
            process = bench.start(*bench.flags(workdir), stdout=subprocess.PIPE)
            assert process.stdout
            process.stdout.readline()
            process.stdout.close()
        elif kind == 1:
            process = bench.start(*bench.flags(workdir), stdout=full_disk)
        else:
            process = bench.start(*bench.flags(workdir), before=closed)
        with killed_at_last(process):
            _, error = process.communicate(timeout=200) if kind else (None, process.stderr.read())
            code = process.wait()
        ok = code == 0 and error == "" and final_bytes(workdir) == bench.undisturbed()
        outcome.note(ok, f"kind {kind}: {code} {error[-300:]}")
    return outcome
