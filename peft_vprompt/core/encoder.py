"""What the core needs to know of an encoder: protocols that the views in `backbones` fulfil."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn


class LayerStack(Protocol):
    """An encoder whose layers the layer loop runs.

    Shapes: b = batch, s = rows, r = some of them, h = heads, d = width.
    """

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The Hugging Face layers in order."""

    @property
    def num_layers(self) -> int:
        """Number of layers."""

    def attention(self, layer: nn.Module) -> nn.Module:
        """Return the attention module of a layer, whose second output are the weights."""

    def layer_arguments(self, hidden: Tensor, **options) -> tuple[tuple, dict]:
        """Return what every layer takes after its input `hidden` [b, s, d], by position and by keyword.

        The layer loop asks once for all layers, and again where `hidden` has got more rows.
        """

    def runs_in_parts(self, layer: nn.Module) -> bool:
        """Tell whether some rows of a layer can be computed alone, without the layer's own call."""

    def keys_values(self, layer: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [b, h, s, head size] that a layer's attention reads, from the layer's input [b, s, d]."""

    def run_queries(self, layer: nn.Module, rows: Tensor, pattern: Callable) -> Tensor:
        """Run one layer on rows [b, r, d] that read other rows by `pattern`; returns the same shape."""


class TextEmbedding(Protocol):
    """The part of a text encoder in front of its layers."""

    @property
    def token_embedding(self) -> nn.Module:
        """Token ids -> vectors."""


class CausalEmbedding(TextEmbedding, Protocol):
    """That part of a causal encoder."""

    @property
    def position_embedding(self) -> nn.Module:
        """Positions -> vectors."""


class PaddedEmbedding(TextEmbedding, Protocol):
    """That part of a bidirectional encoder."""

    def embed(self, vectors: Tensor) -> Tensor:
        """Return the first layer's input from token vectors [c, l, d]."""
