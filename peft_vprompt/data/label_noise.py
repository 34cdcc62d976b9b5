"""Wrong labels, put in on purpose: to find out how a method stands them.

Each kind of noise takes the true labels and gives a `NoisyLabels`. Random numbers come from a generator of its own,
seeded by the caller: the global generators are neither read nor changed. Rates are met exactly in every class, up to
rounding, as in the few-shot studies where 2 of 16 labels are wrong; only a transition matrix is drawn label by label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict
from numpy.typing import ArrayLike

from ..utils.fields import MAX_ITEMS, shown
from ..utils.validation import is_number, require_int, require_seed, shorten
from .columns import set_column


@dataclass(frozen=True)
class NoisyLabels:
    """Labels with noise, and what became of them; n = samples, c = classes.

    Attributes:
        labels: int [n], the labels with noise.
        mask: bool [n], which of them differ from the true ones.
        rate: achieved share of wrong labels.
        matrix: float [c, c]; row y holds the shares of the labels that samples of class y have now (zeros for a class
            without samples).
    """

    labels: np.ndarray
    mask: np.ndarray
    rate: float
    matrix: np.ndarray

    @classmethod
    def compare(cls, true: ArrayLike, noisy: ArrayLike, num_classes: int) -> NoisyLabels:
        """Describe noisy labels [n] by what they differ in from the true ones [n].

        Raises:
            ValueError: labels out of range, or none.
        """
        true = _check_labels(true, num_classes)
        noisy = _check_labels(noisy, num_classes)
        counts = np.zeros((num_classes, num_classes))
        np.add.at(counts, (true, noisy), 1)
        matrix = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        mask = true != noisy
        return cls(noisy, mask, float(mask.mean()), matrix)


def symmetric_noise(labels: ArrayLike, rate: float, num_classes: int, seed: int) -> NoisyLabels:
    """Replace labels by any other class, all alike.

    Args:
        labels: true labels [n].
        rate: share of the labels of every class to replace, in [0, 1].
        num_classes: number of classes.
        seed: seed of the generator.

    Raises:
        ValueError: a rate out of range, labels out of range, or a class so small that the rate changes no label.
    """
    labels = _check_labels(labels, num_classes)
    rng = _generator(seed)
    chosen = _choose(labels, rate, num_classes, rng)
    noisy = labels.copy()
    noisy[chosen] = (labels[chosen] + rng.integers(1, num_classes, len(chosen))) % num_classes
    return NoisyLabels.compare(labels, noisy, num_classes)


def pair_noise(labels: ArrayLike, rate: float, num_classes: int, seed: int) -> NoisyLabels:
    """Replace labels y by y + 1, the last class by the first.

    Args:
        labels: true labels [n].
        rate: share of the labels of every class to replace, in [0, 1].
        num_classes: number of classes.
        seed: seed of the generator.

    Raises:
        ValueError: as for `symmetric_noise`.
    """
    labels = _check_labels(labels, num_classes)
    rng = _generator(seed)
    chosen = _choose(labels, rate, num_classes, rng)
    noisy = labels.copy()
    noisy[chosen] = (labels[chosen] + 1) % num_classes
    return NoisyLabels.compare(labels, noisy, num_classes)


def confused_labels(labels: ArrayLike, probabilities: ArrayLike) -> np.ndarray:
    """Return the wrong class that a zero-shot model likes most for each sample, int [n].

    Args:
        labels: true labels [n].
        probabilities: zero-shot probabilities [n, c], see `zero_shot_scores.zero_shot`.

    Raises:
        ValueError: a table that does not fit the labels.
    """
    labels = np.asarray(labels)
    table = np.array(probabilities, dtype=float)
    if table.ndim != 2 or len(table) != len(labels):
        raise ValueError(
            f"Expected zero-shot probabilities [{len(labels)}, classes], one row per label. "
            f"Received: shape {list(table.shape)}."
        )
    labels = _check_labels(labels, table.shape[1])
    table[np.arange(len(labels)), labels] = -np.inf
    return table.argmax(1)


def confusion_noise(labels: ArrayLike, rate: float, probabilities: ArrayLike, seed: int) -> NoisyLabels:
    """Replace labels by the wrong class that a zero-shot model likes most (`confused_labels`).

    Args:
        labels: true labels [n].
        rate: share of the labels of every class to replace, in [0, 1].
        probabilities: zero-shot probabilities [n, c].
        seed: seed of the generator.

    Raises:
        ValueError: as for `symmetric_noise` and `confused_labels`.
    """
    wrong = confused_labels(labels, probabilities)
    num_classes = np.shape(probabilities)[1]
    labels = _check_labels(labels, num_classes)
    rng = _generator(seed)
    chosen = _choose(labels, rate, num_classes, rng)
    noisy = labels.copy()
    noisy[chosen] = wrong[chosen]
    return NoisyLabels.compare(labels, noisy, num_classes)


def transition_noise(labels: ArrayLike, matrix: ArrayLike, seed: int) -> NoisyLabels:
    """Draw every label from its row of a transition matrix.

    Args:
        labels: true labels [n].
        matrix: [c, c]; row y, column k is the probability that a label y becomes k.
        seed: seed of the generator.

    Raises:
        ValueError: a matrix that is not square, has negative entries, or whose rows do not sum to one.
    """
    matrix = np.asarray(matrix, dtype=float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"Expected a square transition matrix. Received: shape {list(matrix.shape)}.")
    if (matrix < 0).any() or not np.allclose(matrix.sum(1), 1, atol=1e-6):
        raise ValueError(f"Expected rows of probabilities that sum to 1. Received sums: {matrix.sum(1).tolist()}.")
    labels = _check_labels(labels, len(matrix))
    rng = _generator(seed)
    borders = matrix.cumsum(1)[labels]
    drawn = (rng.random((len(labels), 1)) >= borders / borders[:, -1:]).sum(1)
    return NoisyLabels.compare(labels, drawn, len(matrix))


def inject_false_positives(
    labels: ArrayLike, shots: int, num_false: int, num_classes: int, seed: int
) -> tuple[np.ndarray, NoisyLabels]:
    """Choose few shots per class, of which `num_false` are images of other classes under the class's label.

    The images of every class are parted: the first ceil(n (1 - num_false / shots)) may be its own shots, the others
    may be false positives of other classes. The noise rate is num_false / shots in every class.

    Source: CEWu/PTNL `trainers/utils.py`, select_top_k_similarity_per_class_with_noisy_label. Deviation: no image is
    taken twice (the authors draw false positives with replacement, and an image that two classes draw counts for the
    later one alone).

    Args:
        labels: true labels [n].
        shots: samples per class.
        num_false: how many of them are of other classes.
        num_classes: number of classes.
        seed: seed of the generator.

    Returns:
        The chosen samples [classes * shots], class by class with the false positives first, and their labels.

    Raises:
        ValueError: `num_false` above `shots`, or a class that is too small to give its shots.
    """
    require_int("shots", shots, 1)
    require_int("num_false", num_false, 0)
    if num_false > shots:
        raise ValueError(f"Expected 0 <= num_false <= shots. Received: num_false={num_false}, shots={shots}.")
    labels = _check_labels(labels, num_classes)
    rng = _generator(seed)
    members = [np.flatnonzero(labels == label) for label in range(num_classes)]
    # In whole numbers: ceil(n (1 - f / s)) must not be moved by rounding.
    parts = [-(-len(rows) * (shots - num_false) // shots) for rows in members]
    if small := [f"{label} ({part} of {len(members[label])})" for label, part in enumerate(parts) if part < shots - num_false]:  # fmt: skip
        raise ValueError(
            f"Classes too small to give {shots - num_false} true images of {shots}: {shorten(small)}. Use fewer shots."
        )
    own = [rng.permutation(rows[:part])[: shots - num_false] for rows, part in zip(members, parts, strict=True)]
    pool = np.concatenate([rows[part:] for rows, part in zip(members, parts, strict=True)])
    false = _assign_to_others(labels, pool, np.repeat(np.arange(num_classes), num_false), rng)
    chosen = np.concatenate([np.concatenate(pair) for pair in zip(false.reshape(num_classes, -1), own, strict=True)])
    given = np.repeat(np.arange(num_classes), shots)
    return chosen, NoisyLabels.compare(labels[chosen], given, num_classes)


def _assign_to_others(labels: np.ndarray, pool: np.ndarray, takers: np.ndarray, rng) -> np.ndarray:
    """Return a different sample of the pool for each entry of `takers`, never one of the taker's own class."""
    if len(pool) < len(takers):
        raise ValueError(
            f"Expected {len(takers)} images to serve as false positives. The classes leave {len(pool)}. "
            "Use fewer shots, or fewer false positives."
        )
    order = rng.permutation(pool)
    wanted = np.concatenate([takers, np.full(len(pool) - len(takers), -1)])  # -1: left over, takes anything
    for slot in np.flatnonzero(labels[order] == wanted):
        if labels[order[slot]] != wanted[slot]:
            continue  # mended by an earlier swap
        partners = np.flatnonzero((labels[order] != wanted[slot]) & (wanted != labels[order[slot]]))
        if not len(partners):
            raise ValueError(f"Class {wanted[slot]} finds no image of another class: the others are too small.")
        other = rng.choice(partners)
        order[slot], order[other] = order[other], order[slot]
    return order[: len(takers)]


