"""The arithmetic of accuracies and precisions, by scikit-learn. All are in [0, 1].

Shapes: n = images, c = classes.
"""

from __future__ import annotations

import statistics

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import accuracy_score, average_precision_score, recall_score

from ..data.multi_hot import NOT_KNOWN


def accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of images that are classified correctly, over all images alike (micro average).

    Args:
        predictions: predicted labels, int [n].
        labels: true labels, int [n].

    Raises:
        ValueError: shapes that do not fit, or no image.
    """
    predicted, true = _pairs(predictions, labels)
    return float(accuracy_score(true, predicted))


def mean_per_class_accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean, over the classes that some image is of, of the share of a class's images classified correctly.

    Args, raises: as `accuracy`.
    """
    predicted, true = _pairs(predictions, labels)
    return float(recall_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0))


def harmonic_mean(base: float, novel: float) -> float:
    """Return the harmonic mean of two accuracies; 0 if either is 0.

    Raises:
        ValueError: if an accuracy is negative.
    """
    if min(base, novel) < 0:
        raise ValueError(f"Accuracies must not be negative. Received: base={base}, novel={novel}.")
    return float(statistics.harmonic_mean([base, novel]))


def average_precisions(scores: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Return how well each class's score sorts the images that are of it from the others, [c]; NaN where none is.

    Args:
        scores: logits or probabilities, [n, c]; only their order within a class counts.
        labels: 1 or 0 for each class, -100 where nobody knows (not counted), [n, c].

    Raises:
        ValueError: labels of another shape, or with other values.
    """
    table = np.asarray(scores, dtype=np.float64)
    true = np.asarray(labels)
    if true.ndim != 2 or true.shape != table.shape or not np.isin(true, (0, 1, NOT_KNOWN)).all():
        raise ValueError(
            f"Expected labels of 1, 0 or {NOT_KNOWN} (not known) in the shape of the logits, {list(table.shape)}. "
            f"Received: shape {list(true.shape)} and values {np.unique(true)[:5].tolist()}."
        )
    result = np.full(true.shape[1], np.nan)
    for column in np.flatnonzero((true == 1).any(0)):
        known = true[:, column] != NOT_KNOWN
        result[column] = average_precision_score(true[known, column], table[known, column])
    return result


def mean_average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of `average_precisions` over the classes that some image is of.

    Raises:
        ValueError: as there; or no image is of any class.
    """
    values = average_precisions(scores, labels)
    if np.isnan(values).all():
        raise ValueError(
            "Expected images of some class to measure the average precision. Received labels without any 1."
        )
    return float(np.nanmean(values))


def _pairs(predictions: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return predicted and true labels, [n] each.

    Raises:
        ValueError: shapes that do not fit, or no image.
    """
    predicted = np.asarray(predictions)
    true = np.asarray(labels)
    if true.ndim != 1 or predicted.shape != true.shape or not len(true):
        raise ValueError(
            "Expected a predicted and a true label for each of at least one image. Received: shapes "
            f"{list(predicted.shape)} and {list(true.shape)}."
        )
    return predicted, true
