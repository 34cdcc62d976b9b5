"""`LazyFrozenFeatures`: what the model says without prompts, for whoever asks."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class FrozenModel(Protocol):
    """What is asked for features without prompts: a `ClassNameClassifier`."""

    def frozen_text(self) -> Tensor:
        """Return the class features [c, e]."""

    def frozen_images(self, pixel_values: Tensor, **options) -> Tensor:
        """Return the image features [b, e]."""

    def changes_images(self) -> bool:
        """Return whether the adapters change the image features."""

    def scaled_by_method(self, similarities: Tensor) -> Tensor:
        """Return the logits [b, c] of cosines [b, c]."""


class LazyFrozenFeatures:
    """Features and logits of the frozen model, computed when they are asked for first and without gradients.

    Args:
        model: whose classes and config are meant.
        image: features of the images with the adapters as they are; they serve where no adapter changes them.
        inputs: keyword arguments of `encode_images` for the same images; None where `image` was given as frozen.
    """

    def __init__(self, model: FrozenModel, image: Tensor, inputs: dict | None):
        self._model = model
        self._given = image
        self._inputs = inputs
        # Not `cached_property`: a compiler cannot follow the lock that Python 3.11 gives it.
        self._text: Tensor | None = None
        self._image: Tensor | None = None

    @property
    def text(self) -> Tensor:
        """Class features [c, e], kept per class list whatever adapter is on."""
        if self._text is None:
            self._text = self._model.frozen_text()
        return self._text

    # With blocks, for a compiler cannot follow a decorator under `property`.
    @property
    def image(self) -> Tensor:
        """Features [b, e] of the same images."""
        if self._image is None:
            if self._inputs is None or not self._model.changes_images():
                self._image = self._given.detach()
            else:
                self._image = self._model.frozen_images(**self._inputs)
        return self._image

    @property
    def logits(self) -> Tensor:
        """Scaled cosines [b, c]."""
        with torch.no_grad():
            return self._model.scaled_by_method(self.image @ self.text.t())
