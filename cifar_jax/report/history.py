"""The course of a run, from its records."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cifar_jax.workdir.records import Record


class History(NamedTuple):
    """Records by step: one that was done or evaluated again, after a crash or so, counts once."""

    train: list[Record]
    wall: np.ndarray  # float [train], seconds of training up to each; NaN without a clock
    evals: list[Record]
    resumed: list[tuple[int, float]]  # step, seconds of training
    validation: list[Record]

    @classmethod
    def of(cls, lines: Sequence[Record]) -> "History":
        """From all records of a run, in the order in which they were written."""
        train: dict[int, tuple[Record, float]] = {}
        evals: dict[str, dict[int, Record]] = {
            kind: defaultdict(dict) for kind in ("eval", "eval_validation")
        }
        resumed: list[tuple[int, float]] = []
        seconds, last = 0.0, math.nan
        for number, record in enumerate(r for r in lines if r["kind"] in ("start", "train")):
            step, time = record["step"], record.get("time", math.nan)
            if record["kind"] == "start":
                resumed += [(step, seconds)] * (number > 0)
                train = {before: found for before, found in train.items() if before < step}
            else:
                seconds += time - last if time > last else 0.0
                train[step] = record, seconds if math.isfinite(time) else math.nan
            last = time
        for record in lines:
            if record["kind"] in evals:
                evals[record["kind"]][record["step"]] |= record
        done = sorted(train.items())
        wall = np.array([seconds for _, (_, seconds) in done])
        of_step = [record for _, (record, _) in done]
        test, validation = ([found[step] for step in sorted(found)] for found in evals.values())
        return cls(of_step, wall, test, resumed, validation)

    @property
    def steps(self) -> int:
        """How many are known to be done."""
        last = [self.train[-1]["step"] + 1] if self.train else []
        return max([0, *last, *(record["step"] for record in self.evals[-1:])])

    def seconds(self, steps: np.ndarray) -> np.ndarray:
        """The training time up to steps; their evaluation may have come at any later hour."""
        known = np.isfinite(self.wall)
        if not known.any():
            return np.full(len(steps), np.nan)
        trained = np.array([record["step"] for record in self.train])
        return np.interp(steps, trained[known], self.wall[known])


def series(lines: Sequence[Record], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the records with `key`; NaN for what is not finite."""
    found = [(r["step"], r[key]) for r in lines if isinstance(r.get(key), int | float)]
    steps, values = np.array(found, float).reshape(-1, 2).T
    return steps, np.where(np.isfinite(values), values, np.nan)
