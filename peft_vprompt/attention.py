"""Who may read whom: attention patterns, and the transformers attention function that applies them.

Hugging Face layers hand keyword arguments down to the attention function. A layer called with `pattern=...` computes
attention by that pattern; without it the function does exactly what the user's own choice (sdpa, eager, flash) does.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


#: Name under which the attention function is registered with transformers.
ATTENTION_NAME = "prompt_attention"


@dataclass(frozen=True)
class SharedPrefix:
    """Causal attention over a packed sequence `[prefix, tails]`: a tail reads the prefix and itself.

    Shapes: b = batch, h = heads, p = prefix rows, t = rows of all tails, c = tails, l = longest tail, d = head size.
    Tails are padded to l for the two small matrix products here and nowhere else. The prefix is never copied per
    tail: scores against it and against the tail itself meet in one softmax.

    Attributes:
        prefix: p, the number of rows that all tails read.
        gather: [c * l] row of the tails that each padded place shows (0 where there is none).
        scatter: [t] a padded place of each row of the tails.
        real: [c, l] False where a padded place shows nothing.
        causal: [l, l] whom a row of a tail reads in it. Padding follows the rows, so this hides it too.
    """

    prefix: int
    gather: Tensor
    scatter: Tensor
    real: Tensor
    causal: Tensor

    @classmethod
    def from_paths(cls, prefix: int, paths: list[list[int]]) -> SharedPrefix:
        """The pattern for a prefix and tails whose rows, counted from the end of the prefix, are `paths`.

        Tails may begin with the same rows: what a row reads is the same in all of them.
        """
        lengths = torch.tensor([len(path) for path in paths])
        longest = int(lengths.max())
        real = torch.arange(longest) < lengths[:, None]
        gather = torch.zeros(real.shape, dtype=torch.long)
        gather[real] = torch.tensor([row for path in paths for row in path])
        places = real.flatten().nonzero().squeeze(1)
        scatter = torch.empty(int(gather.max()) + 1, dtype=torch.long)
        scatter[gather.flatten()[places].flip(0)] = places.flip(0)  # the first place of each row
        return cls(
            prefix=prefix,
            gather=gather.flatten(),
            scatter=scatter,
            real=real,
            causal=torch.ones(longest, longest, dtype=torch.bool).tril(),
        )

    def to(self, device: torch.device) -> SharedPrefix:
        """The same pattern on `device`."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "prefix"}
        return SharedPrefix(self.prefix, **moved)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        """Attention of [b, h, p + t, d] query, key and value; returns the same shape."""
        p = self.prefix
        head = F.scaled_dot_product_attention(
            query[:, :, :p], key[:, :, :p], value[:, :, :p], dropout_p=dropout, is_causal=True, scale=scaling
        )
        tails = self.read(self.pad(query), key, value, self.causal, scaling, dropout).flatten(2, 3)
        return torch.cat([head, tails.index_select(2, self.scatter)], dim=2)

    def pad(self, packed: Tensor) -> Tensor:
        """The tails of [b, h, p + t, d], padded to [b, h, c, l, d]."""
        tails = packed[:, :, self.prefix :].index_select(2, self.gather)
        return tails.unflatten(2, self.real.shape)

    def read(
        self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scaling: float, dropout: float
    ) -> Tensor:
        """Let q queries per tail, [b, h, c, q, d], read the prefix and what is `visible` ([..., q, l]) of their tail.

        Key and value are packed, [b, h, p + t, d]. Returns [b, h, c, q, d].
        """
        p, queries = self.prefix, query.shape[3]
        to_prefix = torch.matmul(query.flatten(2, 3), key[:, :, :p].transpose(-1, -2)).unflatten(2, (-1, queries))
        to_tail = torch.matmul(query, self.pad(key).transpose(-1, -2)).masked_fill(~visible, float("-inf"))
        scores = torch.cat([to_prefix, to_tail], dim=-1) * scaling
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        weights = F.dropout(weights.to(query.dtype), dropout, training=dropout > 0)
        from_prefix = torch.matmul(weights[..., :p].flatten(2, 3), value[:, :, :p]).unflatten(2, (-1, queries))
        return from_prefix + torch.matmul(weights[..., p:], self.pad(value))


