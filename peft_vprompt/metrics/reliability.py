"""Calibration: how far the confidence of predictions is from their accuracy. Shapes: n = samples, c = classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.calibration import calibration_curve


@dataclass(frozen=True)
class Calibration:
    """How far confidences are from accuracies.

    Attributes:
        ece: expected calibration error in [0, 1]: mean |accuracy - confidence| over the bins, weighted by samples.
        confidence: mean confidence of each bin, [bins]; NaN where a bin is empty.
        accuracy: share of right predictions in each bin, [bins]; NaN where a bin is empty.
        count: samples in each bin, [bins].
    """

    ece: float
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    def to_dict(self) -> dict:
        """Return the error and the bins as JSON can hold them."""
        arrays = {"confidence": self.confidence, "accuracy": self.accuracy, "count": self.count}
        return {"ece": self.ece, "bins": {name: array.tolist() for name, array in arrays.items()}}


def calibration(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> Calibration:
    """Return the calibration of the top predictions in equally wide bins (Guo et al. 2017, equation 3).

    Args:
        probabilities: [n, c].
        labels: true labels, int [n].
        bins: number of bins, each with its upper bound.

    Raises:
        ValueError: shapes that do not fit, values that are no probabilities, or no bin.
    """
    table, true = check_probabilities(probabilities, labels)
    if bins < 1:
        raise ValueError(f"Expected at least one bin. Received: bins={bins}.")
    top = np.minimum(table.max(1), 1)  # sums of rounded numbers may be above it
    right = table.argmax(1) == true
    # scikit-learn's bounds: it says which bins are empty by leaving them out, and not how many samples the others have.
    bounds = np.linspace(0, 1, bins + 1)[1:-1]
    count = np.bincount(np.searchsorted(bounds, top), minlength=bins)
    confidence = np.full(bins, np.nan)
    accuracy = np.full(bins, np.nan)
    accuracy[count > 0], confidence[count > 0] = calibration_curve(right, top, n_bins=bins, pos_label=True)
    ece = np.average(np.abs(accuracy - confidence)[count > 0], weights=count[count > 0])
    return Calibration(float(ece), confidence, accuracy, count)


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Return the expected calibration error in [0, 1]; arguments and errors are those of `calibration`."""
    return calibration(probabilities, labels, bins).ece


def check_probabilities(probabilities: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities [n, c] and labels [n] as arrays.

    Raises:
        ValueError: shapes that do not fit, values that are no probabilities, or labels that are no classes.
    """
    table = np.asarray(probabilities, dtype=float)
    true = np.asarray(labels)
    if table.ndim != 2 or true.shape != (len(table),) or not len(table):
        raise ValueError(
            f"Expected probabilities [samples, classes] and one label each. Received: {list(table.shape)} and "
            f"{list(true.shape)}."
        )
    if table.min() < 0 or not np.allclose(table.sum(1), 1, atol=1e-3):
        raise ValueError("Expected rows of probabilities that sum to 1. Received other values: apply a softmax first.")
    if true.min() < 0 or true.max() >= table.shape[1]:
        raise ValueError(
            f"Expected labels from 0 to {table.shape[1] - 1}. Received labels from {true.min()} to {true.max()}."
        )
    return table, true
