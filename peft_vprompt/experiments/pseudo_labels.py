"""Labels for unlabelled images, given by zero-shot CLIPs (UPL), and the choice of those to train on.

Nothing here reads a label: of every row the image alone is touched. Ties go to the lower class and to the earlier image,
so that the same images give the same labels everywhere.

Papers: Huang et al., "Unsupervised Prompt Learning for Vision-Language Models", 2022, section 3; with random samples
and a robust loss: Wu et al., "Why Is Prompt Tuning for Vision-Language Models Robust to Noisy Labels?", ICCV 2023,
section 5.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..data.class_names import class_label
from ..data.columns import set_column
from ..data.feature_folders import images_alone
from ..utils.digests import digest_arrays, digest_json
from ..utils.fields import shown
from ..utils.io import atomic_path
from ..utils.validation import first_line, is_number, require_seed
from .zero_shot_scores import ScoreTable, digests_of


#: Arrays of a file of labels; with them go the digests of the images, where they are known.
_ARRAYS = ("indices", "labels", "confidences", "probabilities")


def _digest_of(arrays: dict[str, np.ndarray]) -> str:
    return digest_arrays(*(arrays[name] for name in sorted(arrays)))


@dataclass(frozen=True)
class PseudoLabels:
    """Images that were given a label; m = chosen images of n, c = classes.

    Attributes:
        indices: int [m], positions of the chosen images, each at most once, class by class.
        labels: int [m], their labels.
        confidences: float32 [m], probability of the label.
        probabilities: float32 [n, c], the table that the choice was made from.
        class_names: names in label order.
        source: how the labels were made.
        images: digests of all n images, uint8 [n, 16], see `data.image_digests`; None where they are not known.
    """

    indices: np.ndarray
    labels: np.ndarray
    confidences: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    source: dict = field(default_factory=dict)
    images: np.ndarray | None = None

    def __post_init__(self):
        images, classes = (*np.shape(self.probabilities), 0, 0)[:2]
        same = np.shape(self.indices) == np.shape(self.labels) == np.shape(self.confidences) == (len(self.indices),)
        whole = all(np.asarray(values).dtype.kind in "iu" for values in (self.indices, self.labels))
        named = all(isinstance(name, str) for name in self.class_names) and len(self.class_names) == classes
        ordered = same and whole and len(np.unique(self.indices)) == len(self.indices)
        inside = ordered and _all_below(self.indices, images) and _all_below(self.labels, classes)
        if not inside or not named or np.ndim(self.probabilities) != 2 or not isinstance(self.source, dict):
            raise ValueError(
                "Expected pseudo-labels: positions of images, each once, a label of one of the class names and a confidence "
                f"for each, and probabilities [images, classes]. Received: {np.shape(self.indices)} positions, "
                f"{np.shape(self.labels)} labels, {np.shape(self.confidences)} confidences, "
                f"{np.shape(self.probabilities)} probabilities, {len(self.class_names)} class names."
            )

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def content(self) -> str:
        """A digest of labels, images and class names, the same for the same ones."""
        return digest_json([_digest_of(self._arrays()), self.class_names], 32)

    def _arrays(self) -> dict[str, np.ndarray]:
        images = {} if self.images is None else {"images": np.ascontiguousarray(self.images)}
        return {name: getattr(self, name) for name in _ARRAYS} | images

    def label(self, images: Dataset) -> Dataset:
        """Return the chosen images with the column `label`; other columns are left out, true labels with them.

        Raises:
            ValueError: other images than the labels were made for, or these in another order; or no image was chosen.
        """
        if len(images) != len(self.probabilities):
            raise ValueError(f"The labels were made for {len(self.probabilities)} images. Received: {len(images)}.")
        self._require_same(images)
        if not len(self):
            raise ValueError("No image was chosen. Lower the threshold, or choose by top-k.")
        rows = images_alone(images).select(self.indices)
        return set_column(rows, "label", self.labels, class_label(self.class_names))

    def _require_same(self, images: Dataset) -> None:
        expected = self.images
        given = digests_of(images) if expected is not None else None
        if expected is None or given is None or np.array_equal(given, expected):
            return
        other = np.flatnonzero((given != expected).any(1))
        moved = sorted(map(bytes, given)) == sorted(map(bytes, expected))
        what = "these images in another order" if moved else "other images"
        raise ValueError(
            f"The labels were made for {what}: {len(other)} of {len(given)} differ, the first at position {other[0]}. "
            "Make the labels for these images anew."
        )

    def save(self, path: str | Path) -> None:
        """Write labels and scores, and which images they are of, as one safetensors file.

        Raises:
            CannotWriteError: the disk is full, or the folder is not to be written.
        """
        arrays = self._arrays()
        about = {"class_names": json.dumps(self.class_names), "source": json.dumps(self.source)}
        about["digest"] = _digest_of(arrays)
        with atomic_path(path) as partial:
            save_file(arrays, partial, metadata=about)

    @classmethod
    def load(cls, path: str | Path) -> PseudoLabels:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file cannot be read or holds something else.
        """
        remedy = "Write them with `vprompt pseudo-label`."
        try:
            file = safe_open(path, "numpy")
        except SafetensorError as error:
            raise ValueError(f"Cannot read {str(path)!r} as pseudo-labels: {error}. {remedy}") from error
        with file:
            about = file.metadata() or {}
            if "class_names" not in about or set(file.keys()) - {"images"} != set(_ARRAYS):
                raise ValueError(f"{path} holds no pseudo-labels. {remedy}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict
        if about.get("digest", found := _digest_of(arrays)) != found:
            raise ValueError(f"{path} is damaged: its values are not those that were saved. {remedy}")
        try:
            names, source = (json.loads(about[name]) for name in ("class_names", "source"))
            return cls(**arrays, class_names=tuple(names), source=source)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"{path} holds no pseudo-labels ({first_line(error)}). {remedy}") from error


