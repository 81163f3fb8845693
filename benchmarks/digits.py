"""The tutorial's SVHN exercise on real digits that are at hand: scikit-learn's, 1,797 of 8x8.

    python -m benchmarks.digits
    python -m benchmarks.digits --seeds 1 --json figures.json

Resized to 32x32, grey; the last 360 are the test. The tutorial's network with its flip, without it,
and the recipe of configs/svhn.py, for some seeds each. Takes some minutes on 2 CPU cores.
"""

import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks import report
from cifar_jax.devices import runtime

_TEST = 360
_SIZE = 32
# The mean of the last 50 steps, for runs of some hundred.
_TUTORIAL: dict[str, object] = {"num_epochs": 20.0, "optim.ema_decay": 0.98}
RECIPES: dict[str, tuple[str, dict[str, object]]] = {  # recipe, fields
    "the tutorial's network, with flips": ("default", _TUTORIAL),
    "the tutorial's network, without": ("svhn:tutorial", _TUTORIAL),
    "configs/svhn.py": ("svhn:64", {"num_epochs": 8.0}),
}
_FIELDS = {
    "batch_size": 64,
    "data.name": "npz",
    "summaries.scalars": 0,
    "summaries.images": 0,
    "summaries.histograms": 0,
}


class Result(NamedTuple):
    accuracies: list[float]  # top-1, one a seed
    seconds: float  # of a seed's training, median; compilation included

    @property
    def mean(self) -> float:
        return statistics.mean(self.accuracies)

    @property
    def deviation(self) -> float:
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else float("nan")


def write(folder: Path) -> None:
    """train.npz and test.npz of the digits."""
    from sklearn.datasets import load_digits

    found = load_digits()
    levels = (found.images * (255 / 16)).round().astype(np.uint8)
    resize = (_SIZE, _SIZE), Image.Resampling.BILINEAR
    images = np.stack([np.asarray(Image.fromarray(level).resize(*resize)) for level in levels])
    for split, part in (("train", slice(-_TEST)), ("test", slice(-_TEST, None))):
        arrays = {"images": images[part], "labels": found.target[part]}
        np.savez(folder / f"{split}.npz", class_names=np.array(list("0123456789")), **arrays)


def measure(data: Path, recipe: str, seeds: int, **fields: object) -> Result:
    """Trains and evaluates the recipe on the arrays in `data`, once for each seed."""
    from cifar_jax import config as config_lib
    from cifar_jax import evaluate, train

    accuracies, seconds = [], []
    for seed in range(seeds):
        config = config_lib.recipe(recipe)
        own = {"data.dir": str(data), "seed": seed}
        config.update_from_flattened_dict({**_FIELDS, **own, **fields})
        with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stdout(io.StringIO()):
            start = time.monotonic()
            train.train(config, workdir)
            seconds.append(time.monotonic() - start)
            (accuracy,) = evaluate.evaluate(None, workdir, once=True).values()
        accuracies.append(accuracy)
    return Result(accuracies, statistics.median(seconds))


def main(argv: Sequence[str], write: Callable[[Path], None] = write) -> int:
    parser = report.parser("digits", __doc__)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args(argv)
    figures: dict[str, Any] = {"versions": report.versions()}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        for name, (recipe, fields) in RECIPES.items():
            found = measure(Path(folder), recipe, args.seeds, **fields)
            figures[name] = {**found._asdict(), "mean": found.mean, "deviation": found.deviation}
            print(
                f"{name:<36} {found.mean:.4f} ± {found.deviation:.4f}  {found.seconds:4.0f} s",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    runtime.start()
    sys.exit(main(sys.argv[1:]))
