"""The classes among which the images of a test set are told apart, and what a model with a classification head makes of them."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from ..data.multi_hot import NOT_KNOWN
from ..tuners.base.classifier import text_classifier
from ..utils.name_keys import readable
from ..utils.validation import shorten


class EvalSet(NamedTuple):
    """Hold images to be told apart among `class_names`.

    Attributes:
        rows: data set or list of rows with `labels` and `pixel_values` [3, height, width] or `image_features` [dim].
        class_names: names in label order.
    """

    rows: Sequence[dict]
    class_names: list[str]


def compares_with_text(model) -> bool:
    """Return whether a PEFT model's base model compares images with texts, as zero-shot needs it."""
    return text_classifier(model) is not None


def own_classes(model) -> list[str] | None:
    """Return the classes of a model's classification head, in their order; None where it compares with class names."""
    return None if compares_with_text(model) else list(model.get_base_model().config.id2label.values())


def among_own_classes(model, test_set: EvalSet) -> EvalSet:
    """Return a test set with all classes of a model with a classification head, if those of the set are among them."""
    own = own_classes(model)
    if own is None:
        return test_set
    names, known = _read(test_set.class_names), _read(own)
    if names == known or not set(names) <= set(known) or len(set(names)) < len(names):
        return test_set
    # pyrefly: ignore[bad-argument-type]  # a loader of batches takes whatever has __len__ and __getitem__
    return EvalSet(_Relabelled(test_set.rows, [known.index(name) for name in names], len(own)), own)


def _read(names: Iterable[str]) -> list[str]:
    return [readable(name) for name in names]


class _Relabelled(torch.utils.data.Dataset):
    """Rows with other labels.

    Args:
        rows: with `labels`.
        new: the new label of each old one.
        num_classes: how many new ones there are; of those that no old one is, multi-hot labels say that nobody knows.
    """

    def __init__(self, rows: Sequence[dict], new: list[int], num_classes: int):
        self.rows = rows
        self.new = new
        self.num_classes = num_classes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict]:
        many = getattr(self.rows, "__getitems__", None)
        rows = many(indices) if many else [self.rows[index] for index in indices]
        return [{**row, "labels": self._relabel(torch.as_tensor(row["labels"]))} for row in rows]

    def _relabel(self, labels: torch.Tensor):
        if not labels.ndim:
            return self.new[int(labels)]
        relabelled = labels.new_full((self.num_classes,), NOT_KNOWN)
        relabelled[self.new] = labels
        return relabelled


def set_class_names(model, class_names: Sequence[str]) -> None:
    """Give the model its classes; a classification head has its own, which must be these.

    Raises:
        ValueError: if the model has a classification head for other classes.
    """
    base = model.get_base_model()
    config = base.config
    if compares_with_text(model):
        model.set_class_names(list(class_names))
    elif _read(config.id2label.values()) != _read(class_names):
        raise ValueError(
            f"The model has a classification head for its {config.num_labels} classes of training and cannot tell "
            f"other classes apart: {shorten(class_names)}. Use all classes, or a model with a text tower."
        )
