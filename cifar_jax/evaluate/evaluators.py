"""The accuracy of the checkpoints of several networks that train together."""

import errno
import os
import time
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cifar_jax import config as config_lib
from cifar_jax import files
from cifar_jax.evaluate.evaluator import Evaluator
from cifar_jax.workdir import checkpoint, description

_MOST_POLLS = 120  # for the checkpoints of networks that train together


class Evaluators:
    """Does for several networks that train together what an `Evaluator` does for one: evaluates
    each, into its own workdir, and their ensemble."""

    def __init__(self, config: ConfigDict, workdir: str | os.PathLike[str], **options: Any):
        """As `Evaluator`."""
        self._config, self._options = config_lib.resolve(config), options
        self._workdir = files.resolve(workdir, "--workdir")
        count = len(config_lib.members(self._config))
        title = f"ensemble of {count} networks"
        self._ensemble = Evaluator(config, workdir, title=title, **options)
        self._each: dict[int, Evaluator] = {}

    def evaluate(self, step: int) -> float:
        """The mean of their accuracies at `step`. Raises as `Evaluator.evaluate` does."""
        # By the number of views, and by what the members of all seeds have in common.
        found: dict[tuple[int, str], list[float]] = {}
        self._wait_for(step)
        for number, own in enumerate(config_lib.members(self._config)):
            folder = description.member(self._workdir, number)
            if checkpoint.status(folder / "checkpoints").diverged:
                continue
            values = self._values(own)
            if number not in self._each:  # not before: it is described once it has begun
                title = ", ".join([*values, f"seed {own.seed}"])
                shared: Any = {"like": self._each.get(0), "title": title}
                self._each[number] = Evaluator(own, folder, **shared, **self._options)
            self._each[number].evaluate(step)
            for views, accuracy in self._each[number].accuracies.items():
                found.setdefault((views, ", ".join(values)), []).append(accuracy)
        self._ensemble.evaluate(step)
        for (views, name), each in sorted(found.items(), key=lambda item: item[0][0]):
            deviation = f" ± {np.std(each, ddof=1):.4f}" if len(each) > 1 else ""
            seeds = f"{len(each)} seed{'s' * (len(each) > 1)}"
            title = (f"{name}, {seeds}" if name else seeds) + f" over {views} views" * (views > 1)
            print(f"{title}: {np.mean(each):.4f}{deviation}", flush=True)
        single = [each for (views, _), each in found.items() if views == 1]
        return float(np.mean(np.concatenate(single)))

    def _wait_for(self, step: int) -> None:
        """Returns when all have a checkpoint of `step`, which are written one after the other.
        Raises FileNotFoundError where one does not come."""
        folders = [path / "checkpoints" for path in description.members(self._workdir)]
        for _ in range(_MOST_POLLS):
            living = [path for path in folders if not checkpoint.status(path).diverged]
            missing = [path / str(step) for path in living if not (path / str(step)).is_dir()]
            if not missing:
                return
            time.sleep(self._config.eval.poll_seconds)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(missing[0]))

    def _values(self, own: ConfigDict) -> list[str]:
        """The values of config.sweep that a member has."""
        swept = dict.fromkeys(path for each in config_lib.sweep(self._config) for path in each)
        fields = config_lib.flat(own)
        return [f"{path.removeprefix('optim.')} {fields[path]:g}" for path in swept]

    def close(self) -> None:
        for each in (self._ensemble, *self._each.values()):
            each.close()

    def __enter__(self) -> "Evaluators":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
