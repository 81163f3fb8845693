"""Bytes that change on disk, files that vanish, folders that are exchanged, what cannot be read."""

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.faults.processes import (
    Bench,
    Outcome,
    Skipped,
    final_bytes,
    killed_at_last,
    listing,
    preloaded,
    wait_until,
)


def of_files(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """Each found by the listing, which names the step, and nothing is deleted for it."""
    outcome = Outcome("flips, truncations, swaps, deletions, manifests")
    source = bench.folder / "sound"
    code, error = bench.run(*bench.flags(source, "--config.num_steps=15"))
    assert code == 0, error
    workdir = bench.folder / "harmed"
    for number in range(count):
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(source, workdir)
        path = workdir / "checkpoints" / "15"
        files = sorted(file for file in path.rglob("*") if file.is_file())
        harm = _HARMS[number % len(_HARMS)]
        harm(path, files[rng.randrange(len(files))], rng)
        before = _names(workdir)
        code, lines, error = listing(workdir)
        line = next((line for line in lines if line.startswith("15 ")), "")
        found = "damaged" in line and code == 1 and error.count("\n") == 1
        kept = _names(workdir) == before
        outcome.note(found and kept, f"{harm.__name__}: {code} {lines} {error}", wrong=not found)
    return outcome


def of_runs(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """The run passes over the damaged one, keeps it, and ends with the undisturbed bytes."""
    outcome = Outcome("a run over a damaged checkpoint")
    for number in range(count):
        workdir = bench.folder / f"harmed-{number}"
        code, error = bench.run(*bench.flags(workdir, "--config.num_steps=20"))
        assert code == 0, error
        path = workdir / "checkpoints" / "20"
        files = sorted(file for file in path.rglob("*") if file.is_file())
        _HARMS[number % len(_HARMS)](path, files[rng.randrange(len(files))], rng)
        bench.finish(outcome, workdir, f"harm {number}", 1)
        folder = workdir / "checkpoints"
        if not list(folder.glob("*.damaged")):
            outcome.note(False, f"harm {number}: it was not set aside")
    return outcome


def for_the_moment(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """Permissions that are gone for a while: a line, nothing renamed, and nothing lost after."""
    outcome = Outcome("files that may not be read for the moment")
    before: Sequence[str] = ()
    if not os.getuid():  # root may read anything, unless it gives that right away
        before = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
        if not shutil.which(before[0]) or subprocess.run([*before, "true"]).returncode:
            raise Skipped("root reads everything, and setpriv cannot change that here")
    source = _source(bench, "readable", 20)
    for number in range(count):
        workdir = _fresh_copy(source, bench.folder / "unreadable")
        blocked = rng.choice([*_files(workdir, 20), workdir / "checkpoints" / "20"])
        names = _names(workdir)
        blocked.chmod(0)
        code, error = bench.run(*bench.flags(workdir), before=before)
        blocked.chmod(0o755)
        said = code == 1 and "cannot be read" in error and error.count("\n") == 1
        if said and str(blocked) in error and _names(workdir) == names:
            _end(bench, outcome, workdir, number, f"{blocked} was unreadable")
        else:
            outcome.note(False, f"{blocked}: {code} {error}")
    return outcome


def bad_sectors(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """Reads of one file that end with EIO: the same as without permission."""
    outcome = Outcome("files that the disk does not give")
    library = _library_of_bad_sectors(bench.folder)
    source = _source(bench, "on-good-sectors", 20)
    for number in range(count):
        workdir = _fresh_copy(source, bench.folder / "on-bad-sectors")
        bad = rng.choice([file for file in _files(workdir, 20) if file.stat().st_size])
        environment = bench.environment | {"LD_PRELOAD": str(library), "BAD": str(bad)}
        names = _names(workdir)
        code, error = bench.run(*bench.flags(workdir), env=environment)
        said = code == 1 and error.count("\n") == 1 and "Input/output error" in error
        if said and str(bad) in error and _names(workdir) == names:
            _end(bench, outcome, workdir, number, f"{bad} had bad sectors")
        else:
            outcome.note(False, f"{bad}: {code} {error}")
    return outcome


def of_all(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """No checkpoint is whole: the run asks for --restart, and renames what it then passes over."""
    outcome = Outcome("all checkpoints damaged")
    source = _source(bench, "sound-for-all", 20)
    for _ in range(count):
        workdir = _fresh_copy(source, bench.folder / "all-harmed")
        folder = workdir / "checkpoints"
        for step in (5, 10, 15, 20):
            rng.choice((_flip, _grow, _delete))(
                folder / str(step), rng.choice(_files(workdir, step)), rng
            )
        names = _names(workdir)
        code, error = bench.run(*bench.flags(workdir))
        asked = code == 1 and "--restart" in error and error.count("\n") == 1
        if not asked or _names(workdir) != names:
            outcome.note(False, f"{code} {error} {_names(workdir)}")
            continue
        code, error = bench.run(*bench.flags(workdir), "--restart")
        aside = len(list(folder.glob("*.superseded"))) == 4
        same = code == 0 and final_bytes(workdir) == bench.undisturbed()
        outcome.note(same and aside, f"--restart: {code} {error}", wrong=code == 0 and not same)
    return outcome


def gone_back(bench: Bench, rng: random.Random, count: int) -> Outcome:
    """--from_step=N, killed on its way: what is later is renamed, and the end is the same."""
    outcome = Outcome("--from_step, interrupted")
    source = _source(bench, "to-go-back-in", 25)
    for _ in range(count):
        workdir = _fresh_copy(source, bench.folder / "went-back")
        step = rng.choice((5, 10, 15, 20))
        process = bench.start(*bench.flags(workdir), f"--from_step={step}")
        with killed_at_last(process):
            first = workdir / "checkpoints" / "25.superseded"
            wait_until(lambda process=process, first=first: process.poll() or first.exists())
            time.sleep(rng.choice((0.0, 0.5, 1.5)))
        later = [s for s in (5, 10, 15, 20, 25) if s > step]
        kept = [s for s in later if (workdir / "checkpoints" / f"{s}.superseded").exists()]
        code, error = bench.run(*bench.flags(workdir))
        same = code == 0 and final_bytes(workdir) == bench.undisturbed()
        outcome.note(same and bool(kept), f"from {step}: {code} {error} {kept}", wrong=code == 0)
    return outcome


def _end(bench: Bench, outcome: Outcome, workdir: Path, number: int, what: str) -> None:
    """Readable again, every fifth run is taken to its end; of the others the listing will do."""
    if number % 5 == 0:
        return bench.finish(outcome, workdir, what, 1)
    code, lines, error = listing(workdir)
    outcome.note(code == 0 and "20 whole" in lines, f"{what}: {code} {lines} {error}")
    return None


def _source(bench: Bench, name: str, num_steps: int) -> Path:
    workdir = bench.folder / name
    code, error = bench.run(*bench.flags(workdir, f"--config.num_steps={num_steps}"))
    assert code == 0, error
    return workdir


def _fresh_copy(source: Path, workdir: Path) -> Path:
    shutil.rmtree(workdir, ignore_errors=True)
    return shutil.copytree(source, workdir)


def _files(workdir: Path, step: int) -> list[Path]:
    path = workdir / "checkpoints" / str(step)
    return sorted(file for file in path.rglob("*") if file.is_file())


def _library_of_bad_sectors(folder: Path) -> Path:
    """Has reads of the file $BAD fail, as those of a bad sector do."""
    return preloaded(
        folder,
        "bad",
        "#include <errno.h>\n#include <stdlib.h>\n"
        "#include <sys/stat.h>\n#include <unistd.h>\n"
        'static int bad(int fd) { struct stat a, b; char *p = getenv("BAD");'
        " return p && !stat(p, &a) && !fstat(fd, &b) && a.st_ino == b.st_ino; }\n"
        "#define FAIL(fd) if (bad(fd)) { errno = EIO; return -1; }\n"
        "ssize_t read(int fd, void *b, size_t n) { FAIL(fd)\n"
        '  return ((ssize_t (*)(int, void *, size_t))dlsym(RTLD_NEXT, "read"))(fd, b, n); }\n'
        "ssize_t pread64(int fd, void *b, size_t n, off64_t o) { FAIL(fd)\n"
        "  return ((ssize_t (*)(int, void *, size_t, off64_t))"
        'dlsym(RTLD_NEXT, "pread64"))(fd, b, n, o); }\n',
    )


def _names(workdir: Path) -> list[str]:
    return sorted(str(path) for path in (workdir / "checkpoints").rglob("*"))


def _flip(path: Path, file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    if not data:
        return _cut(path, file, rng)
    place = rng.randrange(len(data))
    if file.name == "manifest.json":  # in its white space, JSON says the same
        while chr(data[place]).isspace():
            place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    return None


def _cut(path: Path, file: Path, rng: random.Random) -> None:
    size = file.stat().st_size
    if file.name == "manifest.json":
        size -= 2  # beside the last line break
    file.write_bytes(file.read_bytes()[: rng.randrange(size)] if size > 0 else b"more")


def _grow(path: Path, file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes() + rng.randbytes(rng.randint(1, 4096)) + b"x")


def _delete(path: Path, file: Path, rng: random.Random) -> None:
    file.unlink()


def _exchange(path: Path, file: Path, rng: random.Random) -> None:
    other = path.with_name("10")
    path.rename(path.with_name("x"))
    other.rename(path)
    path.with_name("x").rename(other)


def _take_from_another(path: Path, file: Path, rng: random.Random) -> None:
    """A file of the checkpoint before, in the place of this one's."""
    candidates = [f for f in path.with_name("10").rglob("*") if f.is_file() and f.stat().st_size]
    other = rng.choice(candidates)
    while other.read_bytes() == file.read_bytes():
        other = rng.choice(candidates)
    shutil.copy(other, file)


def _manifest(path: Path, file: Path, rng: random.Random) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    names = list(manifest["files"])
    change = rng.randrange(5)
    if change == 0:
        manifest = {}
    elif change == 1:
        manifest["files"] = {names[0]: manifest["files"][names[0]]}
    elif change == 2:
        manifest["step"] = rng.choice([10, None, "15", True, 1e300])
    elif change == 3:
        del manifest["files"][rng.choice(names)]
    else:
        manifest["files"]["../10/_METADATA"] = manifest["files"].pop(names[0])
    (path / "manifest.json").write_text(json.dumps(manifest))


_HARMS = (_flip, _flip, _cut, _grow, _delete, _exchange, _take_from_another, _manifest)
