"""The second task of `python -m benchmarks.compare`: a training step of airbench94.

From the same weights and batch every contender computes the network of `models/airbench.py` and one
step of the recipe in configs/airbench94.py at its first learning rate: the mean cross-entropy with
smoothed labels, SGD for the biases and the last layer, Muon for the kernels. An evaluation step
gives the class of each image by the initial running statistics.
"""

import numpy as np

from benchmarks import task
from benchmarks.task import NUM_CLASSES, Batch

WIDTHS, FEATURES, SIZE = (64, 256, 256), 24, 32
NUM_BATCHES = 2
SMOOTHING = 0.2
BIAS_RATE, HEAD_RATE, MUON_RATE = 0.053, 0.67, 0.24  # the first two of a sum over the batch
DECAY = 2e-6  # over those rates, of a mean over the batch
MOMENTUM, MUON_MOMENTUM, MUON_STEPS = 0.85, 0.6, 3
WHITEN_EPOCHS, EPOCHS = 3, 8
STEPS_PER_EPOCH = 25  # of 50,000 images in batches of 2,000: of the schedule alone

Weights = dict[str, np.ndarray]  # by path as "group1/conv1/kernel", float32


def make_weights(seed: int = 0) -> Weights:
    """Of about the size of the recipe's."""
    rng = np.random.default_rng(seed)

    def kernel(*shape: int) -> np.ndarray:
        fan_in = np.prod(shape[:-1])
        return rng.standard_normal(shape, np.float32) / np.float32(fan_in**0.5)

    def bias(channels: int) -> np.ndarray:
        return 0.1 * rng.standard_normal(channels, np.float32)

    weights = {"whiten/kernel": kernel(2, 2, 3, FEATURES), "whiten/bias": bias(FEATURES)}
    channels = FEATURES
    for number, width in enumerate(WIDTHS, 1):
        for conv, norm in (("conv1", "norm1"), ("conv2", "norm2")):
            weights[f"group{number}/{conv}/kernel"] = kernel(3, 3, channels, width)
            weights[f"group{number}/{norm}/bias"] = bias(width)
            channels = width
    return weights | {"linear/kernel": kernel(channels, NUM_CLASSES) * np.float32(channels**0.5)}


def make_batches(batch_size: int) -> list[Batch]:
    return task.make_batches(batch_size, size=SIZE, count=NUM_BATCHES)