def _all_below(positions: np.ndarray, count: int) -> bool:
    """Tell whether all positions are from 0 to below `count`."""
    return not len(positions) or bool(positions.min() >= 0 and positions.max() < count)


def top_k(probabilities: np.ndarray, class_names: Sequence[str], k: int | None = 16) -> PseudoLabels:
    """Choose the k most confident images of each predicted class (UPL); all with k=None.

    Args:
        probabilities: [n, c].
        class_names: names in label order.
        k: images per class.

    Raises:
        ValueError: k below 1, or a table that does not fit the names.
    """
    return _per_class(probabilities, class_names, {"selector": "top-k", "k": _count(k)}, lambda rows: rows[:k])


def random_k(probabilities: np.ndarray, class_names: Sequence[str], k: int | None = 16, seed: int = 1) -> PseudoLabels:
    """Choose k images of each predicted class at random (robust UPL): wrong labels are then spread, not concentrated.

    Args:
        probabilities: [n, c].
        class_names: names in label order.
        k: images per class; None for all.
        seed: seed of the choice.

    Raises:
        ValueError: k below 1, or a table that does not fit the names.
    """
    require_seed(seed)
    rng = np.random.default_rng(seed)
    source = {"selector": "random-k", "k": _count(k), "seed": seed}
    return _per_class(probabilities, class_names, source, lambda rows: rows[np.sort(rng.permutation(len(rows))[:k])])


def threshold(probabilities: np.ndarray, class_names: Sequence[str], minimum: float) -> PseudoLabels:
    """Choose all images whose confidence is above `minimum`.

    Args:
        probabilities: [n, c].
        class_names: names in label order.
        minimum: confidence in [0, 1).

    Raises:
        ValueError: a threshold out of range, or a table that does not fit the names.
    """
    if not is_number(minimum) or not 0 <= minimum < 1:
        raise ValueError(f"Expected a confidence threshold in [0, 1). Received: minimum={shown(minimum)}.")
    table = _check_table(probabilities, class_names)
    confident = table.max(1) > np.float32(minimum)
    return _per_class(
        table, class_names, {"selector": "threshold", "minimum": minimum}, lambda rows: rows[confident[rows]]
    )