@dataclass(frozen=True)
class Causal:
    """Plain causal attention with an optional padding mask [batch, rows] (True or 1 = a real token)."""

    mask: Tensor | None = None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        """Attention of [batch, heads, rows, head size] query, key and value; returns the same shape."""
        if self.mask is None:
            return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True, scale=scaling)
        rows = query.shape[2]
        visible = torch.ones(rows, rows, dtype=torch.bool, device=query.device).tril() & self.mask.bool()[:, None]
        # A row that may read nothing (padding on the left) reads itself, so that its softmax stays finite.
        visible = visible | torch.eye(rows, dtype=torch.bool, device=query.device)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=visible[:, None], dropout_p=dropout, scale=scaling
        )


@dataclass(frozen=True)
class ReadTails:
    """Readers of a recorded packed sequence: the readers of tail c read the prefix and all of that tail.

    A reader reads no reader, not even itself, and nobody reads a reader.

    Attributes:
        sequence: how the recorded sequence is packed.
        key, value: what one layer recorded of it, [1, h, p + t, d].
    """

    sequence: SharedPrefix
    key: Tensor
    value: Tensor

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        """Attention of [1, h, c * readers, d] queries to the record; the readers' own key and value are not read."""
        sequence, dtype = self.sequence, query.dtype
        per_tail = query.unflatten(2, (sequence.real.shape[0], -1))
        visible = sequence.real[:, None]
        return sequence.read(per_tail, self.key.to(dtype), self.value.to(dtype), visible, scaling, dropout).flatten(
            2, 3
        )


@dataclass(frozen=True)
class ReadAll:
    """Readers of a recorded sequence, all of which they read; `key` and `value` are [b, h, s, d]."""

    key: Tensor
    value: Tensor

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        """Attention of [b, h, readers, d] queries to the record; the readers' own key and value are not read."""
        record = (self.key.to(query.dtype), self.value.to(query.dtype))
        return F.scaled_dot_product_attention(query, *record, dropout_p=dropout, scale=scaling)


def prompt_attention(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, pattern=None, record=None, **kwargs
):
    """Attention by `pattern`, or by the implementation that the user chose for this model when there is none.

    A list handed over as `record` gets the (key, value) of each layer.

    Shapes as in transformers: query, key and value are [batch, heads, rows, head size], the output is
    [batch, rows, heads, head size], attention weights are returned only where the user's implementation does.
    """
    if record is not None:
        record.append((key, value))
    if pattern is None:
        function = plain_implementation(module)
        return function(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return pattern(query, key, value, scaling, dropout).transpose(1, 2).contiguous(), None


def plain_implementation(module: nn.Module):
    """The attention function that `module` would use without prompts; sdpa when nothing else was chosen."""
    name = getattr(getattr(module.config, "plain_config", None), "_attn_implementation", None) or "sdpa"
    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


def install(attention: nn.Module) -> None:
    """Let one attention module of a Hugging Face layer understand patterns.

    The module gets a config of its own: the config object it had may be shared with other models, and stays the
    place where the user's choice (also a later `set_attn_implementation`) is read from.
    """
    if not hasattr(attention.config, "plain_config"):
        config = copy.copy(attention.config)
        config._attn_implementation = ATTENTION_NAME
        config.plain_config = attention.config
        attention.config = config


def uninstall(attention: nn.Module) -> None:
    """Give an attention module its own config back."""
    if hasattr(getattr(attention, "config", None), "plain_config"):
        attention.config = attention.config.plain_config


AttentionInterface.register(ATTENTION_NAME, prompt_attention)
# A custom attention name without a mask function would silently drop masks.
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
