"""What to look at before labels are trusted: calibration, confusion, coverage of pseudo-labels, estimated label noise.

Shapes: n = samples, c = classes. All functions take arrays; labels of the true kind are read here and nowhere on the
way that makes pseudo-labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Image
from numpy.typing import ArrayLike
from peft import PeftModel
from sklearn.metrics import confusion_matrix

from ..data.images import image_paths
from ..metrics import scores
from ..metrics.reliability import Calibration, calibration, check_probabilities
from ..training.evaluation import EvalSet, predict_logits
from ..utils.arguments import typed
from ..utils.environment import environment
from ..utils.io import write_json
from ..utils.plotting import saved_figure
from .pseudo_labels import PseudoLabels


@typed
def plot_reliability(result: Calibration, path: str | Path, title: str = "") -> None:
    """Draw accuracy against confidence, with the share of samples in each bin, and write it as PNG."""
    bins = len(result.count)
    left = np.arange(bins) / bins
    with saved_figure(path) as (axes,):
        axes.bar(left, np.nan_to_num(result.accuracy), 1 / bins, align="edge", edgecolor="white", label="accuracy")
        axes.step(left, result.count / result.count.sum(), where="post", color="grey", label="share of samples")
        axes.plot([0, 1], [0, 1], "k--", linewidth=1, label="perfect calibration")
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        axes.set_title(f"{title} (ECE {100 * result.ece:.1f} %)".strip())
        axes.legend(fontsize=8, frameon=False)


@dataclass(frozen=True)
class NoiseEstimate:
    """Estimated label noise.

    Attributes:
        rate: estimated share of wrong labels.
        joint: [c, c], estimated share of the samples with label y (row) whose true class is k (column).
        suspects: positions of the samples that look wrongly labelled, the most suspicious first.
    """

    rate: float
    joint: np.ndarray
    suspects: np.ndarray


def estimate_noise(labels: ArrayLike, probabilities: ArrayLike) -> NoiseEstimate:
    """Estimate the noise in `labels` from a model that was not trained on them, zero-shot for instance.

    A sample counts for the likeliest class whose probability reaches the mean probability that samples with that
    label have (confident learning; Northcutt et al. 2021, section 3.1). The estimate is as good as the model.

    Args:
        labels: labels to look at, int [n].
        probabilities: the model's, [n, c].

    Raises:
        ValueError: shapes that do not fit, or values that are no probabilities.
    """
    table, labels = check_probabilities(probabilities, labels)
    num_classes = table.shape[1]
    sizes = np.bincount(labels, minlength=num_classes)
    own = table[np.arange(len(labels)), labels]
    sums = np.bincount(labels, weights=own, minlength=num_classes)
    thresholds = np.divide(sums, sizes, out=np.full(num_classes, np.inf), where=sizes > 0)
    confident = np.where(table >= thresholds - 1e-9, table, -1.0)  # a class of equal values reaches its own mean
    counted = confident.max(1) >= 0
    guess = confident.argmax(1)
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (labels[counted], guess[counted]), 1)
    np.fill_diagonal(counts, np.where(counts.sum(1) == 0, 1.0, counts.diagonal()))  # nothing known: taken as right
    joint = counts / counts.sum(1, keepdims=True) * sizes[:, None] / len(labels)
    suspects = np.flatnonzero(counted & (guess != labels))
    margin = own[suspects] - table[suspects, guess[suspects]]
    return NoiseEstimate(float(1 - joint.trace()), joint, suspects[np.argsort(margin, kind="stable")])


def most_confused(labels: ArrayLike, predicted: ArrayLike, class_names: Sequence[str], limit: int = 10) -> list[dict]:
    """Return the pairs of classes that are mistaken for each other most often.

    Args:
        labels: true labels, int [n].
        predicted: predicted labels, int [n].
        class_names: names in label order.
        limit: number of pairs at most.

    Returns:
        `{"true", "predicted", "count", "share"}`, the share being of the true class's samples.

    Raises:
        ValueError: shapes that do not fit, or no label that is a class.
    """
    matrix = confusion_matrix(labels, predicted, labels=np.arange(len(class_names)))
    sizes = matrix.sum(1)
    wrong = matrix - np.diag(matrix.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    pairs = [(int(true), int(guess)) for true, guess in zip(*np.unravel_index(order, matrix.shape), strict=True)]
    return [
        {"true": class_names[true], "predicted": class_names[guess], "count": int(matrix[true, guess]),
         "share": float(matrix[true, guess] / sizes[true])}
        for true, guess in pairs if wrong[true, guess]
    ]  # fmt: skip


#: What an estimate of wrong labels takes for granted.
ASSUMED = (
    "The estimate assumes that the model was not trained on these images and these labels, that it is right more often "
    "than wrong in every class, and that which label is put in a true one's place depends on the class alone."
)

#: Wrongly classified images that are listed.
WORST = 20


def image_names(rows) -> list[str | int]:
    """Return what to call each image: its file, where the data has files, else its place."""
    if not isinstance(rows, Dataset) or not isinstance(rows.features.get("image"), Image):
        return list(range(len(rows)))
    return [path if path else place for place, path in enumerate(image_paths(rows))]


def worst_images(
    probabilities: np.ndarray, labels: np.ndarray, class_names: Sequence[str], names: Sequence[str | int]
) -> list[dict]:
    """Return the images that are surest and wrong: `{"image", "label", "predicted", "confidence"}`, the surest first.

    Args:
        probabilities: [n, c].
        labels: int [n].
        class_names: names in label order.
        names: what to call each image, [n].
    """
    predicted = probabilities.argmax(1)
    confidence = probabilities.max(1)
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(-confidence[wrong], kind="stable")][:WORST]
    return [
        {"image": names[i], "label": class_names[labels[i]], "predicted": class_names[predicted[i]],
         "confidence": float(confidence[i])}
        for i in order
    ]  # fmt: skip


@typed
def diagnose(model: PeftModel, test_set: EvalSet, folder: str | Path, zero_shot: bool = False) -> dict:
    """Write `diagnosis.json` and `reliability.png`: how a model and a set of labels agree.

    Args:
        model: a PEFT model whose classes are those of `test_set`.
        test_set: labelled images.
        folder: where to write.
        zero_shot: switch the adapter off.

    Returns:
        `accuracy`, `accuracy_per_class` (None of a class without an image), `calibration`, `confused`, `confusion` (row: label, column: prediction),
        `worst` (see `worst_images`) and `estimated_noise` in the labels: its rate, what that assumes, and the suspects.
        Images are called by their files, where the data has files, else by their places.

    Raises:
        ValueError: no image, or labels that are not the model's classes.
    """
    with model.disable_adapter() if zero_shot else nullcontext():
        logits, labels = predict_logits(model, test_set.rows)
    table = torch.from_numpy(logits).softmax(-1).numpy()
    names = test_set.class_names
    images = image_names(test_set.rows)
    predicted = table.argmax(1)
    result = calibration(table, labels)
    noise = estimate_noise(labels, table)
    matrix = confusion_matrix(labels, predicted, labels=np.arange(len(names)))
    report = {
        "accuracy": scores.accuracy(predicted, labels),
        "accuracy_per_class": _shares(names, matrix.diagonal(), matrix.sum(1)),
        "calibration": result.to_dict(),
        "confused": most_confused(labels, predicted, names),
        "confusion": matrix.tolist(),
        "worst": worst_images(table, labels, names, images),
        "estimated_noise": {
            "rate": noise.rate,
            "assumes": ASSUMED,
            "suspects": [images[place] for place in noise.suspects],
        },
        "environment": environment(),
    }
    write_json(report, Path(folder) / "diagnosis.json")
    plot_reliability(result, Path(folder) / "reliability.png")
    return report


def _shares(names: Sequence[str], right: np.ndarray, counts: np.ndarray) -> dict[str, float | None]:
    """Return the share of each class's images that are right; None of a class without any."""
    return {name: float(ok / n) if n else None for name, ok, n in zip(names, right, counts, strict=True)}