def add_noise(
    data: Dataset | DatasetDict,
    kind: str,
    rate: float,
    seed: int,
    *,
    probabilities: ArrayLike | None = None,
    label_column: str = "label",
) -> tuple[Dataset | DatasetDict, NoisyLabels]:
    """Put noise on the labels of a data set; of a `DatasetDict` the training split alone is changed.

    Args:
        data: rows whose `label_column` is a `ClassLabel`; the input is not changed.
        kind: "symmetric", "pair" or "confusion".
        rate: share of the labels of every class to replace.
        seed: seed of the generator.
        probabilities: zero-shot probabilities [rows, classes] for "confusion".
        label_column: name of the label column.

    Returns:
        The rows with noisy labels in their old order, and the noise.

    Raises:
        ValueError: an unknown kind, a test split, no probabilities for "confusion", or what the kind itself refuses.
    """
    if isinstance(data, DatasetDict):
        train, noise = add_noise(
            data["train"], kind, rate, seed, probabilities=probabilities, label_column=label_column
        )
        return DatasetDict({**data, "train": train}), noise
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"Expected kind to be one of {list(KINDS)}. Received: kind={shown(kind)}.")
    if str(data.split) == "test":
        raise ValueError(f"Noise belongs in the training split. Received: the split {str(data.split)!r}.")
    feature = data.features[label_column]
    if not isinstance(feature, ClassLabel):
        raise ValueError(f"Expected the column {label_column!r} to be a ClassLabel. Received: {feature}.")
    labels = np.asarray(data[label_column][:])
    if kind == "confusion":
        if probabilities is None:
            raise ValueError("Expected zero-shot probabilities for kind='confusion'. Received: probabilities=None.")
        noise = confusion_noise(labels, rate, probabilities, seed)
    else:
        noise = KINDS[kind](labels, rate, feature.num_classes, seed)
    return set_column(data, label_column, noise.labels, feature), noise


