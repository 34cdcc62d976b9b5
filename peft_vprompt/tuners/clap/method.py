"""Class-adaptive linear probing (CLAP), and without its constraint the linear probe from zero-shot (ZS-LP).

Paper: Silva-Rodriguez et al., "A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models", CVPR 2024, section 4.
Authors' code: jusiro/CLAP `trainers/adapters.py`, commit dbdf409.

As in that code, prototypes start as text features that are not normalised and are normalised in each call; class names
are read as they are written; the distances to the start are averaged over the classes, where the paper has their sum.

Deviation: an epoch sees one view of each image (the authors draw as many rows of all views).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ...backbones.text import TextView
from ...losses.regularizers import Regularizer, StartDistance
from ...prompts.base import placed_like
from ...readouts import PrototypeReadout
from ..base.method import OTHER_CLASSES, FrozenText, PromptMethod, SupportSet, refuse_other_classes
from ..base.tuner import PromptTuner
from .config import CLAPConfig


class CLAP(PromptMethod):
    """Prototypes that start from the text features."""

    def readout(self, config: CLAPConfig, view: TextView, feature_dim: int) -> PrototypeReadout:
        """Return the prototypes, at random until `initialize`."""
        return PrototypeReadout(len(config.own_classes), feature_dim, **placed_like(view))

    def needs_tokenizer(self, config: CLAPConfig) -> bool:
        """Return True where the prototypes start from the text features."""
        return not config.inference_mode

    def initialize(self, config: CLAPConfig, readout: PrototypeReadout, frozen_text: FrozenText) -> None:
        """Start from the frozen model's text features, not normalised."""
        readout.begin_with(frozen_text.projected(config.keep_underscores))

    def frozen_readout(self, config: CLAPConfig, frozen_text: FrozenText) -> dict[str, Tensor]:
        """Return what the prototypes start from."""
        rows = frozen_text.projected(config.keep_underscores)
        return {"weight": rows, "start": rows}

    def uses_support(self, config: CLAPConfig) -> bool:
        """Return True for the constraint."""
        return config.constraint != "none"

    def take_support(self, config: CLAPConfig, readout: PrototypeReadout, support: SupportSet) -> None:
        """Hold each class by the mean probability that zero-shot gives it on its own images, over all views.

        Raises:
            ValueError: a class has no image.
        """
        counts = torch.bincount(support.labels, minlength=len(config.own_classes))
        if missing := [name for name, count in zip(config.own_classes, counts.tolist(), strict=True) if not count]:
            raise ValueError(
                f"Expected support images of every class, by which CLAP holds it. Received none of: {', '.join(missing[:5])}. "
                "Add some, or use constraint='none' (ZS-LP)."
            )
        cosines = F.normalize(support.features, dim=-1) @ F.normalize(readout.start.to(support.features), dim=-1).t()
        right = support.scaled(cosines).softmax(-1)[:, torch.arange(len(support.labels)), support.labels]
        sums = right.new_zeros(len(counts)).index_add(0, support.labels, right.mean(0))
        config.class_penalties = (sums / counts).tolist()

    def regularizers(self, config: CLAPConfig) -> dict[str, tuple[float, Regularizer]]:
        """Return the distance to the start beside the terms that every method may have.

        Raises:
            ValueError: nobody has said how strongly each class is held.
        """
        terms = super().regularizers(config)
        if config.constraint == "none":
            return terms
        if config.class_penalties is None:
            raise ValueError(
                "Expected class_penalties, by which CLAP holds each class in training. Received none. Call "
                "model.set_support(...) with the training images first, or use constraint='none' (ZS-LP)."
            )
        return terms | {"constraint": (1.0, StartDistance(config.class_penalties))}

    def check_new_classes(self, config: CLAPConfig, names: Sequence[str]) -> None:
        """Refuse other classes than those of the prototypes.

        Raises:
            ClassNamesError: names the adapter's own classes and the remedy.
        """
        refuse_other_classes(config, names, "a prototype", OTHER_CLASSES)


class CLAPModel(PromptTuner):
    """CLAP's tuner."""

    peft_name = "clap"
    prefix = "prototype_"
    method = CLAP()
