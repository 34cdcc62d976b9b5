"""Who may read whom: attention patterns, and the transformers attention function that applies them.

Hugging Face layers hand keyword arguments down to the attention function. A layer called with `pattern=...` computes
attention by that pattern; without it the function does exactly what the user's own choice (sdpa, eager, flash) does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .plain_modules import modeling_file


#: Name under which the attention function is registered with transformers.
ATTENTION_NAME = "prompt_attention"


#: Suffixes that fit into so many rows are computed together, because products of single suffixes are too small to be fast.
#: Forward and backward of the attention of one layer of CLIP ViT-B/16 with 100 class names, on one core of an EPYC: a suffix
#: at a time 11.6 ms, in blocks of 16 rows 6.6 ms, of 48 rows 8.6 ms.
BLOCK_ROWS = 16


#: Sequences of so few rows are attended to whole under a mask: one kernel in the place of some forty small operators takes
#: less time than it computes in vain. Forward and backward of one layer of CLIP ViT-B/16 on one core of an EPYC: 67 rows
#: 1.2 ms for 2.7 ms, 108 rows 2.4 ms for 3.6 ms, 152 rows 4.8 ms for 5.0 ms.
WHOLE_ROWS = 128


@dataclass(frozen=True)
class Blocks:
    """Rows taken out of a packed sequence into blocks of equal size, and what may be read in them.

    Shapes: k = blocks, r = rows of the largest, q = queries of a block, or 1 where all of them read alike.

    Attributes:
        rows: [k, r] row of the suffixes that each place shows (0 where there is none).
        visible: [k, q, r] True where a query reads the row at that place.
    """

    rows: Tensor
    visible: Tensor

    @classmethod
    def of_suffixes(cls, paths: list[list[int]]) -> Blocks:
        """Make each suffix a block, all of which is visible."""
        rows = _padded(paths)
        return cls(rows.clamp(min=0), (rows >= 0)[:, None])

    @classmethod
    def of_groups(cls, paths: list[list[int]]) -> Blocks:
        """Put as many suffixes in each block as fit; a row reads its own suffix up to itself."""
        size = max(BLOCK_ROWS, *map(len, paths))
        groups: list[list[int]] = [[]]
        for path in sorted(paths):  # suffixes that begin alike come together
            more = [row for row in path if row not in groups[-1]]
            if len(groups[-1]) + len(more) > size:
                groups.append([])
                more = path
            groups[-1].extend(more)
        reads = {row: path[: place + 1] for path in paths for place, row in enumerate(path)}
        visible = torch.zeros(len(groups), max(map(len, groups)), max(map(len, groups)), dtype=torch.bool)
        triples: list[int] = []  # all in one tensor: making one for each block takes most of the time
        for block, group in enumerate(groups):
            place = {row: index for index, row in enumerate(group)}
            triples.extend(
                number for row in group for read in reads[row] for number in (block, place[row], place[read])
            )
        visible[tuple(torch.tensor(triples).view(-1, 3).T)] = True
        return cls(_padded(groups).clamp(min=0), visible)

    def take(self, packed: Tensor) -> Tensor:
        """Take the blocks [b, h, k, r, d] out of the suffixes [b, h, t, d]."""
        return packed.index_select(2, self.rows.flatten()).unflatten(2, self.rows.shape)

    def to(self, device: torch.device) -> Blocks:
        """Return the same blocks on `device`."""
        return Blocks(self.rows.to(device), self.visible.to(device))


def _padded(lists: list[list[int]]) -> Tensor:
    """Pad lists of rows to one tensor, with -1 where a list is over."""
    return torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, lists)), batch_first=True, padding_value=-1)


@dataclass(frozen=True)
class SharedPrefix:
    """Causal attention over a packed sequence `[prefix, suffixes]`: a suffix reads the prefix and itself.

    Shapes: b = batch, h = heads, p = prefix rows, t = rows of all suffixes, d = head size; k, r and q as in `Blocks`.
    The prefix is never copied per suffix: scores against it and against the suffix itself share one softmax.

    Attributes:
        prefix: p, the number of rows that all suffixes read.
        groups: the suffixes, several in a block, where the rows themselves are the queries.
        suffixes: the suffixes, one in a block, for queries from outside.
        places: [t] the place in `groups`, counted through all blocks, of each row of the suffixes.
        own: [t, t] True where a row of the suffixes reads another, in a sequence that is attended to whole.
        visible: [p + t, p + t] the same for all rows.
    """

    prefix: int
    groups: Blocks
    suffixes: Blocks
    places: Tensor
    own: Tensor | None = None
    # No field: who copies a pattern by its fields, as FSDP does to cast what it holds, has it made anew.
    visible: ClassVar[Tensor | None] = None

    def __post_init__(self):
        if self.own is not None:
            before = torch.ones(self.num_rows, self.prefix, dtype=torch.bool, device=self.own.device).tril()
            after = F.pad(self.own, (0, 0, self.prefix, 0))
            object.__setattr__(self, "visible", torch.cat([before, after], dim=1))

    @classmethod
    def from_paths(cls, prefix: int, paths: list[list[int]]) -> SharedPrefix:
        """Make the pattern for a prefix and suffixes whose rows, counted from the end of the prefix, are `paths`.

        Suffixes may begin with the same rows: what a row reads is the same in all of them.
        """
        groups = Blocks.of_groups(paths)
        filled = groups.visible.any(-1).flatten().nonzero().squeeze(1)
        # A row that several blocks show is the same in each; the last is taken.
        places = dict(zip(groups.rows.flatten()[filled].tolist(), filled.tolist(), strict=True))
        numbers = torch.tensor([places[row] for row in range(len(places))])
        own = None
        if prefix + len(places) <= WHOLE_ROWS:
            own = torch.zeros(len(places), len(places), dtype=torch.bool)
            for path in paths:
                own[torch.tensor(path)[:, None], torch.tensor(path)] |= torch.ones(len(path), len(path)).tril().bool()
        return cls(prefix, groups, Blocks.of_suffixes(paths), numbers, own)

    def to(self, device: torch.device) -> SharedPrefix:
        """Return the same pattern on `device`."""
        own = None if self.own is None else self.own.to(device)
        return SharedPrefix(self.prefix, self.groups.to(device), self.suffixes.to(device), self.places.to(device), own)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        """Attend with [b, h, p + t, d] query, key and value; returns the same shape."""
        if self.visible is not None:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=self.visible, dropout_p=dropout, scale=scaling
            )
        (head, suffixes), keys, values = map(self.split, (query, key, value))
        head = F.scaled_dot_product_attention(
            head, keys[0], values[0], dropout_p=dropout, is_causal=True, scale=scaling
        )
        suffixes = self.read(self.groups.take(suffixes), keys, values, self.groups, scaling, dropout)
        return torch.cat([head, suffixes.flatten(2, 3).index_select(2, self.places)], dim=2)

    @property
    def num_rows(self) -> int:
        """Rows of the sequence, p + t."""
        return self.prefix + self.places.shape[0]

    def split(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """Split [b, h, p + t, d] into the prefix and the suffixes."""
        prefix, suffixes = packed.split([self.prefix, packed.shape[2] - self.prefix], dim=2)
        return prefix, suffixes

    def read(
        self,
        query: Tensor,
        key: tuple[Tensor, Tensor],
        value: tuple[Tensor, Tensor],
        blocks: Blocks,
        scaling: float,
        dropout: float,
    ) -> Tensor:
        """Let queries [b, h, k, q, d] read the prefix and what they see of their block; returns the same shape.

        Key and value are those of the prefix, [b, h, p, d], and of the suffixes, [b, h, t, d].
        """
        queries = query.shape[3]
        to_prefix = torch.matmul(query.flatten(2, 3), key[0].transpose(-1, -2)).unflatten(2, (-1, queries))
        to_block = torch.matmul(query, blocks.take(key[1]).transpose(-1, -2))
        to_block = to_block.masked_fill(~blocks.visible, float("-inf"))
        scores = torch.cat([to_prefix, to_block], dim=-1) * scaling
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        weights = F.dropout(weights.to(query.dtype), dropout, training=dropout > 0)
        on_prefix, on_block = weights.split([self.prefix, weights.shape[-1] - self.prefix], dim=-1)
        from_prefix = torch.matmul(on_prefix.flatten(2, 3), value[0]).unflatten(2, (-1, queries))
        return from_prefix + torch.matmul(on_block, blocks.take(value[1]))


@dataclass(frozen=True)
class GrowingPrefix:
    """`SharedPrefix` of a sequence whose prefix gets more rows on the way through the layers.

    Attributes:
        before: the pattern of the first layers.
        after: the pattern once the rows are in.
    """

    before: SharedPrefix
    after: SharedPrefix

    @classmethod
    def by(cls, pattern: SharedPrefix, rows: int) -> GrowingPrefix:
        """Return the pattern whose prefix grows by a number of rows."""
        return cls(pattern, replace(pattern, prefix=pattern.prefix + rows))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        """Attend with [b, h, s, d] query, key and value, by the pattern for s rows; returns the same shape."""
        pattern = self.before if key.shape[2] == self.before.num_rows else self.after
        return pattern(query, key, value, scaling, dropout)


@dataclass(frozen=True)
class Causal:
    """Plain causal attention with an optional padding mask [batch, rows] (True or 1 = a real token)."""

    mask: Tensor | None = None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        """Attend with [batch, heads, rows, head size] query, key and value; returns the same shape."""
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
class ReadSuffixes:
    """Read-only prompts over the KV cache of a packed sequence: those of suffix c read the prefix and all of that suffix.

    A read-only prompt reads no other, not even itself, and nobody reads it.

    Attributes:
        sequence: how the sequence is packed.
        key, value: one layer's KV cache of it, [1, h, p + t, d].
    """

    sequence: SharedPrefix
    key: Tensor
    value: Tensor

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        """Let queries [1, h, c * n, d] read the KV cache; their own key and value are not read."""
        sequence = self.sequence
        per_suffix = query.unflatten(2, (len(sequence.suffixes.rows), -1))
        keys = sequence.split(self.key.to(query.dtype))
        values = sequence.split(self.value.to(query.dtype))
        return sequence.read(per_suffix, keys, values, sequence.suffixes, scaling, dropout).flatten(2, 3)


@dataclass(frozen=True)
class ReadAll:
    """Read-only prompts over the KV cache of a sequence, all of which they read; `key` and `value` are [b, h, s, d]."""

    key: Tensor
    value: Tensor

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
        """Let queries [b, h, n, d] read the KV cache; their own key and value are not read."""
        kv_cache = (self.key.to(query.dtype), self.value.to(query.dtype))
        if not torch.compiler.is_compiling() and (kept := _kept.get()) is not None:
            kept.append((query @ kv_cache[0].transpose(-1, -2) * scaling).softmax(-1))
        return F.scaled_dot_product_attention(query, *kv_cache, dropout_p=dropout, scale=scaling)


class KVCache:
    """Takes the keys and values [b, h, s, head size] of the layers that it is handed to.

    It is no list: where FSDP casts what a layer is given, the layer would get a copy of that.
    """

    def __init__(self):
        self.layers: list[tuple[Tensor, Tensor]] = []

    def append(self, key: Tensor, value: Tensor) -> None:
        """Take those of one more layer."""
        self.layers.append((key, value))


#: Where `kept_weights` collects in this thread; None: nowhere.
_kept: ContextVar[list[Tensor] | None] = ContextVar("kept_weights", default=None)


@contextmanager
def kept_weights() -> Iterator[list[Tensor]]:
    """Collect the attention weights [b, h, n, s] of all rows that read a whole KV cache, while the block runs."""
    before = _kept.set(found := [])
    try:
        yield found
    finally:
        _kept.reset(before)


def prompt_attention(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, pattern=None, kv_cache=None, **kwargs
):
    """Attend by `pattern`, or by the implementation that the user chose for this model when there is none.

    A `KVCache` gets the (key, value) of each layer.

    Shapes as in transformers: query, key and value are [batch, heads, rows, head size], the output is
    [batch, rows, heads, head size], attention weights are returned only where the user's implementation does.
    """
    if kv_cache is not None:
        kv_cache.append(key, value)
    if pattern is None:
        function = plain_implementation(module)
        return function(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return pattern(query, key, value, scaling, dropout).transpose(1, 2).contiguous(), None


def plain_implementation(module: nn.Module):
    """Return the attention function that `module` would use without prompts; sdpa when nothing else was chosen."""
    name = getattr(getattr(module.config, "plain_config", None), "_attn_implementation", None) or "sdpa"
    if name == "eager":
        return modeling_file(module).eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


def is_stock(config: Any) -> bool:
    """Tell whether a model attends by a function of transformers, not by one that a user registered."""
    name = config._attn_implementation or "sdpa"
    return name == "eager" or getattr(ALL_ATTENTION_FUNCTIONS.get(name), "__module__", "").startswith("transformers.")


def install(attention: nn.Module) -> None:
    """Let one attention module of a Hugging Face layer understand patterns.

    The module gets a config of its own: the config object it had may be shared with other models, and stays the
    place where the user's choice (also a later `set_attn_implementation`) is read from.

    * Reason: transformers finds the attention function by a name in the config, not by an argument of the call.
    * Undo: `uninstall` gives the module its own config back.
    * Goes when a layer's call can name its attention function.
    """
    if not is_installed(attention):
        config = copy.copy(attention.config)
        config._attn_implementation = ATTENTION_NAME
        config.plain_config = attention.config
        attention.config = config


def is_installed(attention: nn.Module) -> bool:
    """Tell whether an attention module understands patterns."""
    return hasattr(getattr(attention, "config", None), "plain_config")


def uninstall(attention: nn.Module) -> None:
    """Give an attention module its own config back."""
    if is_installed(attention):
        attention.config = attention.config.plain_config


AttentionInterface.register(ATTENTION_NAME, prompt_attention)
# A custom attention name without a mask function would silently drop masks.
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
