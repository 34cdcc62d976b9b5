"""`TextView`: what prompts need to know of a text encoder, of one that reads backwards and of one that reads both ways.

Shapes: c = classes, l = tokens of a text, d = width, e = size of the joint space.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from ..core.offloading import tensor_of
from .base import EncoderView


class TextView(EncoderView):
    """A text encoder.

    Attributes:
        parts: the modules that make up the encoder, for training it whole; PEFT takes all whose names end so.
    """

    parts: tuple[str, ...] = ("embeddings", "encoder", "final_layer_norm")

    @property
    @abstractmethod
    def token_embedding(self) -> nn.Module:
        """Token ids -> vectors."""

    @property
    def reference_weight(self) -> Tensor:
        """The token embedding."""
        return self.token_embedding.weight

    @property
    def max_positions(self) -> int:
        """Longest text, start and end token included."""
        return self.module.config.max_position_embeddings

    @torch.no_grad()
    def word_vectors(self, token_ids: list[int]) -> Tensor:
        """Return the token embeddings [len(token_ids), d] to start prompts from."""
        weight = tensor_of(self.token_embedding, "weight")
        return weight[torch.tensor(token_ids, device=weight.device)].clone()


class CausalTextView(TextView):
    """A text encoder whose tokens read what stands before them: class prompts share their prefix."""

    @property
    @abstractmethod
    def position_embedding(self) -> nn.Module:
        """Positions -> vectors."""

    @property
    @abstractmethod
    def end_token_id(self) -> int:
        """Id of the end token, where the text's feature is read."""

    @abstractmethod
    def final_norm(self, hidden: Tensor) -> Tensor:
        """Normalise tokens [..., d] after the last layer."""


class PaddedTextView(TextView):
    """A text encoder whose class prompts are rows of their own, padded: its tokens read each other, say.

    Attributes:
        fills_up: texts are padded to `max_positions`; else to the longest.
        reads_padding: padding is read like any token; else it is masked.
        ends_texts: its tokenizer puts an end token behind each text.
    """

    fills_up: bool = False
    reads_padding: bool = False
    ends_texts: bool = True

    def embed(self, vectors: Tensor) -> Tensor:
        """Make the first layer's input [c, l, d] from token vectors of the same shape."""
        return self.module.embeddings(inputs_embeds=vectors)

    def layer_mask(self, mask: Tensor, hidden: Tensor) -> Any:
        """Make what the layers take for the mask [c, l] of real tokens in `hidden` [c, l, d]."""
        if self.reads_padding:
            return None
        return create_bidirectional_mask(config=self.module.config, inputs_embeds=hidden, attention_mask=mask)

    def layer_arguments(self, hidden: Tensor, mask: Tensor | None = None) -> tuple[tuple, dict]:
        """Return the mask, as `layer_mask` makes it."""
        return (mask,), {}

    @abstractmethod
    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Reduce the last layer's output [c, l, d] to the text's feature [c, e], as the model pools it.

        `mask` [c, l] is True for real tokens.
        """

    @abstractmethod
    def plain_features(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the text's feature [c, e] by the model's own call, without prompts, from [c, l] ids and mask."""
