"""Prompt holders: the trainable tensors of one adapter on one tower, and the vectors they stand for.

A holder is called with what its prompts depend on (`source`: the text prompts for a coupling, image features for a
conditional context, the tower's view for pixels; free prompts look at none) and gives prompts [j, n, d] or, where each
image has its own, [j, b, n, d]: j = prompted layers, n = prompts, d = width, b = batch. All parameters are direct
attributes, so that PEFT finds the adapter's name at the same place in each key.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..core.insertion import InsertionRule, InsertRows


if TYPE_CHECKING:
    from ..backbones.supported import VisionView


class PromptModule(nn.Module, ABC):
    """Base of all holders.

    Attributes:
        text_placement: how a call with `input_ids` shows the prompts on the text tower: "insert" (after the start
            token), "replace" (in place of the first tokens after it), or None where the place of the class name
            would have to be known.
        read_only: the prompts read the plain tokens and nobody reads them.
        first_layer: layer in front of which the prompts come in.
        pooling: what is read out of an image encoder, see `readout.pool`; "original" is the encoder's own way.
    """

    text_placement: str | None = None
    read_only: bool = False
    first_layer: int = 0
    pooling: str = "original"

    @abstractmethod
    def forward(self, source: Tensor | None = None, batch_size: int | None = None) -> Tensor | None:
        """The prompts of each layer; see the module's docstring for shapes. None where images alone are changed."""

    def embed(self, tower: VisionView, pixel_values: Tensor, **options) -> Tensor:
        """Image tokens [b, s, d] that the prompts are to meet; `options` are those of `VisionView.embed`."""
        return tower.embed(pixel_values, **options)

    def insertion_rule(self, tower: VisionView, length: int) -> InsertionRule:
        """How the prompts meet `length` image tokens."""
        return InsertRows(tower.num_prefix_tokens if tower.prompts_first else length)
