"""The published airbench94_muon.py (github.com/KellerJordan/cifar10-airbench), run on our images.

It is not part of this project: its file is named by whoever has it. Nothing is changed but the
number of its runs and, where asked for, the mode of torch.compile.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from cifar_jax import config as config_lib
from cifar_jax.data import splits

_RUNS, _MODE = "range(200)", 'mode="max-autotune"'


def measure(script: str, data: str | None, seeds: int, mode: str) -> list[dict[str, float]]:
    """Seconds and accuracy over six views of each run, by the script's own clock. `mode` is that
    of torch.compile, as published "max-autotune", which takes minutes."""
    code = Path(script).read_text()
    if code.count(_RUNS) != 1 or code.count(_MODE) != 1:
        raise ValueError(f"{script} has no {_RUNS} or {_MODE}: not the script as it was published")
    with tempfile.TemporaryDirectory() as folder:
        _write_images(Path(folder) / "cifar10", data)
        changed = Path(folder) / "script.py"
        code = code.replace(_RUNS, f"range({seeds})").replace(_MODE, f'mode="{mode}"')
        changed.write_text(code)
        done = subprocess.run(
            [sys.executable, changed.name], cwd=folder, capture_output=True, text=True
        )
    if done.returncode:
        raise RuntimeError(done.stderr[-2_000:])
    return parse(done.stdout)[1:]  # the first is a warm-up with random labels


def parse(output: str) -> list[dict[str, float]]:
    """The last line of each run: | run | eval | train_acc | val_acc | tta_val_acc | seconds |."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines()]
    return [
        {"seconds": float(row[5]), "accuracy": float(row[4]), "single_view": float(row[3])}
        for row in rows
        if len(row) == 6 and row[1] == "eval"
    ]


def _write_images(folder: Path, data: str | None) -> None:
    """The files that the script makes where they are missing."""
    import torch

    folder.mkdir()
    config = config_lib.recipe("default")
    config.data.dir = data or ""
    for split in ("train", "test"):
        images, labels, names = splits.open(config.data, split, config.seed).load()
        torch.save(
            {
                "images": torch.from_numpy(images.copy()),
                "labels": torch.from_numpy(labels.astype("int64")),
                "classes": list(names),
            },
            folder / f"{split}.pt",
        )
