"""Real runs of main.py on a tiny dataset: started, disturbed, and compared by their parameters."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
MAIN = [sys.executable, str(ROOT / "main.py")]
STEPS = 60
FATAL = ("Traceback", "Segmentation fault", "core dumped")


class Skipped(Exception):
    """This machine does not allow it; the reason."""


class Outcome:
    """What came of one kind of fault."""

    def __init__(self, fault: str):
        self.fault = fault
        self.tried = self.recovered = self.lost = self.wrong = 0
        self.notes: list[str] = []

    def note(self, ok: bool, what: str = "", *, wrong: bool = False) -> None:
        """One try. `wrong`: a result that looks right and is not; else what is not ok is lost."""
        self.tried += 1
        self.recovered += ok
        self.wrong += not ok and wrong
        self.lost += not ok and not wrong
        if not ok:
            self.notes.append(what)

    def row(self) -> dict[str, str | int]:
        return {
            "fault": self.fault,
            "times tried": self.tried,
            "recovered": self.recovered,
            "lost": self.lost,
            "silently wrong": self.wrong,
        }

    @property
    def good(self) -> bool:
        return 0 < self.tried == self.recovered


class Bench:
    """A folder with the tiny dataset, a cache of compiled steps, and the undisturbed run."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.data = folder / "data"
        _write_dataset(self.data / "cifar-10-batches-bin")
        self.environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self._undisturbed: dict[tuple[str, ...], list[bytes]] = {}

    def flags(self, workdir: Path, *more: str) -> list[str]:
        """Flags for a run of 60 steps of 16, a checkpoint after every 5."""
        return [
            f"--workdir={workdir}",
            f"--config.data.dir={self.data}",
            "--config.batch_size=16",
            f"--config.num_steps={STEPS}",
            "--config.checkpoint.every_steps=5",
            "--config.eval.batch_size=16",
            *(f"--config.summaries.{name}=0" for name in ("scalars", "images", "histograms")),
            *more,
        ]

    def start(self, *flags: str, before: Sequence[str] = (), **options) -> subprocess.Popen:
        """`before` stands in front of the command, as prlimit does."""
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(
            [*before, *MAIN, *flags],
            env=options.pop("env", self.environment),
            **(pipes | options),
        )

    def run(self, *flags: str, seconds: float = 300, **options) -> tuple[int, str]:
        """The exit code and stderr of a run that nothing disturbs any more."""
        process = self.start(*flags, **options)
        with killed_at_last(process):
            _, error = process.communicate(timeout=seconds)
        return process.returncode, error or ""

    def undisturbed(self, *more: str) -> list[bytes]:
        if more not in self._undisturbed:
            workdir = self.folder / f"undisturbed-{len(self._undisturbed)}"
            code, error = self.run(*self.flags(workdir, *more))
            assert code == 0, error
            self._undisturbed[more] = final_bytes(workdir)
        return self._undisturbed[more]

    def finish(self, outcome: Outcome, workdir: Path, what: str, tries: int, *more: str) -> None:
        """Starts the same command once more, to the end, and compares: `tries` faults are in it.

        Once, because a run that ends at its second try has lost its user a night.
        """
        code, error = self.run(*self.flags(workdir, *more))
        ended = code == 0 and not error
        same = ended and final_bytes(workdir) == self.undisturbed(*more)
        for _ in range(tries):
            outcome.note(same, f"{what}: exit code {code}, {error[-300:]}", wrong=ended)


@contextlib.contextmanager
def killed_at_last(process: subprocess.Popen) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait()


def final_bytes(workdir: Path) -> list[bytes]:
    """Of every array in the last checkpoint; Orbax's files differ from run to run."""
    import jax
    import orbax.checkpoint as ocp

    path = workdir / "checkpoints" / str(STEPS)
    with ocp.PyTreeCheckpointer() as reader:  # whatever number of processes has written it
        shape = reader.metadata(path).item_metadata.tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shape)
        tree = reader.restore(path, restore_args=plain)
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def listing(workdir: Path) -> tuple[int, list[str], str]:
    """What `python -m cifar_jax.workdir` says: exit code, lines, stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "cifar_jax.workdir", str(workdir)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


def preloaded(folder: Path, name: str, source: str) -> Path:
    """A library for LD_PRELOAD, made of C `source`, whose functions stand before the system's."""
    if not shutil.which("gcc"):
        raise Skipped(f"there is no gcc to make {name}.so")
    code, library = folder / f"{name}.c", folder / f"{name}.so"
    code.write_text(f"#define _GNU_SOURCE\n#include <dlfcn.h>\n{source}")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, code, "-ldl"], check=True)
    return library


def steps(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def wait_until(condition, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


def _write_dataset(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"):
        records = rng.integers(0, 256, (32, 3073), np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n")
