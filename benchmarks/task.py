"""What every contender computes, from which numbers, and when two of them agree.

Used by `python -m benchmarks.compare`, where each contender runs in a process of its own: weights
and batches come from a seed, so that no process has to send them to another.

The task is the tutorial's network. A training step is the gradient of the mean cross-entropy plus
0.004 · ½‖kernel‖² of local3 and local4, SGD at a rate of 0.1, and the EMA of the parameters,
ema -= (1 - 0.9999)·(ema - parameter). An evaluation step gives the class of each image.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

RATE, WEIGHT_DECAY, EMA_DECAY = 0.1, 0.004, 0.9999
DECAYED = ("local3", "local4")
DEPTH_RADIUS, LRN_BIAS, ALPHA, BETA = 4, 1.0, 0.001 / 9, 0.75
NUM_CLASSES, SIZE, NUM_BATCHES = 10, 24, 4
TOLERANCE = 1e-4  # relative RMS, of every array of an outcome
HALF_TOLERANCE = 3e-2  # of the logits and the loss in bfloat16, whose numbers are 4e-3 apart

_LAYERS = {  # shape of the kernel, HWIO or [in, out]; its standard deviation; the bias
    "conv1": ((5, 5, 3, 64), 0.05, 0.0),
    "conv2": ((5, 5, 64, 64), 0.05, 0.1),
    "local3": ((2304, 384), 0.04, 0.1),
    "local4": ((384, 192), 0.04, 0.1),
    "softmax_linear": ((192, NUM_CLASSES), 1 / 192, 0.0),
}

Weights = dict[str, dict[str, np.ndarray]]  # layer -> {"kernel", "bias"}, float32


class Batch(NamedTuple):
    images: np.ndarray  # float32 [B, 24, 24, 3], standardised
    labels: np.ndarray  # int32 [B]


# What one contender makes of the first weights and the first batch, by name: "logits" [B, 10],
# "classes" [B] (of the evaluation step), "loss" (with L2), "gradient/<layer>/<name>" (of that loss)
# and "updated/<layer>/<name>", the parameters after one training step.
Outcome = dict[str, np.ndarray]


class Contender(Protocol):
    """One implementation of the task. What it has started is finished when a method returns."""

    def reset(self) -> None:
        """Goes back to the first weights."""

    def train(self, steps: int) -> None:
        """Runs training steps, on one batch after the other."""

    def evaluate(self, steps: int) -> None:
        """Runs evaluation steps, on one batch after the other."""

    def outcome(self) -> Outcome:
        """What the first weights and the first batch give."""


def make_weights(seed: int = 0) -> Weights:
    """Much like the tutorial's initial weights: normal, nothing beyond two standard deviations."""
    rng = np.random.default_rng(seed)
    return {
        layer: {
            "kernel": stddev * rng.standard_normal(shape, np.float32).clip(-2, 2),
            "bias": np.full(shape[-1], bias, np.float32),
        }
        for layer, (shape, stddev, bias) in _LAYERS.items()
    }


def make_batches(
    batch_size: int, seed: int = 1, size: int = SIZE, count: int = NUM_BATCHES
) -> list[Batch]:
    """`count` batches of noise, `size` pixels a side: neither speed nor agreement depend on what is
    in a picture."""
    rng = np.random.default_rng(seed)
    return [
        Batch(
            rng.standard_normal((batch_size, size, size, 3), np.float32),
            rng.integers(0, NUM_CLASSES, batch_size, np.int32),
        )
        for _ in range(count)
    ]


def lrn_band(channels: int) -> np.ndarray:
    """float32 [C, C], 1 where two channels are neighbours for the normalisation, else 0."""
    place = np.arange(channels)
    return (np.abs(np.subtract.outer(place, place)) <= DEPTH_RADIUS).astype(np.float32)


def flat_names(prefix: str, tree: Mapping[str, Mapping[str, np.ndarray]]) -> Outcome:
    """The arrays of a tree shaped as Weights, named as an Outcome names them."""
    return {
        f"{prefix}/{layer}/{name}": np.asarray(array)
        for layer, arrays in tree.items()
        for name, array in arrays.items()
    }


def relative_rms(found: np.ndarray, expected: np.ndarray) -> float:
    """RMS of the difference over the RMS of `expected`; infinite where the shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    difference = found.astype(np.float64) - expected
    size = np.sqrt(np.mean(np.square(expected, dtype=np.float64)))
    return float(np.sqrt(np.mean(np.square(difference))) / max(size, np.finfo(np.float32).tiny))


def disagreements(found: Outcome, expected: Outcome, half: bool = False) -> list[str]:
    """A line for each array of `expected` that `found` lacks or has differently; [] if none.

    With `half`, of the logits and the loss alone: a gradient adds up values of either sign, and of
    some a few hundredths are rounding.
    """
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    lines = []
    for name, array in expected.items():
        if half and name not in ("logits", "loss"):
            continue
        error = relative_rms(found[name], array) if name in found else float("nan")
        if not error <= tolerance:  # a NaN disagrees
            lines.append(f"{name}: relative RMS error {error:.1e}, allowed {tolerance:.0e}")
    return lines