def pseudo_label_report(chosen: PseudoLabels, labels: ArrayLike | None = None) -> dict:
    """Return the coverage of pseudo-labels, and their accuracy where true labels exist.

    Args:
        chosen: the pseudo-labels.
        labels: true labels, int [n], of all n images that they were made for; None where nobody knows them.

    Returns:
        `images`, `chosen`, `coverage` (share of the classes that have an image), `per_class` (chosen images), and with
        labels `accuracy` of the chosen, `accuracy_of_all`, `accuracy_per_class`, `ece` and `confused`.

    Raises:
        ValueError: another number of labels than images, or labels that are not the classes.
    """
    names = chosen.class_names
    num_classes = len(names)
    counts = np.bincount(chosen.labels, minlength=num_classes)
    report = {
        "images": len(chosen.probabilities),
        "chosen": len(chosen),
        "coverage": float((counts > 0).mean()),
        "per_class": dict(zip(names, counts.tolist(), strict=True)),
    }
    if labels is None:
        return report
    table, labels = check_probabilities(chosen.probabilities, labels)
    right = labels[chosen.indices] == chosen.labels
    correct = np.bincount(chosen.labels, weights=right, minlength=num_classes)
    return report | {
        "accuracy": float(right.mean()) if len(chosen) else None,
        "accuracy_of_all": scores.accuracy(table.argmax(1), labels),
        "accuracy_per_class": _shares(names, correct, counts),
        "ece": calibration(table, labels).ece,
        "confused": most_confused(labels, table.argmax(1), names),
    }
