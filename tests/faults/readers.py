"""Hostile input for every reader, within this process: a result or a line, no file outside."""

import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

from tests.faults.processes import Bench, Outcome

_ODD = [None, True, -1, 1.5, "x", [], {}, 10**18, 1e308, "../../etc/passwd", "a\nb", "\ud800"]


def hostile(bench: Bench, rng: random.Random, count: int) -> Outcome:
    outcome = Outcome("hostile archives, records, shards, JSON")
    folder = bench.folder / "hostile"
    inside = folder / "inside"
    inside.mkdir(parents=True)
    (folder / "guard").write_text("mine")
    attacks = _attacks(inside, rng)
    for number in range(count):
        attack = attacks[number % len(attacks)]
        problem = attack()
        outside = sorted(path.name for path in folder.iterdir()) == ["guard", "inside"]
        intact = outside and (folder / "guard").read_text() == "mine"
        outcome.note(not problem and intact, f"{attack.__name__}: {problem}", wrong=not intact)
    return outcome


def _attacks(folder: Path, rng: random.Random) -> list[Callable[[], str]]:
    import numpy as np

    from cifar_jax import files
    from cifar_jax.data import download, native, shards
    from cifar_jax.workdir import checkpoint, description, records

    whole = {
        "config": {"seed": 0, "data": {"dir": "x"}},
        "dataset": {
            "name": "cifar10",
            "class_names": ["a", "b"],
            "image_shape": [32, 32, 3],
            "sizes": {"train": 50_000},
            "mean": [125.3, 123.0, 113.9],
            "std": [63.0, 62.1, 66.7],
        },
        "changes": [{"step": 3, "was": {}, "is": {}}],
    }
    manifest = {"step": 7, "files": {"a": {"bytes": 1, "sha256": "0" * 64}}}
    described = {
        "format": shards.FORMAT,
        "shape": [32, 32, 3],
        "class_names": ["a", "b"],
        "files": {"train-0.array_record": {"images": 2, "bytes": 64, "ends": 0}},
    }
    sealed = folder / "7"
    sealed.mkdir()
    (sealed / "a").write_text("a")

    def calm(function: Callable[[], object]) -> str:
        from cifar_jax.errors import UserError

        try:
            function()
        except (UserError, ValueError) as error:
            lines = str(error).count("\n")
            return f"{lines + 1} lines: {error}" if lines and isinstance(error, UserError) else ""
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def binary() -> str:
        path = folder / "data.bin"
        size = rng.choice((0, 1, 3072, 3073, 6146, rng.randrange(10_000)))
        path.write_bytes(rng.randbytes(size))
        return calm(lambda: native.read([path], rng.choice((1, 10, 256))))

    def names() -> str:
        path = folder / "names.txt"
        path.write_bytes(rng.randbytes(rng.randrange(60)))
        return calm(lambda: native.read_names(path, 3))

    def archive() -> str:
        path = folder / "batches.tar"
        path.write_bytes(_archive(rng))
        said = calm(lambda: download._unpack(path, folder / "batches"))
        for found in folder.glob("batches/**/*"):
            if found.is_symlink():
                return "a link was unpacked"
        if (folder / "batches").exists():
            import shutil

            shutil.rmtree(folder / "batches")
        return said

    def json_file(path: Path, sound: object, read: Callable[[], object]) -> str:
        path.write_bytes(_mutate(sound, rng))
        return calm(read)

    def sums() -> str:
        return json_file(sealed / "manifest.json", manifest, lambda: checkpoint.check(sealed))

    def status() -> str:
        sound = {"good": 3, "finished": 3, "diverged": ""}
        return json_file(folder / "status.json", sound, lambda: checkpoint.status(folder))

    def configuration() -> str:
        return json_file(folder / "config.json", whole, lambda: description.load(folder))

    def dataset() -> str:
        return json_file(folder / "config.json", whole, lambda: description.load_dataset(folder))

    def history() -> str:
        sound = {"kind": "train", "step": 3, "time": 1.0, "loss": 2.0}
        return json_file(folder / "m.jsonl", sound, lambda: records.read(folder / "m.jsonl"))

    def shard() -> str:
        (folder / "train").mkdir(exist_ok=True)
        (folder / "train" / "train-0.array_record").write_bytes(rng.randbytes(64))
        path = folder / "train" / "shards.json"
        return json_file(path, described, read_shard)

    def read_shard() -> None:
        found = shards.open(folder, "train")
        found.read(np.arange(min(1, len(found))))

    def plain_json() -> str:
        return calm(lambda: files.parse_json(_mutate(whole, rng)))

    of_runs = [sums, status, configuration, dataset, history]
    return [binary, names, archive, *of_runs, shard, plain_json]


def _mutate(sound: object, rng: random.Random) -> bytes:
    kind = rng.randrange(6)
    text = json.dumps(_replace(sound, rng) if kind < 3 else sound).encode()
    if kind == 3:
        data = bytearray(text)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data)
    if kind == 4:
        return text[: rng.randrange(len(text))]
    if kind == 5:
        deep = rng.choice((b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5_000, b"NaN", b"\xff"))
        return rng.choice((deep, b'{"config": ' + deep, b'{"step": ' + deep + b"}"))
    return text


def _replace(value: object, rng: random.Random) -> object:
    """One place of a nested value is something else."""
    if rng.random() < 0.25 or not isinstance(value, dict | list) or not value:
        return rng.choice(_ODD)
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = _replace(copy[key], rng)  # type: ignore[index]
    return copy


def _archive(rng: random.Random) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for _ in range(rng.randint(0, 3)):
            name = rng.choice(("batches/x", "batches", "../guard", "/etc/x", "batches/../../guard"))
            member = tarfile.TarInfo(name)
            member.type = rng.choice((b"0", b"1", b"2", b"3", b"5", b"6", b"x"))
            member.linkname = rng.choice(("../guard", "/etc/passwd", "x"))
            member.size = rng.choice((0, 5, 1 << 40))
            tar.fileobj.write(member.tobuf() + b"hello".ljust(512, b"\0"))  # type: ignore[union-attr]
    data = bytearray(stream.getvalue())
    for _ in range(rng.choice((0, 0, 3))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)
