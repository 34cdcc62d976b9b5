"""The choice of rows of a labelled data set: few shots per class, base and novel classes, a stratified test split.

Everything here works on the label column alone, so no image is decoded.
"""

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
from datasets import ClassLabel, Dataset, Image

from ..utils.arguments import typed
from ..utils.fields import shown
from ..utils.validation import is_number, require_int, require_seed, shorten
from ..utils.warning import warn_caller
from .class_names import class_label
from .columns import set_column
from .feature_folders import DIGESTS, holds_features
from .image_digests import image_digests
from .images import image_files
from .multi_hot import MultiHot, is_multi_label, label_matrix, with_label_matrix


@typed
def few_shot(
    dataset: Dataset,
    shots: int,
    seed: int,
    label_column: str = "label",
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Draw `shots` images of every class; all of a class with fewer, with a warning.

    The draw depends on `(seed, label)` alone: the same seed gives the same images whatever other classes there are,
    and fewer shots are a subset of more shots. Where images have several labels, those drawn for one class may be of
    others too, which then have more.

    Args:
        dataset: data set whose `label_column` is a `ClassLabel`.
        shots: images per class, at least 1.
        seed: seed of the draw, at least 0.
        label_column: name of the label column.
        class_names: the classes to draw from; default: all.

    Returns:
        The chosen rows with their labels as they are, ordered by class.

    Raises:
        ValueError: `shots` or `seed` is out of range, or a name is not a class of the data set.
        TypeError: the label column is no `ClassLabel`.
    """
    wanted = check_draw(dataset, shots, seed, label_column, class_names)
    of_class = _members(dataset, label_column)
    chosen = [
        np.random.default_rng([seed, label]).permutation(np.flatnonzero(of_class(label)))[:shots]
        for label in sorted(wanted)
    ]
    # An image of several classes may be drawn for each of them.
    return dataset.select(list(dict.fromkeys(np.concatenate(chosen).tolist())))


@typed
def published_few_shot(
    dataset: Dataset,
    shots: int,
    seed: int,
    label_column: str = "label",
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Draw `shots` images of every class as the published lists of CoOp's data sets were drawn.

    One generator goes through all classes, in the order in which they first appear in the training images; the classes
    asked for are chosen afterwards. Source: KaiyangZhou/Dassl.pytorch `generate_fewshot_dataset`.

    Args, returns and raises: as `few_shot`; the rows are in the order in which they were drawn.
    """
    wanted = set(check_draw(dataset, shots, seed, label_column, class_names))
    rows_of: dict[int, list[int]] = {}
    for row, label in enumerate(dataset[label_column][:]):
        rows_of.setdefault(label, []).append(row)
    generator = random.Random(seed)
    chosen = []
    for label, rows in rows_of.items():
        drawn = generator.sample(rows, shots) if len(rows) >= shots else rows
        chosen += drawn if label in wanted else []
    return dataset.select(chosen)


def check_draw(
    dataset: Dataset, shots: int, seed: int, label_column: str, class_names: Sequence[str] | None
) -> list[int]:
    """Check what a draw is asked for, and warn of small classes; return the labels to draw from."""
    require_int("shots", shots, 1)
    require_seed(seed)
    names = _class_names(dataset, label_column)
    counts = class_counts(dataset, label_column)
    wanted = _label_numbers(names, names if class_names is None else class_names)
    if small := [f"{names[label]} ({counts[label]})" for label in wanted if counts[label] < shots]:
        warn_caller(
            f"{len(small)} of {len(wanted)} classes have fewer than {shots} training images, and all of theirs are taken: "
            f"{shorten(small)}. `min_images` leaves small classes out."
        )
    return wanted


@typed
def base_novel_split(class_names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split class names, in label order, into base (the first half, rounded up) and novel (the rest).

    This is the rule of the base-to-novel benchmark (CoCoOp, Zhou et al. 2022, section 4.1).

    Raises:
        ValueError: there are fewer than two classes, so that nothing would be novel.
    """
    _check_list(class_names)
    if len(class_names) < 2:
        raise ValueError(
            f"A base/novel split needs at least 2 classes. Received: {list(class_names)}. Use all classes instead."
        )
    half = math.ceil(len(class_names) / 2)
    return list(class_names[:half]), list(class_names[half:])


@typed
def select_classes(dataset: Dataset, class_names: Sequence[str], label_column: str = "label") -> Dataset:
    """Keep the rows of the named classes and relabel them 0, 1, ... in the order of `class_names`.

    Of images with several labels those are kept that are of one of the classes at least; where all classes are named, all.

    Raises:
        ValueError: a name is not a class of the data set, or no row is left.
        TypeError: the label column is no `ClassLabel`.
    """
    names = _class_names(dataset, label_column)
    if is_multi_label(dataset, label_column):
        labels = label_matrix(dataset, label_column)[:, _label_numbers(names, class_names)]
        kept = np.flatnonzero((labels == 1).any(1) | (len(class_names) == len(names)))
        if not len(kept):
            raise ValueError(f"No image of the classes {shorten(list(class_names))} in this split.")
        return with_label_matrix(dataset.select(kept), labels[kept], class_names, label_column)
    new_label = np.full(len(names), -1)
    new_label[_label_numbers(names, class_names)] = np.arange(len(class_names))
    labels = new_label[_labels(dataset, label_column)]
    kept = np.flatnonzero(labels >= 0)
    if not len(kept):
        raise ValueError(f"No image of the classes {shorten(list(class_names))} in this split.")
    return set_column(dataset.select(kept), label_column, labels[kept], class_label(class_names))


@typed
def stratified_split(
    dataset: Dataset,
    test_fraction: float,
    seed: int,
    label_column: str = "label",
    fraction_name: str = "test_fraction",
) -> tuple[Dataset, Dataset]:
    """Split off the same share of every class, to test on or to validate with.

    An image with several labels counts as of its rarest class, and a class that would be left without an image gets one
    back, so that shares are near to the same. Rows of one image file count as one, and stay together; so do features of
    images with the same bytes.

    Args:
        dataset: data set whose `label_column` is a `ClassLabel`.
        test_fraction: share of each class that is split off, between 0 and 1; every class gives at least one image
            and keeps at least one.
        seed: seed of the split.
        label_column: name of the label column.
        fraction_name: what messages call the share.

    Returns:
        A pair: what stays, and what is split off. A class without any image has none in both.

    Raises:
        ValueError: `test_fraction` is not between 0 and 1, or a class has fewer than two images.
        TypeError: the label column is no `ClassLabel`.
    """
    if not is_number(test_fraction) or not 0 < test_fraction < 1:
        raise ValueError(f"`{fraction_name}` must lie between 0 and 1. Received: {fraction_name}={test_fraction!r}.")
    require_seed(seed)
    names = _class_names(dataset, label_column)
    number, first_rows = _image_numbers(dataset)
    images = dataset if len(first_rows) == len(dataset) else dataset.select(first_rows)
    counts = class_counts(images, label_column)
    if is_multi_label(images, label_column):
        in_test = _multi_label_test(label_matrix(images, label_column) == 1, test_fraction, seed)[number]
        return dataset.select(np.flatnonzero(~in_test)), dataset.select(np.flatnonzero(in_test))
    if small := [name for name, count in zip(names, counts, strict=True) if count == 1]:
        raise ValueError(
            f"Too few images to split some off (2 are needed): {shorten(small)}. Add some, leave such classes out "
            f"(`min_images=2`), or split nothing off (`{fraction_name}=0`)."
        )
    in_test = _share_of_each(_labels(images, label_column), len(names), test_fraction, seed)[number]
    return dataset.select(np.flatnonzero(~in_test)), dataset.select(np.flatnonzero(in_test))


def _image_numbers(dataset: Dataset) -> tuple[np.ndarray, list[int]]:
    """Return the number of each row's image, int [rows], and the first row of each: of one file there is one image."""
    marks: Sequence = [None] * len(dataset)
    if holds_features(dataset) and DIGESTS in dataset.column_names:
        marks = [digest.tobytes() for digest in image_digests(dataset)]
    elif isinstance(dataset.features.get("image"), Image):
        marks = image_files(dataset)
    seen: dict[str | bytes | int, int] = {}
    number = np.asarray([seen.setdefault(row if mark is None else mark, len(seen)) for row, mark in enumerate(marks)])
    return number, np.unique(number, return_index=True)[1].tolist()


def _share_of_each(labels: np.ndarray, num_classes: int, share: float, seed: int) -> np.ndarray:
    """Return which rows are drawn, bool [rows]: a share of each class's, of two or more at least one and not all."""
    drawn = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(np.bincount(labels, minlength=num_classes)):
        size = min(max(round(count * share), 1), max(count - 1, 0))
        drawn[np.random.default_rng([seed, label]).permutation(np.flatnonzero(labels == label))[:size]] = True
    return drawn


def _multi_label_test(of_class: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return which images of classes [rows, classes] are to test on, bool [rows]."""
    none = of_class.shape[1]
    rarest = np.where(of_class, of_class.sum(0), np.inf).argmin(1)
    drawn = _share_of_each(np.where(of_class.any(1), rarest, none), none + 1, share, seed)
    for label in range(none):
        rows = np.flatnonzero(of_class[:, label])
        if len(rows) and drawn[rows].all():
            drawn[rows[0]] = False
    return drawn


@typed
def class_counts(dataset: Dataset, label_column: str = "label") -> np.ndarray:
    """Return the number of images of every class, in label order, int [classes].

    Raises:
        ValueError: there is no such column.
        TypeError: the label column is no `ClassLabel`.
    """
    names = _class_names(dataset, label_column)
    if is_multi_label(dataset, label_column):
        return (label_matrix(dataset, label_column) == 1).sum(0)
    return np.bincount(_labels(dataset, label_column), minlength=len(names))


def _class_names(dataset: Dataset, label_column: str) -> list[str]:
    feature = dataset.features.get(label_column)
    if feature is None:
        raise ValueError(f"No label column {label_column!r}. The data set has: {', '.join(dataset.column_names)}.")
    if not isinstance(feature, (ClassLabel, MultiHot)):
        raise TypeError(
            f"The label column {label_column!r} must be a datasets.ClassLabel. Received: {feature}. "
            "Call `dataset.class_encode_column`, or read the data with `load_images`."
        )
    return feature.names


def _check_list(class_names: Sequence[str]) -> None:
    if not isinstance(class_names, Sequence):
        raise ValueError(f"Expected a list of class names. Received: class_names={shown(class_names)}.")


def _label_numbers(names: list[str], class_names: Sequence[str]) -> list[int]:
    """Return the labels of classes, of which several may have one name: a run of neighbours is found as such.

    Raises:
        ValueError: a name that no class has, or one of several where it does not show which is meant.
    """
    _check_list(class_names)
    if unknown := [name for name in class_names if name not in names]:
        raise ValueError(f"Not classes of this data set: {shorten(unknown)}. It has: {shorten(names)}.")
    wanted = list(class_names)
    runs = [first for first in range(len(names) - len(wanted) + 1) if names[first : first + len(wanted)] == wanted]
    if len(runs) == 1:
        return list(range(runs[0], runs[0] + len(wanted)))
    labels: dict[str, list[int]] = {}
    for label, name in enumerate(names):
        labels.setdefault(name, []).append(label)
    if unclear := [name for name in dict.fromkeys(wanted) if len(labels[name]) not in (1, wanted.count(name))]:
        raise ValueError(f"Names that stand for several classes, of which some are wanted: {shorten(unclear)}.")
    return [labels[name][0] if len(labels[name]) == 1 else labels[name].pop(0) for name in wanted]


def _members(dataset: Dataset, label_column: str) -> Callable[[int], np.ndarray]:
    """Return a function that tells which rows are of a class, bool [rows]."""
    if is_multi_label(dataset, label_column):
        matrix = label_matrix(dataset, label_column)
        return lambda label: matrix[:, label] == 1
    labels = _labels(dataset, label_column)
    return lambda label: labels == label


def _labels(dataset: Dataset, label_column: str) -> np.ndarray:
    # One slice of the column: iterating over it would read row by row.
    return np.asarray(dataset[label_column][:], dtype=int)
