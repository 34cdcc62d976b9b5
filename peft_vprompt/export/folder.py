"""A folder that classifies images without this package: a model, its labels, its preprocessing, and `predict.py`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UnsupportedModelError
from ..utils.io import atomic_files, finish_saving, read_json, write_json
from ..utils.locks import only_writer
from ..utils.validation import require_choice, shorten
from . import standalone
from .classifier import Classifier
from .graphs import save_onnx, save_torch_export
from .plain import save_plain
from .quantisation import quantise


LABELS = "labels.json"
PREPROCESSING = "preprocessor_config.json"
SCRIPT = "predict.py"

#: How far logits may be from the model's: a share of the largest, or of 1.
TOLERANCE = 1e-4

#: What a folder can hold.
FORMATS = ("plain", "onnx", "torch-export")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: where.
        kind: what runs it, see `standalone.LOADERS`.
        difference: the largest difference of logits to the model's, before any loss of precision that was asked for.
        bytes: size of all files.
    """

    folder: Path
    kind: str
    difference: float
    bytes: int

    @property
    def script(self) -> Path:
        """The program that classifies images."""
        return self.folder / SCRIPT

    def predictor(self) -> standalone.Predictor:
        """Return what the program classifies with."""
        return standalone.Predictor(self.folder)


def export(
    classifier: Classifier,
    output: str | os.PathLike,
    format: str = "onnx",
    *,
    bf16: bool = False,
    int8: bool = False,
    wait: bool = False,
) -> Exported:
    """Write a classifier to a folder that needs nothing of this package, and make sure that it says the same.

    Args:
        classifier: the adapter, on the CPU.
        output: the folder.
        format: "plain" for a model of transformers (with a matrix of class features), where the adapter is a change of
            weights and class features alone; "onnx" or "torch-export" for a graph, which every method has.
        bf16: store the weights of a plain model in bfloat16.
        int8: store the weights of an ONNX model in 8 bits.
        wait: wait while another process writes there.

    Raises:
        UnsupportedModelError: there is no plain model of this adapter, or its preprocessing is more than Pillow and NumPy
            do.
        ValueError: the folder holds something else; an option that is not for this format; the logits differ.
        ImportError: ONNX or its runtime is not installed.
        CannotWriteError: the disk is full, or the folder is not to be written.
        FolderInUseError: another process writes there.
    """
    require_choice("format", format, FORMATS)
    for name, given, only in (("bf16", bf16, "plain"), ("int8", int8, "onnx")):
        if given and format != only:
            raise ValueError(f"Expected {name} with format={only!r} (--format {only}). Received: format={format!r}.")
    folder = Path(output)
    pixels = require_plain_preprocessing(classifier)
    writers: dict[str, Callable[[Path], str]] = {
        "plain": lambda place: save_plain(classifier, place),
        "onnx": lambda place: save_onnx(classifier, place, pixels[:2]),
        "torch-export": lambda place: save_torch_export(classifier, place, pixels[:2]),
    }
    with only_writer(folder, wait) as writer:
        finish_saving(folder)
        _require_free(folder, format)
        with atomic_files(folder) as staging:
            kind = writers[format](staging)
            _describe(classifier, staging, kind)
            difference = check(classifier, staging, pixels)
            if bf16:
                save_plain(classifier, staging, bf16=True)
            if int8:
                quantise(staging, len(classifier.class_names))
            # Whoever reads the labels reads the weights, which are written for one alone.
            for path in staging.iterdir():
                shutil.copymode(staging / LABELS, path)
            writer.check()
    return Exported(folder, kind, difference, sum(path.stat().st_size for path in folder.iterdir()))


def _describe(classifier: Classifier, folder: Path, kind: str) -> None:
    """Write labels, preprocessing and the program."""
    about = {
        "kind": kind,
        "multi_label": classifier.multi_label,
        "labels": classifier.class_names,
        "background": classifier.background,
    }
    write_json(about, folder / LABELS)
    write_json(preprocessing_of(classifier), folder / PREPROCESSING)
    shutil.copyfile(standalone.__file__, folder / SCRIPT)


def preprocessing_of(classifier: Classifier) -> dict[str, Any]:
    """Return the settings of the image processor, without what says nothing."""
    return {name: value for name, value in classifier.image_processor.to_dict().items() if value is not None}


def require_plain_preprocessing(classifier: Classifier) -> Tensor:
    """Make sure that `standalone.preprocess` does what the image processor does, on images of several shapes.

    Returns:
        What the model takes of them, [3, 3, height, width].

    Raises:
        UnsupportedModelError: it does something else.
    """
    config = preprocessing_of(classifier)
    random = np.random.default_rng(0)
    images = [
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for height, width in ((300, 300), (301, 400), (450, 233))
    ]
    inputs = classifier.preprocess(images)
    try:
        own = np.stack([standalone.preprocess(image, config) for image in images])
        same = list(inputs) == ["pixel_values"] and np.allclose(own, inputs["pixel_values"].numpy(), atol=1e-4)
    except (KeyError, TypeError, ValueError):
        same = False
    if not same:
        raise UnsupportedModelError(
            f"Expected an image processor that resizes, crops, scales and normalises, for a program without transformers. "
            f"Received: {type(classifier.image_processor).__name__}. Use peft_vprompt.export.Classifier, which takes it."
        )
    return inputs["pixel_values"]


def check(classifier: Classifier, folder: Path, pixels: Tensor) -> float:
    """Return the largest difference of the logits of what was written to the model's, for one image and for several.

    Raises:
        ValueError: they differ by more than `TOLERANCE` allows.
    """
    predictor = standalone.Predictor(folder)
    found = [torch.as_tensor(predictor.logits(some.numpy())) for some in (pixels[:1], pixels)]
    expected = [classifier.logits_of({"pixel_values": some}) for some in (pixels[:1], pixels)]
    difference = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    allowed = TOLERANCE * max(1.0, max(float(logits.abs().max()) for logits in expected))
    if not difference <= allowed:
        raise ValueError(
            f"The exported model's logits differ from the adapter's by {difference:.2g}, more than {allowed:.2g}. Nothing was "
            "written. Export it in another format."
        )
    return difference


def _require_free(folder: Path, format: str) -> None:
    """Refuse a folder that holds something else than an earlier export of the same format."""
    held = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not held:
        return
    try:
        about = read_json(folder / LABELS, missing_ok=True)
    except ValueError:
        about = None
    kind = about.get("kind") if isinstance(about, dict) else None
    same = kind == format or (format == "plain" and kind in ("classifier", "image-encoder"))
    if not same or SCRIPT not in held:
        what = f"a {kind} model" if kind else shorten(held, 4)
        raise ValueError(
            f"Expected --output to name a new or an empty folder, or one with an earlier export of this format. Received: "
            f"{str(folder)!r}, which holds {what}. Choose another folder, or move that away."
        )