def quota(probabilities: np.ndarray, class_names: Sequence[str], counts: int | Sequence[int]) -> PseudoLabels:
    """Choose a number of images for every class (one number for all, or one per class), if there are enough.

    Pairs of an image and a class are taken in the order of their probability, while the image is free and the class
    has room. So classes that zero-shot hardly ever predicts get images too, and no image is taken twice.

    Args:
        probabilities: [n, c].
        class_names: names in label order.
        counts: images per class.

    Raises:
        ValueError: a negative number, or not one per class, or a table that does not fit the names.
    """
    table = _check_table(probabilities, class_names)
    try:
        room = np.array([counts] * table.shape[1] if np.ndim(counts) == 0 else counts, dtype=int)
    except (TypeError, ValueError, OverflowError):  # of what is no whole number
        room = np.array([-1])
    if room.shape != (table.shape[1],) or (room < 0).any():
        raise ValueError(
            f"Expected a number >= 0 for all {table.shape[1]} classes, or one each. Received: {shown(counts)}."
        )
    source = {"selector": "quota", "counts": room.tolist()}
    free = np.ones(len(table), dtype=bool)
    taken = [[] for _ in room]
    for pair in np.argsort(-table, axis=None, kind="stable"):
        image, label = divmod(int(pair), table.shape[1])
        if free[image] and len(taken[label]) < room[label]:
            free[image] = False
            taken[label].append(image)
    return _collect(table, class_names, source, [np.array(images, dtype=int) for images in taken])


#: Selectors by name, as functions of the table, the class names, the images per class and the seed.
SELECTORS: dict[str, Callable[..., PseudoLabels]] = {
    "top-k": lambda table, names, k, seed: top_k(table, names, k),
    "random-k": random_k,
    "quota": lambda table, names, k, seed: quota(table, names, k if k is not None else len(table)),
}


def _per_class(
    probabilities: np.ndarray, class_names: Sequence[str], source: dict, choose: Callable[[np.ndarray], np.ndarray]
) -> PseudoLabels:
    """Choose among the images of each predicted class, which are given by descending confidence."""
    table = _check_table(probabilities, class_names)
    predicted = table.argmax(1)
    order = np.argsort(-table.max(1), kind="stable")
    chosen = [choose(order[predicted[order] == label]) for label in range(table.shape[1])]
    return _collect(table, class_names, source, chosen)


def _collect(table: np.ndarray, class_names: Sequence[str], source: dict, chosen: list[np.ndarray]) -> PseudoLabels:
    indices = np.concatenate(chosen).astype(np.int64)
    labels = np.repeat(np.arange(len(chosen)), [len(rows) for rows in chosen])
    scores = np.asarray(table)
    images = getattr(table, "images", None)
    return PseudoLabels(indices, labels, scores[indices, labels], scores, tuple(class_names), source, images)


def _check_table(probabilities: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    if not isinstance(class_names, (list, tuple)):
        raise ValueError(f"Expected a list of class names. Received: class_names={shown(class_names)}.")
    try:
        table = np.ascontiguousarray(probabilities, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"Expected finite probabilities. Received: {shown(probabilities)}.") from error
    if table.ndim != 2 or table.shape[1] != len(class_names) or not np.isfinite(table).all():
        raise ValueError(
            f"Expected finite probabilities [images, {len(class_names)}], one column per class name. "
            f"Received: shape {list(table.shape)}."
        )
    return ScoreTable.of(table, getattr(probabilities, "images", None))


def _count(k: int | None) -> int | None:
    if k is not None and (not is_number(k) or k < 1 or k % 1):
        raise ValueError(f"Expected at least 1 image per class, or None for all. Received: k={shown(k)}.")
    return k