#: Kinds of noise by name.
KINDS = {"symmetric": symmetric_noise, "pair": pair_noise, "confusion": confusion_noise}


def _check_labels(labels: ArrayLike, num_classes: int) -> np.ndarray:
    labels = np.asarray(labels)
    require_int("num_classes", num_classes, 2, MAX_ITEMS)
    if labels.ndim != 1 or not len(labels) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"Expected whole-number labels [samples]. Received: {labels.dtype} {list(labels.shape)}.")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"Expected labels from 0 to {num_classes - 1}. Received labels from {labels.min()} to {labels.max()}."
        )
    return labels.astype(int)


def _generator(seed: int) -> np.random.Generator:
    require_seed(seed)
    return np.random.default_rng(seed)


def _choose(labels: np.ndarray, rate: float, num_classes: int, rng) -> np.ndarray:
    """Return the positions of the labels to replace: round(rate * n) of the n samples of every class."""
    if not is_number(rate) or not 0 <= rate <= 1:
        raise ValueError(f"Expected a noise rate from 0 to 1. Received: rate={shown(rate)}.")
    counts = np.bincount(labels, minlength=num_classes)
    wanted = np.floor(rate * counts + 0.5).astype(int)
    if rate and (small := [f"{label} ({counts[label]})" for label in np.flatnonzero((counts > 0) & (wanted == 0))]):
        raise ValueError(
            f"Classes too small for a noise rate of {rate:g}, which would change none of their labels: "
            f"{shorten(small)}. Use more samples per class or a higher rate."
        )
    return np.concatenate(
        [rng.permutation(np.flatnonzero(labels == label))[:number] for label, number in enumerate(wanted)]
    ).astype(int)
