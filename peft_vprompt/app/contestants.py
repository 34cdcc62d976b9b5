"""What the page compares: adapters, and their base models as they are. Each is loaded when it is first asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from peft.utils import PeftType
from torch import Tensor

from ..errors import ClassNamesError, UnsupportedModelError
from ..experiments.attention_maps import AttentionMaps, output_attention
from ..experiments.models import base_of, build_model
from ..experiments.trained import SavedAdapter
from ..export.classifier import Classifier, ImageLike, Prediction, best
from ..training.eval_classes import own_classes
from ..tuners.base.registry import find_row
from ..utils.devices import device_of, find_device
from ..utils.precision import Precision, find_precision
from ..utils.validation import shorten


#: What the base model as it is is called.
ZERO_SHOT = "zero-shot"
#: The embedded model's name in the page.
EMBEDDED = "embedded model"


class Outcome(NamedTuple):
    """What one of them says of an image.

    Attributes:
        predictions: the most probable labels, best first.
        attention: where its image encoder looks; None where nothing can be shown or it was not asked for.
        no_attention: why there is none, though it was asked for.
    """

    predictions: list[Prediction]
    attention: AttentionMaps | None
    no_attention: str | None


@dataclass
class Contestant:
    """An adapter, or a base model as it is.

    Attributes:
        name: by which it is chosen; no other has it.
        about: the method and the base model, to be read.
        load: makes the classifier for some class names.
        base: the base model; None for the embedded one.
        class_names: classes that it knows; None where nothing says them.
        is_zero_shot: whether it is a base model as it is.
    """

    name: str
    about: str
    load: Callable[[Sequence[str]], Classifier]
    base: str | None
    class_names: list[str] | None = None
    is_zero_shot: bool = False
    _classifier: Classifier | None = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def ask(self, image: ImageLike, class_names: Sequence[str], top_k: int, attention: bool = False) -> Outcome:
        """Return the most probable of some classes for an image. One call computes at a time.

        Raises:
            ClassNamesError: something was learned for each of the adapter's own classes, and a name is none of these.
            OSError, ValueError, TypeError: the model cannot be loaded or gives values that are not finite, or the image cannot
            be read.
        """
        with self._lock:
            if self._classifier is None:
                self._classifier = self.load(class_names)
            classifier = self._classifier
            inputs = classifier.preprocess([image])
            with classifier.model.disable_adapter() if self.is_zero_shot else nullcontext():
                logits = _logits_among(classifier, inputs, class_names)
                if not logits.isfinite().all():
                    raise ValueError(
                        "This model gives values that are not finite: its weights or its training went wrong."
                    )
                probabilities = classifier.probabilities_of(logits)
                found, why = _attention(classifier, inputs) if attention else (None, None)
        return Outcome(best(probabilities, list(class_names), top_k)[0], found, why)


def _logits_among(classifier: Classifier, inputs: Mapping[str, Tensor], class_names: Sequence[str]) -> Tensor:
    """Return logits [1, c]; of a model that learned its classes all together, those of the columns that are asked for."""
    own = own_classes(classifier.model)
    if own is None:
        classifier.set_class_names(class_names)
        return classifier.logits_of(inputs)
    if unknown := [name for name in class_names if name not in own]:
        raise ClassNamesError(
            f"This adapter learned something for each of its own {len(own):,} classes and knows no other. Not among them: "
            f"{shorten(unknown, 5)}. It knows: {shorten(own, 8)}."
        )
    if classifier.class_names != own:
        classifier.set_class_names(own)
    return classifier.logits_of(inputs)[:, [own.index(name) for name in class_names]]


def _attention(classifier: Classifier, inputs: Mapping[str, Tensor]) -> tuple[AttentionMaps | None, str | None]:
    """Return the attention map of one image, or why there is none."""
    place = device_of(classifier.model)
    try:
        found = output_attention(classifier.model, {name: tensor.to(place) for name, tensor in inputs.items()})
    except UnsupportedModelError as error:
        return None, str(error)
    return (found, None) if np.isfinite(found.maps).all() else (None, "The attention is not finite.")


def find_contestants(
    adapters: Sequence[str],
    model: str | None = None,
    device: str | torch.device | None = "auto",
    precision: str = "auto",
) -> list[Contestant]:
    """Read what lies in the folders of adapters, and put their base models as they are before them.

    Args:
        adapters: folders or Hub ids (`id@revision`).
        model: base model of all of them; default: the one that each names. Without adapters, the one to try; None for the
            embedded one.
        device: where to compute.
        precision: what frozen weights are held in, see `utils.precision.find_precision`.

    Raises:
        OSError: there is no such adapter.
        ValueError: the same adapter twice, or no such device or precision.
    """
    if twice := sorted({each for each in adapters if list(adapters).count(each) > 1}):
        raise ValueError(f"Expected each adapter once. Received twice: {shorten(twice)}.")
    place = device if isinstance(device, torch.device) else find_device(device)
    held = find_precision(precision, place)
    found = [SavedAdapter.find(each) for each in adapters]
    bases = dict.fromkeys(_base(each, model) for each in found if not each.is_classifier) if found else {model: None}
    names = _short_names([each.adapter for each in found])
    return [
        *(_zero_shot(base, shown, len(bases) > 1, place, held) for base, shown in _shown(bases).items()),
        *(_trained(each, name, model, place, held) for each, name in zip(found, names, strict=True)),
    ]


def _base(saved: SavedAdapter, model: str | None) -> str | None:
    """Return the base model of an adapter; None for the embedded one."""
    return model or (None if saved.is_embedded else base_of(saved.config))


def _shown(bases: Iterable[str | None]) -> dict[str | None, str]:
    """Return what base models are called, no two of them alike."""
    places = [base for base in bases if base is not None]
    named = dict(zip(places, _short_names(places), strict=True))
    return {base: EMBEDDED if base is None else named[base] for base in bases}


def _zero_shot(base: str | None, shown: str, several: bool, device: torch.device, precision: Precision) -> Contestant:
    def load(class_names: Sequence[str]) -> Classifier:
        bundle = build_model(base, ZERO_SHOT, class_names, device=device, precision=precision)
        return Classifier(bundle, class_names, precision)

    name = f"{ZERO_SHOT} ({shown})" if several else ZERO_SHOT
    return Contestant(name, f"{shown} without an adapter", load, base, is_zero_shot=True)


def _trained(
    saved: SavedAdapter, name: str, model: str | None, device: torch.device, precision: Precision
) -> Contestant:
    def load(class_names: Sequence[str]) -> Classifier:
        # What a head tells apart is never what a visitor happened to ask for first.
        names = None if saved.known_classes or saved.is_classifier else class_names
        return Classifier.of(saved, model, names, device=device, precision=precision)

    base = _base(saved, model)
    return Contestant(name, f"{_title(saved)} on {_last(base) if base else EMBEDDED}", load, base, saved.known_classes)


def _title(saved: SavedAdapter) -> str:
    """Return the method of an adapter, as papers write it."""
    row = find_row(saved.config, saved.is_classifier)
    return row.title if row else f"PEFT's {PeftType(saved.config.peft_type).value}"


def _short_names(adapters: Sequence[str]) -> list[str]:
    """Return the last parts of paths, as many as tell them apart."""
    parts = [Path(each).parts for each in adapters]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names) and ZERO_SHOT not in names:
            return names
    return list(adapters)


def _last(place: str) -> str:
    return Path(place).name or place
