"""What is counted of predictions, against counts by hand."""

import numpy as np
import pytest

from cifar_jax.telemetry import predictions
from cifar_jax.telemetry.predictions import Predictions


@pytest.fixture
def four():
    """Two of class 0, one right; one of class 1, right; one of class 2, taken for 0."""
    return Predictions(
        labels=np.array([0, 0, 1, 2]),
        classes=np.array([[0, 1, 2], [1, 0, 2], [1, 2, 0], [0, 2, 1]]),
        probabilities=np.array([[0.9, 0.1, 0], [0.5, 0.3, 0.2], [0.6, 0.2, 0.2], [1, 0, 0]]),
        cross_entropy=-np.log(np.array([0.9, 0.3, 0.6, 1e-9])),
    )


def test_accuracy_and_confusion(four):
    assert four.accuracy == 0.5
    matrix = predictions.confusion(four, 4)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    found = predictions.recalls(matrix)
    np.testing.assert_array_equal(found, [0.5, 1.0, 0.0, np.nan])


def test_calibration(four):
    found = predictions.calibration(four, bins=2)
    assert found.images.tolist() == [0, 4]  # 0.5 belongs to the upper bin, 1.0 to the last
    np.testing.assert_allclose(found.confidence, [np.nan, 0.75])
    np.testing.assert_allclose(found.accuracy, [np.nan, 0.5])
    assert found.error == pytest.approx(0.25)
    assert predictions.calibration(four, bins=20).error == pytest.approx(
        (0.1 + 0.5 + 0.4 + 1.0) / 4
    )


def test_the_most_confident_mistakes_come_first(four):
    assert predictions.worst_mistakes(four, 8).tolist() == [3, 1]
    assert predictions.worst_mistakes(four, 1).tolist() == [3]
