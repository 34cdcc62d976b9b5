"""`report.html` of a run: one page that needs no other file and no network. What is measured for it changes no result."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from sklearn.metrics import confusion_matrix
from torch.utils.data import Subset

from ..metrics import calibration, scores
from ..training.evaluation import EvalSet, among_own_classes, predict_logits, set_class_names
from ..utils.io import atomic_path
from ..version import __version__
from .cards import card_details
from .diagnostics import image_names, most_confused, worst_images


#: Test images of each set of classes that the page looks at, evenly taken from all of them.
MOST_IMAGES = 300

#: Wrongly classified images that are shown, and the edge of their pictures in pixels.
SHOWN, EDGE = 12, 96

#: Classes of the largest confusion matrix that is drawn.
MOST_CLASSES = 40


def write_page(report: Mapping, findings: Sequence[Mapping], path: str | Path) -> None:
    """Write the page of a run.

    Args:
        report: what `results.json` holds.
        findings: what `look` found, for each set of classes.
        path: the file.

    Raises:
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    details = card_details(report)
    # pyrefly: ignore[bad-argument-type]  # set, as this is no script
    template = resources.files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(
        title=report["title"],
        details=details,
        has_zero_shot=any(score.zero_shot is not None for score in details.scores),
        learned=report["trainable_parameters"],
        bytes=report["adapter_bytes"],
        model=report["settings"]["model"] or "the embedded CLIP",
        curves=list(filter(None, (_curve(report["history"], name) for name in _curve_names(report)))),
        findings=findings,
        version=__version__,
    )
    with atomic_path(path) as partial:
        partial.write_text(page, encoding="utf-8")


def look(model: Any, name: str, test_set: EvalSet) -> dict | None:
    """Return what a model gets wrong of some test images; None where these have several classes each.

    Args:
        model: a PEFT model; its classes are those of the test set afterwards.
        name: of the set of classes.
        test_set: labelled images.

    Returns:
        `name`, `images`, `of` (how many there are), `accuracy`, `ece`, `bins` (`confidence`, `accuracy` and `share` of the
        images, by bin), `confused`, `names` and `confusion` (None where there are too many classes), and `worst`, each with
        a `picture` in base64 where the images are at hand.
    """
    rows: Any = test_set.rows
    names = test_set.class_names
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(MOST_IMAGES, len(rows))).round().astype(int)).tolist()
    some: Any = rows.select(chosen) if isinstance(rows, Dataset) else Subset(rows, chosen)
    among = among_own_classes(model, EvalSet(some, names))
    set_class_names(model, among.class_names)
    logits, labels = predict_logits(model, among.rows)
    if labels.ndim == 2:
        return None
    names = among.class_names
    table = torch.from_numpy(logits).softmax(-1).numpy()
    predicted = table.argmax(1)
    found = calibration(table, labels, bins=10)
    worst = worst_images(table, labels, names, range(len(labels)))[:SHOWN]
    called = image_names(some)
    is_small = len(names) <= MOST_CLASSES
    return {
        "name": name,
        "images": len(labels),
        "of": len(rows),
        "accuracy": 100 * scores.accuracy(predicted, labels),
        "ece": 100 * found.ece,
        "bins": [
            {"confidence": float(confidence), "accuracy": float(right), "share": float(count / len(labels))}
            for confidence, right, count in zip(found.confidence, found.accuracy, found.count, strict=True)
            if count
        ],
        "confused": most_confused(labels, predicted, names, limit=6),
        "names": names,
        "confusion": _shares(labels, predicted, len(names)) if is_small else None,
        "worst": [
            each | {"image": Path(str(called[each["image"]])).name, "picture": _picture(some, each["image"])}
            for each in worst
        ],
    }


def _shares(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> list[list[float]]:
    """Return the shares of each class's images (row) that are taken for each class (column)."""
    matrix = confusion_matrix(labels, predicted, labels=np.arange(num_classes))
    return (matrix / np.maximum(matrix.sum(1, keepdims=True), 1)).tolist()


def _picture(rows: Any, index: int) -> str | None:
    """Return a small picture of an image as base64 of a JPEG; None where the rows have none."""
    if not isinstance(rows, Dataset) or "image" not in rows.column_names:
        return None
    image = rows.with_format(None)[index]["image"]
    if not isinstance(image, Image.Image):
        return None
    image = image.convert("RGB")
    image.thumbnail((EDGE, EDGE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()


def _curve_names(report: Mapping) -> list[str]:
    """Return what was logged along the way and is drawn: losses and accuracies."""
    names = dict.fromkeys(name for entry in report["history"] for name in entry)
    return [name for name in names if name.split("_")[-1] in ("loss", "accuracy", "map")]


def _curve(history: Sequence[Mapping], name: str) -> dict | None:
    """Return a curve to draw: its name, range and points in [0, 1] squared, in several lines where training began anew."""
    lines: list[list[tuple[float, float]]] = [[]]
    for entry in history:
        value = entry.get(name)
        if value is None or not np.isfinite(value):
            continue
        if lines[-1] and entry["step"] < lines[-1][-1][0]:
            lines.append([])
        lines[-1].append((entry["step"], value))
    points = [point for line in lines for point in line]
    if len(points) < 2:
        return None
    steps, values = zip(*points, strict=True)
    wide, high = max(steps) - min(steps) or 1, max(values) - min(values) or 1
    scaled = [[((x - min(steps)) / wide, (y - min(values)) / high) for x, y in line] for line in lines]
    ends = {"low": min(values), "high": max(values), "first": min(steps), "last": max(steps)}
    return {"name": name.replace("_", " "), "lines": scaled, "ends": ends, "final": values[-1]}
