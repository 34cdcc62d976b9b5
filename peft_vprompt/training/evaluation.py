"""Accuracy of a prompted model on base classes, novel classes and their harmonic mean. All in percent."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import default_data_collator

from ..utils.devices import device_of
from ..utils.eval_mode import eval_mode
from ..utils.validation import shorten


class EvalSet(NamedTuple):
    """Hold images to be told apart among `class_names`.

    Attributes:
        rows: data set or list of rows with `labels` and `pixel_values` [3, height, width] or `image_features` [dim].
        class_names: names in label order.
    """

    rows: Sequence[dict]
    class_names: list[str]


def harmonic_mean(base: float, novel: float) -> float:
    """Return the harmonic mean of two accuracies; 0 if either is 0.

    Raises:
        ValueError: if an accuracy is negative.
    """
    if min(base, novel) < 0:
        raise ValueError(f"Accuracies must not be negative. Received: base={base}, novel={novel}.")
    return 2 * base * novel / (base + novel) if min(base, novel) > 0 else 0.0


def compute_metrics(prediction) -> dict[str, float]:
    """Return the accuracy in percent, for `transformers.Trainer(compute_metrics=...)`."""
    return {"accuracy": 100 * float(np.mean(np.argmax(prediction.predictions, axis=-1) == prediction.label_ids))}


@torch.no_grad()
def predict_logits(
    model: torch.nn.Module, rows: Sequence[dict], batch_size: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Classify images with a model whose call takes what the rows hold beside `labels` and returns `logits`.

    Returns:
        Logits, float32 [images, classes], and true labels, int [images].
    """
    device = device_of(model)
    logits, labels = [], []
    with eval_mode(model):
        # pyrefly: ignore[bad-argument-type]  # torch takes whatever has __len__ and __getitem__
        for batch in DataLoader(rows, batch_size=batch_size, collate_fn=default_data_collator):
            labels.append(batch.pop("labels").numpy())
            output = model(**{name: tensor.to(device) for name, tensor in batch.items()})
            logits.append(output.logits.float().cpu().numpy())
    return np.concatenate(logits), np.concatenate(labels)


def predict(model: torch.nn.Module, rows: Sequence[dict], batch_size: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Return predicted and true labels, both int arrays [images]."""
    logits, labels = predict_logits(model, rows, batch_size)
    return logits.argmax(-1), labels


def accuracy(model: torch.nn.Module, rows: Sequence[dict], batch_size: int = 100) -> float:
    """Return the share of images classified correctly, in percent, over all images alike (micro average).

    Raises:
        ValueError: if there is no image.
    """
    if not len(rows):
        raise ValueError("No image to evaluate on.")
    predicted, labels = predict(model, rows, batch_size)
    return 100 * float(np.mean(predicted == labels))


def evaluate(model, test_sets: dict[str, EvalSet], batch_size: int = 100, zero_shot: bool = False) -> dict[str, float]:
    """Measure the accuracy on every test set among that set's own class names.

    A model that learned something for each of its classes tells apart all of these, of which the set may have some, in any
    order.

    Args:
        model: a PEFT model of this package. Its class names are those of the last test set afterwards.
        test_sets: by name; `base` and `novel` together also give `hm`.
        batch_size: images per batch; the result does not depend on it.
        zero_shot: switch the adapter off, which leaves the plain model with the config's template.

    Returns:
        Accuracies in percent by test-set name, and `hm`, the harmonic mean of base and novel.

    Raises:
        ValueError: `zero_shot` of a model with a classification head, or no image.
    """
    if zero_shot and not hasattr(model.get_base_model(), "text_model"):
        raise ValueError("Zero-shot takes a model with a text tower. Received: a model with a classification head.")
    results = {}
    with model.disable_adapter() if zero_shot else nullcontext():
        for name, test_set in test_sets.items():
            rows, class_names = among_own_classes(model, test_set)
            set_class_names(model, class_names)
            results[name] = accuracy(model, rows, batch_size)
    if "base" in results and "novel" in results:
        results["hm"] = harmonic_mean(results["base"], results["novel"])
    return results


def own_classes(model) -> list[str] | None:
    """Return the classes that a model learned something for, one by one, in their order; None where it learned none so."""
    base = model.get_base_model()
    if not hasattr(base, "text_model"):
        return list(base.config.id2label.values())
    config = model.peft_config[model.active_adapter]
    return list(config.own_classes) if getattr(config, "belongs_to_classes", False) else None


def among_own_classes(model, test_set: EvalSet) -> EvalSet:
    """Return a test set with all classes of a model that has its own, if those of the set are among them."""
    own = own_classes(model)
    names = list(test_set.class_names)
    if own is None or names == own or not set(names) <= set(own) or len(set(names)) < len(names):
        return test_set
    # pyrefly: ignore[bad-argument-type]  # a loader of batches takes whatever has __len__ and __getitem__
    return EvalSet(_Relabelled(test_set.rows, [own.index(name) for name in names]), own)


class _Relabelled(torch.utils.data.Dataset):
    """Rows with other labels.

    Args:
        rows: with `labels`.
        new: the new label of each old one.
    """

    def __init__(self, rows: Sequence[dict], new: list[int]):
        self.rows = rows
        self.new = new

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict]:
        many = getattr(self.rows, "__getitems__", None)
        rows = many(indices) if many else [self.rows[index] for index in indices]
        return [{**row, "labels": self.new[int(row["labels"])]} for row in rows]


def set_class_names(model, class_names: Sequence[str]) -> None:
    """Give the model its classes; a classification head has its own, which must be these.

    Raises:
        ValueError: if the model has a classification head for other classes.
    """
    base = model.get_base_model()
    config = base.config
    if hasattr(base, "text_model"):
        model.set_class_names(list(class_names))
    elif list(config.id2label.values()) != list(class_names):
        raise ValueError(
            f"The model has a classification head for its {config.num_labels} classes of training and cannot tell "
            f"other classes apart: {shorten(class_names)}. Use all classes, or a model with a text tower."
        )
