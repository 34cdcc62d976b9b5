"""`EncoderView`: the thin, per-architecture view of one encoder.

A view holds no state: it is made on the fly around the module it looks at. A new backbone is one more view.

Shapes: b = batch, s = rows, r = some of them, h = heads, d = width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..core.attention import KVCache
from .layer_parts import LayerParts


class EncoderView(ABC):
    """What the layer loop and the prompt modules need to know of an encoder; fulfils `core.encoder.LayerStack`.

    Attributes:
        layer_parts: what the parts of its layers are called; None where layers are built in another way.
    """

    layer_parts: LayerParts | None = None

    def __init__(self, module: nn.Module):
        self.module = module

    @classmethod
    def of(cls, module: nn.Module) -> EncoderView:
        """Return the view of one module of this class; another where modules of the class differ."""
        return cls(module)

    @property
    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """The Hugging Face layers in order."""

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def width(self) -> int:
        """Size of a token."""
        return self.module.config.hidden_size

    @property
    @abstractmethod
    def reference_weight(self) -> Tensor:
        """A weight whose dtype and device new prompts take."""

    def attention(self, layer: nn.Module) -> nn.Module:
        """Return the attention module of one layer, whose second output are the weights."""
        return layer.self_attn

    def layer_arguments(self, hidden: Tensor, **options) -> tuple[tuple, dict]:
        """Return what every layer takes after its input `hidden` [b, s, d], by position and by keyword.

        Here no mask, and all `options` as keywords for the attention function.
        """
        return (None,), options

    def run_layer(self, layer: nn.Module, hidden: Tensor, **options) -> Tensor:
        """Run one layer on [b, s, d]; `options` are those of `layer_arguments`."""
        args, kwargs = self.layer_arguments(hidden, **options)
        output = layer(hidden, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    def parts_of(self, layer: nn.Module) -> LayerParts | None:
        """Return the names of one layer's parts, where they may be called one by one: they are known, and plain modules.

        Where they are not (hooks, sharded or offloaded weights, quantised or replaced parts), the layer's own call is made.
        """
        return self.layer_parts if self.layer_parts is not None and self.layer_parts.fit(layer) else None

    def runs_in_parts(self, layer: nn.Module) -> bool:
        """Tell whether some rows of a layer can be computed alone, without the layer's own call."""
        return self.parts_of(layer) is not None

    def keys_values(self, layer: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [b, h, s, head size] that the layer's attention reads, from the layer's input [b, s, d].

        Where the layer runs in parts, nothing else is computed.
        """
        if (parts := self.parts_of(layer)) is not None:
            return parts.keys_values(layer, hidden)
        kv_cache = KVCache()
        self.run_layer(layer, hidden, kv_cache=kv_cache)
        return kv_cache.layers[0]

    def run_queries(self, layer: nn.Module, rows: Tensor, pattern: Callable) -> Tensor:
        """Run one layer on rows [b, r, d] that read other rows by `pattern`: their own keys and values are not read.

        Where the layer runs in parts, these are not computed.
        """
        if (parts := self.parts_of(layer)) is not None:
            return parts.run_queries(layer, rows, pattern)
        return self.run_layer(layer, rows, pattern=pattern)
