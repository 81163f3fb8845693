"""What runs beside a run, and what becomes of one that diverges."""

import random
import re
import signal
import statistics
import subprocess
import time
from pathlib import Path

from tests.faults.processes import (
    FATAL,
    Bench,
    Outcome,
    final_bytes,
    killed_at_last,
    listing,
    preloaded,
    steps,
    wait_until,
)

_ROOM = 0.05  # by which the resident memory may grow in a long run


def two_trainers(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """The second is refused in a line, and the first does not notice."""
    outcome = Outcome("two trainers in one folder")
    for number in range(count):
        workdir = bench.folder / f"twice-{number}"
        first = bench.start(*bench.flags(workdir))
        with killed_at_last(first):
            wait_until(lambda workdir=workdir: (workdir / "checkpoints/writer.lock").exists())
            code, error = bench.run(*bench.flags(workdir, "--config.optim.learning_rate=0.5"))
            _, own = first.communicate(timeout=200)
        refused = code == 1 and f"Process {first.pid} is writing to" in error
        done = "already ended" in error or code == 0  # the first was through
        same = first.returncode == 0 and final_bytes(workdir) == bench.undisturbed()
        outcome.note((refused or done) and same and not own, f"{code} {error} {own}")
    return outcome


def evaluation(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """`count` saves with keep=1 beside two evaluations: no crash and no false line."""
    outcome = Outcome("evaluation beside training, keep=1")
    workdir = bench.folder / "followed"
    more = (f"--config.num_steps={count}", "--config.checkpoint.every_steps=1")
    trainer = bench.start(*bench.flags(workdir, *more, "--config.checkpoint.keep=1"))
    poll = "--config.eval.poll_seconds=0.02"
    followers = [
        bench.start("--mode=eval", f"--workdir={workdir}", poll, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    with killed_at_last(trainer), killed_at_last(followers[0]), killed_at_last(followers[1]):
        for follower in followers:
            out, error = follower.communicate(timeout=1200)
            lines = [line for line in out.splitlines() if not line.startswith("Waiting for")]
            wrong = [line for line in lines if not re.search(r"precision @ 1 = 0\.\d{3}$", line)]
            outcome.note(follower.returncode == 0 and not error, f"it ended with {error[-300:]}")
            for line in lines:
                outcome.note(line not in wrong, line, wrong=True)
        trainer.communicate(timeout=60)
    outcome.note(trainer.returncode == 0, f"training ended with {trainer.returncode}")
    return outcome


def divergence(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """With keep=1 and many checkpoints: exit code 3, a good one is left, and it can be used."""
    outcome, rates = Outcome("divergence with keep=1"), (1.0, 0.3, 3.0, 1e9)
    for number in range(count):
        workdir, rate = bench.folder / f"diverged-{number}", rates[number % len(rates)]
        every = 1 if rate >= 1 else 50  # at 0.3, the network dies after some thousand steps
        more = ("--config.checkpoint.keep=1", f"--config.checkpoint.every_steps={every}")
        long = "--config.num_steps=20000"
        code, error = bench.run(
            *bench.flags(workdir, *more, long, f"--config.optim.learning_rate={rate}")
        )
        good = re.search(r"--from_step=(\d+) goes on", error)
        said = code == 3 and error.count("\n") == 1
        _, lines, _ = listing(workdir)
        # At a rate of 1e9 no step is ever good.
        whole = f"{good[1]} whole" in lines if good else rate > 1e6
        again, line = bench.run("--mode=eval", f"--workdir={workdir}")
        outcome.note(
            said and whole and again == 3 and line == error,
            f"{rate}: {code} {error} {lines} {line}",
        )
    return outcome


def clocks(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """The clock on the wall jumps by an hour again and again: the run does not notice."""
    outcome = Outcome("a clock that jumps by an hour")
    library, mark = clock_library(bench.folder), bench.folder / "ahead"
    for number in range(count):
        workdir = bench.folder / f"clock-{number}"
        environment = bench.environment | {"LD_PRELOAD": str(library), "AHEAD": str(mark)}
        process = bench.start(*bench.flags(workdir), env=environment)
        with killed_at_last(process):
            wait_until(lambda workdir=workdir: bool(steps(workdir)), 120)
            while process.poll() is None:
                mark.touch()
                time.sleep(rng.uniform(0.005, 0.05))
                mark.unlink()
                time.sleep(rng.uniform(0.005, 0.05))
            _, error = process.communicate()
        same = process.returncode == 0 and final_bytes(workdir) == bench.undisturbed()
        outcome.note(same and not error, f"{process.returncode} {error[-300:]}")
    return outcome


def clock_library(folder: Path) -> Path:
    return preloaded(
        folder,
        "clock",
        "#include <stdlib.h>\n#include <time.h>\n"
        "#include <unistd.h>\n#include <sys/time.h>\n"
        'static int ahead(void) { char *p = getenv("AHEAD");'
        " return p && access(p, F_OK) == 0 ? 3600 : 0; }\n"
        "int clock_gettime(clockid_t id, struct timespec *t) {\n"
        "  static int (*next)(clockid_t, struct timespec *);\n"
        '  if (!next) next = dlsym(RTLD_NEXT, "clock_gettime");\n'
        "  int r = next(id, t); if (id == CLOCK_REALTIME) t->tv_sec += ahead(); return r; }\n"
        "int gettimeofday(struct timeval *t, void *z) {\n"
        "  struct timespec s; clock_gettime(CLOCK_REALTIME, &s);\n"
        "  t->tv_sec = s.tv_sec; t->tv_usec = s.tv_nsec / 1000; return 0; }\n"
        "time_t time(time_t *t) { struct timespec s; clock_gettime(CLOCK_REALTIME, &s);"
        " if (t) *t = s.tv_sec; return s.tv_sec; }\n",
    )


def endurance(bench: Bench, rng: random.Random, seconds: int) -> Outcome:
    """All summaries at every step: memory, threads and handles stay as they are after a fifth of
    the time, and SIGTERM is answered within 3 seconds. What is compared are medians of the first
    and of the last quarter of the rest, because what waits to be written comes and goes."""
    outcome = Outcome(f"{seconds} s with all summaries at every step")
    every = [f"--config.summaries.{name}=1" for name in ("scalars", "images", "histograms")]
    flags = [*bench.flags(bench.folder / "long"), *every, "--config.num_steps=10000000"]
    process = bench.start(*flags, "--config.checkpoint.every_steps=1000")
    with killed_at_last(process):
        warm = max(20.0, seconds / 5)
        time.sleep(warm)
        used = []
        for _ in range(40):
            used.append(_used(process.pid))
            time.sleep((seconds - warm) / 40)
        for name in used[0]:
            before = statistics.median(each[name] for each in used[:10])
            after = statistics.median(each[name] for each in used[-10:])
            room = before * _ROOM if name == "kB" else 8  # pools of threads fill up late
            outcome.note(after <= before + room, f"{name}: {[each[name] for each in used]}")
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=120)
        took = time.monotonic() - start
    ok = process.returncode == 143 and took < 3 and not any(word in error for word in FATAL)
    outcome.note(ok, f"SIGTERM: {process.returncode} after {took:.1f} s {error[-300:]}")
    return outcome


def _used(pid: int) -> dict[str, int]:
    status = Path(f"/proc/{pid}/status").read_text()
    return {
        "kB": int(re.search(r"VmRSS:\s+(\d+)", status)[1]),
        "threads": int(re.search(r"Threads:\s+(\d+)", status)[1]),
        "handles": len(list(Path(f"/proc/{pid}/fd").iterdir())),
    }
