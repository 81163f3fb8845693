"""Disks: power cuts, full ones, limits on files; and output that nobody reads."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
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

    The writer stands still while the disk is copied. Sealed was what the folder showed in the last
    look before that, so that the rename and its sync are over.
    """
    outcome = Outcome("power cuts while checkpoints are saved")
    if os.getuid() or not shutil.which("mkfs.ext4"):
        raise Skipped("it needs the right to mount, and mkfs.ext4")
    for keep in (1, 5):
        cuts = count // 2
        image = bench.folder / f"disk-{keep}.img"
        with image.open("wb") as file:
            file.truncate(256 << 20)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
        copies = []
        with mounted(image, bench.folder / f"disk-{keep}", "-o", "loop") as disk:
            more = ("--config.num_steps=100000", f"--config.checkpoint.keep={keep}")
            process = bench.start(*bench.flags(disk / "run", *more))
            with killed_at_last(process):
                wait_until(lambda disk=disk: len(steps(disk / "run")) > 0, 120)
                for number in range(cuts):
                    time.sleep(rng.uniform(0.1, 1.0))
                    sealed = max(steps(disk / "run"))
                    time.sleep(0.1)  # in which the sync of its folder is over
                    process.send_signal(signal.SIGSTOP)
                    copy = bench.folder / f"cut-{keep}-{number}.img"
                    subprocess.run(["cp", "--sparse=always", str(image), str(copy)], check=True)
                    process.send_signal(signal.SIGCONT)
                    copies.append((copy, sealed))
        for copy, sealed in copies:
            with mounted(copy, bench.folder / "after", "-o", "loop") as after:
                _, lines, _ = listing(after / "run")
                whole = [int(line.split()[0]) for line in lines if line.endswith(" whole")]
                damaged = [line for line in lines if "damaged" in line]
                config = (after / "run" / "config.json").stat().st_size > 0
                ok = bool(whole) and max(whole) >= sealed and not damaged and config
                outcome.note(ok, f"keep={keep}, sealed {sealed}: {lines}")
            copy.unlink()
        image.unlink()
    return outcome


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
            kept = shutil.copytree(disk / "run", bench.folder / f"room-{number}")
        outcome.note(code == 1 and line and whole, f"{size} MB: {code} {error} {lines}")
        bench.finish(outcome, kept, f"room after {size} MB", 1)
    return outcome


def limited(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """RLIMIT_FSIZE, as of a quota: no traceback, and the run goes on without the limit."""
    outcome = Outcome("a limit on the size of files")
    for number in range(count):
        workdir = bench.folder / f"limited-{number}"
        limit = rng.randint(1 << 12, 4 << 20)
        code, error = bench.run(*bench.flags(workdir), before=("prlimit", f"--fsize={limit}"))
        if code not in (0, 1) or any(word in error for word in FATAL):
            outcome.note(False, f"{limit} bytes: {code} {error[-300:]}")
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
