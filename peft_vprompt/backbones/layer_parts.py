"""`LayerParts`: one layer's parts by name, so that only some of its rows, or only its keys and values, are computed.

Shapes: b = batch, s = rows, r = some of them, h = heads, d = width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from ..core.plain_modules import all_plain


@dataclass(frozen=True)
class LayerParts:
    """Names of the parts of a layer that norms, attends, adds, norms, feeds forward (`mlp`) and adds.

    The projections in its attention module are `q_proj`, `k_proj` and `v_proj`.

    Attributes:
        attention: the attention module.
        norms: the norm before attention and the one before the feed-forward part.
        output: the attention module's last projection.
        scale: its attribute that queries are scaled by.
        dropout: its attribute with the rate of dropout on attention weights.
        after: the modules that the output of attention, and that of the feed-forward part, go through before they are
            added.
    """

    attention: str
    norms: tuple[str, str]
    output: str
    scale: str
    dropout: str
    after: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    def fit(self, layer: nn.Module) -> bool:
        """Tell whether a layer is as transformers made it: its own class and attention, plain modules all through.

        PEFT's layers in the place of single parts are called as those are.
        """
        own = (layer, layer._modules.get(self.attention))
        return all(type(module).__module__.startswith("transformers.") for module in own) and all_plain(layer)

    def keys_values(self, layer: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [b, h, s, head size] from the layer's input [b, s, d], and compute nothing else."""
        attention = getattr(layer, self.attention)
        hidden = getattr(layer, self.norms[0])(hidden)
        key = split_heads(attention.k_proj(hidden), attention.head_dim)
        value = split_heads(attention.v_proj(hidden), attention.head_dim)
        return key, value

    def run_queries(self, layer: nn.Module, rows: Tensor, pattern: Callable) -> Tensor:
        """Run the layer on rows [b, r, d] that read other rows by `pattern`, without keys and values of their own."""
        attention = getattr(layer, self.attention)
        query = split_heads(attention.q_proj(getattr(layer, self.norms[0])(rows)), attention.head_dim)
        dropout = getattr(attention, self.dropout) if attention.training else 0.0
        found = pattern(query, None, None, getattr(attention, self.scale), dropout)
        found = getattr(attention, self.output)(found.transpose(1, 2).flatten(2))
        rows = rows + apply(layer, self.after[0], found)
        return rows + apply(layer, self.after[1], layer.mlp(getattr(layer, self.norms[1])(rows)))


def apply(layer: nn.Module, names: tuple[str, ...], hidden: Tensor) -> Tensor:
    """Run `hidden` through the layer's modules of these names, one after another."""
    for name in names:
        hidden = getattr(layer, name)(hidden)
    return hidden


def split_heads(projected: Tensor, head_size: int) -> Tensor:
    """Split [b, s, h * head size] into heads: [b, h, s, head size]."""
    return projected.unflatten(-1, (-1, head_size)).transpose(1, 2)


#: CLIP's and SigLIP's, images and texts.
CLIP_PARTS = LayerParts("self_attn", ("layer_norm1", "layer_norm2"), "out_proj", "scale", "dropout")

#: ViT's, DeiT's and MAE's.
VIT_PARTS = LayerParts(
    "attention",
    ("layernorm_before", "layernorm_after"),
    "o_proj",
    "scaling",
    "attention_dropout",
    (("dropout",), ("dropout",)),
)

#: Pixio's.
PIXIO_PARTS = replace(VIT_PARTS, after=(("dropout", "drop_path"), ("dropout", "drop_path")))

#: DINOv2's with registers or without, TIPSv2's and RADIO's.
DINO_PARTS = LayerParts(
    "attention",
    ("norm1", "norm2"),
    "o_proj",
    "scaling",
    "attention_dropout",
    (("layer_scale1", "drop_path"), ("layer_scale2", "drop_path")),
)
