"""The choice of rows of a labelled data set: few shots per class, base and novel classes, a stratified test split.

Everything here works on the label column alone, so no image is decoded.
"""

import math
from collections.abc import Sequence

import numpy as np
from datasets import ClassLabel, Dataset

from ..utils.validation import shorten


def few_shot(
    dataset: Dataset,
    shots: int,
    seed: int,
    label_column: str = "label",
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Draw `shots` images of every class.

    The draw depends on `(seed, label)` alone: the same seed gives the same images whatever other classes there are,
    and fewer shots are a subset of more shots.

    Args:
        dataset: data set whose `label_column` is a `ClassLabel`.
        shots: images per class, at least 1.
        seed: seed of the draw, at least 0.
        label_column: name of the label column.
        class_names: the classes to draw from; default: all.

    Returns:
        The chosen rows with their labels as they are, ordered by class.

    Raises:
        ValueError: `shots` or `seed` is out of range, a name is not a class of the data set, or a class has fewer
            than `shots` images (the message names the classes).
        TypeError: the label column is no `ClassLabel`.
    """
    if shots < 1:
        raise ValueError(f"`shots` must be at least 1. Received: shots={shots}.")
    if seed < 0:
        raise ValueError(f"`seed` must not be negative. Received: seed={seed}.")
    names = _class_names(dataset, label_column)
    counts = class_counts(dataset, label_column)
    wanted = _label_numbers(names, names if class_names is None else class_names)
    if small := [f"{names[label]} ({counts[label]})" for label in wanted if counts[label] < shots]:
        raise ValueError(
            f"{len(small)} of {len(wanted)} classes have fewer than {shots} training images: {shorten(small)}. "
            "Use fewer shots, or leave small classes out (`min_images`)."
        )
    labels = _labels(dataset, label_column)
    chosen = [
        np.random.default_rng([seed, label]).permutation(np.flatnonzero(labels == label))[:shots]
        for label in sorted(wanted)
    ]
    return dataset.select(np.concatenate(chosen))


def base_novel_split(class_names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split class names, in label order, into base (the first half, rounded up) and novel (the rest).

    This is the rule of the base-to-novel benchmark (CoCoOp, Zhou et al. 2022, section 4.1).

    Raises:
        ValueError: there are fewer than two classes, so that nothing would be novel.
    """
    if len(class_names) < 2:
        raise ValueError(
            f"A base/novel split needs at least 2 classes. Received: {list(class_names)}. Use all classes instead."
        )
    half = math.ceil(len(class_names) / 2)
    return list(class_names[:half]), list(class_names[half:])


def select_classes(dataset: Dataset, class_names: Sequence[str], label_column: str = "label") -> Dataset:
    """Keep the rows of the named classes and relabel them 0, 1, ... in the order of `class_names`.

    Raises:
        ValueError: a name is not a class of the data set, or no row is left.
        TypeError: the label column is no `ClassLabel`.
    """
    names = _class_names(dataset, label_column)
    new_label = np.full(len(names), -1)
    new_label[_label_numbers(names, class_names)] = np.arange(len(class_names))
    labels = new_label[_labels(dataset, label_column)]
    kept = np.flatnonzero(labels >= 0)
    if not len(kept):
        raise ValueError(f"No image of the classes {shorten(list(class_names))} in this split.")
    rows = dataset.select(kept).remove_columns(label_column)
    return rows.add_column(label_column, labels[kept], feature=ClassLabel(names=list(class_names)))


def stratified_split(
    dataset: Dataset, test_fraction: float, seed: int, label_column: str = "label"
) -> tuple[Dataset, Dataset]:
    """Split off the same share of every class, to test on or to validate with.

    Args:
        dataset: data set whose `label_column` is a `ClassLabel`.
        test_fraction: share of each class that is split off, between 0 and 1; every class gives at least one image
            and keeps at least one.
        seed: seed of the split.
        label_column: name of the label column.

    Returns:
        A pair: what stays, and what is split off.

    Raises:
        ValueError: `test_fraction` is not between 0 and 1, or a class has fewer than two images.
        TypeError: the label column is no `ClassLabel`.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"`test_fraction` must lie between 0 and 1. Received: test_fraction={test_fraction}.")
    names = _class_names(dataset, label_column)
    counts = class_counts(dataset, label_column)
    if small := [name for name, count in zip(names, counts, strict=True) if count < 2]:
        raise ValueError(f"Too few images to split some off (2 are needed): {shorten(small)}.")
    labels = _labels(dataset, label_column)
    in_test = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(counts):
        size = min(max(round(count * test_fraction), 1), count - 1)
        in_test[np.random.default_rng([seed, label]).permutation(np.flatnonzero(labels == label))[:size]] = True
    return dataset.select(np.flatnonzero(~in_test)), dataset.select(np.flatnonzero(in_test))


def class_counts(dataset: Dataset, label_column: str = "label") -> np.ndarray:
    """Return the number of images of every class, in label order, int [classes].

    Raises:
        ValueError: there is no such column.
        TypeError: the label column is no `ClassLabel`.
    """
    names = _class_names(dataset, label_column)
    return np.bincount(_labels(dataset, label_column), minlength=len(names))


def _class_names(dataset: Dataset, label_column: str) -> list[str]:
    feature = dataset.features.get(label_column)
    if feature is None:
        raise ValueError(f"No label column {label_column!r}. The data set has: {', '.join(dataset.column_names)}.")
    if not isinstance(feature, ClassLabel):
        raise TypeError(
            f"The label column {label_column!r} must be a datasets.ClassLabel. Received: {feature}. "
            "Call `dataset.class_encode_column`, or read the data with `load_images`."
        )
    return feature.names


def _label_numbers(names: list[str], class_names: Sequence[str]) -> list[int]:
    if unknown := [name for name in class_names if name not in names]:
        raise ValueError(f"Not classes of this data set: {shorten(unknown)}. It has: {shorten(names)}.")
    return [names.index(name) for name in class_names]


def _labels(dataset: Dataset, label_column: str) -> np.ndarray:
    # One slice of the column: iterating over it would read row by row.
    return np.asarray(dataset[label_column][:], dtype=int)
