"""A model's predictions on a split, and metrics of them, in plain numpy."""

from typing import NamedTuple

import numpy as np


class Predictions(NamedTuple):
    """Of N images in the order of the split."""

    labels: np.ndarray  # int [N]
    classes: np.ndarray  # int [N, k], the most probable first
    probabilities: np.ndarray  # float32 [N, k], of these classes
    cross_entropy: np.ndarray  # float32 [N]

    @property
    def right(self) -> np.ndarray:
        """bool [N]: the first class is the label."""
        return self.classes[:, 0] == self.labels

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())


def confusion(predictions: Predictions, num_classes: int) -> np.ndarray:
    """int [num_classes, num_classes]: images by label (rows) and by the class they were given."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (predictions.labels, predictions.classes[:, 0]), 1)
    return matrix


def recalls(matrix: np.ndarray) -> np.ndarray:
    """float [num_classes]: the recall of each class, the fraction of its images that are predicted
    as it; NaN for a class without images."""
    count = matrix.sum(1)
    return np.where(count > 0, matrix.diagonal() / np.maximum(count, 1), np.nan)


class Calibration(NamedTuple):
    """Images by the probability of their first class, in bins of equal width from 0 to 1."""

    images: np.ndarray  # int [bins]
    confidence: np.ndarray  # float [bins], the mean probability; NaN in an empty bin
    accuracy: np.ndarray  # float [bins], the fraction that is right; NaN in an empty bin

    @property
    def error(self) -> float:
        """The expected calibration error: |confidence - accuracy|, weighted by the images."""
        gap = np.abs(self.confidence - self.accuracy)
        return float(np.nansum(gap * self.images) / self.images.sum())


def calibration(predictions: Predictions, bins: int = 15) -> Calibration:
    """The reliability of the probabilities. (Guo et al., On Calibration of Modern Neural Networks,
    2017.)"""
    confidence = predictions.probabilities[:, 0].astype(np.float64)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)

    def mean(values: np.ndarray) -> np.ndarray:
        sums = np.bincount(place, values, minlength=bins)
        return np.where(count > 0, sums / np.maximum(count, 1), np.nan)

    return Calibration(count, mean(confidence), mean(predictions.right.astype(float)))


def worst_mistakes(predictions: Predictions, count: int) -> np.ndarray:
    """The positions of up to `count` wrong images, the most confident first."""
    wrong = np.flatnonzero(~predictions.right)
    order = np.argsort(-predictions.probabilities[wrong, 0], kind="stable")
    return wrong[order][:count]
