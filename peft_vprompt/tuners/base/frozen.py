"""`LazyFrozenFeatures`: what the model says without prompts, for whoever asks."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor


if TYPE_CHECKING:
    from .classifier import ClassNameClassifier


class LazyFrozenFeatures:
    """Features and logits of the frozen model, computed when they are asked for first and without gradients.

    Args:
        classifier: whose model, classes and config are meant.
        inputs: keyword arguments of `encode_images`, or `image_features` [b, e] that are frozen already.
    """

    def __init__(self, classifier: ClassNameClassifier, inputs: dict):
        self._classifier = classifier
        self._inputs = inputs

    @cached_property
    def text(self) -> Tensor:
        """Class features [c, e], kept per class list whatever adapter is on."""
        return self._classifier.frozen_text()

    @cached_property
    @torch.no_grad()
    def image(self) -> Tensor:
        """Features [b, e] of the same images."""
        if "image_features" in self._inputs:
            return self._inputs["image_features"].detach()
        return self._classifier.frozen_images(**self._inputs)

    @cached_property
    @torch.no_grad()
    def logits(self) -> Tensor:
        """Scaled cosines [b, c]."""
        return self._classifier.scaled(self.image @ self.text.t())
