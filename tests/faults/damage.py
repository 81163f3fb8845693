"""Bytes that change on disk, files that vanish, folders that are exchanged, what cannot be read."""

import json
import random
import shutil
import subprocess
from pathlib import Path

from tests.faults.processes import Bench, Outcome, Skipped, listing


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
    """Files that cannot be read, by their permissions: a line, and nothing lost."""
    outcome = Outcome("files that cannot be read for the moment")
    blind = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    if subprocess.run([*blind, "true"], capture_output=True).returncode:
        raise Skipped("setpriv cannot take away root's right to read everything")
    source = bench.folder / "readable"
    code, error = bench.run(*bench.flags(source, "--config.num_steps=20"))
    assert code == 0, error
    for number in range(count):
        workdir = bench.folder / "unreadable"
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(source, workdir)
        files = sorted(file for file in workdir.rglob("20/**/*") if file.is_file())
        blocked = rng.choice([*files, workdir / "checkpoints" / "20"])
        blocked.chmod(0)
        before = _names(workdir)
        first, line = bench.run(*bench.flags(workdir), before=blind)
        kept = _names(workdir) == before
        said = first == 1 and "cannot be read" in line and line.count("\n") == 1
        blocked.chmod(0o755)
        code, error = bench.run(*bench.flags(workdir)) if number < 3 else (0, "")
        outcome.note(said and kept and code == 0, f"{blocked}: {first} {line} {error}")
    return outcome


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
