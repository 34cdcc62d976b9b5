"""The layer loop that every method and every tower runs through.

Shapes: b = batch, s = rows, n = prompts, j = prompted layers, d = width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from .insertion import InsertionRule, insert_prompts


if TYPE_CHECKING:
    from ..backbones.base import EncoderView


def encode(
    tower: EncoderView,
    hidden: Tensor,
    prompts: Tensor | None = None,
    rule: InsertionRule | None = None,
    first_layer: int = 0,
    states: list[Tensor] | None = None,
    output_rows: OutputRows | None = None,
    **kwargs,
) -> Tensor:
    """Run the layers of `tower` over `hidden` [b, s, d]: the last layer's output, or its rows that `output_rows` names.

    `prompts` [j, n, d] or [j, b, n, d] belong to the j layers from `first_layer` on. Those of layer 0 are in `hidden`
    already; each other layer's come in, by `place`, in front of it. After the last prompted layer the prompts' states
    flow on like any other token's. `kwargs` reach the attention function; `states`, if given, collects the input of
    the first and the output of every layer.
    """
    if states is not None:
        states.append(hidden)
    for index, layer in enumerate(tower.layers):
        if index > 0:
            hidden = insert_prompts(hidden, prompts, rule, index - first_layer)
        if output_rows is not None and index == tower.num_layers - 1:
            return output_rows(tower, layer, hidden)
        hidden = tower.run_layer(layer, hidden, **kwargs)
        if states is not None:
            states.append(hidden)
    return hidden


@dataclass(frozen=True)
class OutputRows:
    """The rows that are read out after the last layer; no other row needs a query or a feed-forward pass there.

    In that layer these rows are queries to the keys and values of all rows.

    Attributes:
        rows: index of the rows, [r] or a slice.
        pattern: makes the pattern by which they read from the keys and values of all rows.
    """

    rows: Tensor | slice
    pattern: Callable[[Tensor, Tensor], Callable]

    def __call__(self, tower: EncoderView, layer: nn.Module, hidden: Tensor) -> Tensor:
        """One layer's output [b, r, d] at the rows, from its input `hidden` [b, s, d]."""
        return tower.run_queries(layer, hidden[:, self.rows], self.pattern(*tower.keys_values(layer, hidden)))


def fill_kv_cache(tower: EncoderView, hidden: Tensor, **kwargs) -> list[tuple[Tensor, Tensor]]:
    """Keys and values [b, h, s, head size] of each layer over the plain tokens `hidden` [b, s, d], for read-only prompts.

    Of the last layer nothing else is computed.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    *layers, last = tower.layers
    for layer in layers:
        hidden = tower.run_layer(layer, hidden, kv_cache=kept, **kwargs)
    return [*kept, tower.keys_values(last, hidden)]


def run_read_only(
    tower: EncoderView, prompts: Tensor, first_layer: int, patterns: Sequence[Callable], batch_size: int
) -> Tensor:
    """Run read-only prompts alone: [batch_size, n, d] of the last layer.

    `patterns` let the prompts read the KV cache of each layer. The prompts `prompts[0]` start at
    layer `first_layer`; `prompts[k]` are added to what has become of them k layers later.
    """
    read_only = prompts[0].expand(batch_size, -1, -1)
    for step, layer in enumerate(list(tower.layers)[first_layer:]):
        if 0 < step < prompts.shape[0]:
            read_only = read_only + prompts[step]
        read_only = run_read_only_layer(tower, layer, read_only, patterns[first_layer + step])
    return read_only


def run_read_only_layer(tower: EncoderView, layer: nn.Module, read_only: Tensor, pattern: Callable) -> Tensor:
    """`tower.run_queries`, computed again in the backward pass where gradient checkpointing is on, as layers do."""
    if layer.training and getattr(layer, "gradient_checkpointing", False):
        return layer._gradient_checkpointing_func(
            functools.partial(tower.run_queries, layer, pattern=pattern), read_only
        )
    return tower.run_queries(layer, read_only, pattern)


@contextmanager
def attention_weights(tower: EncoderView, wanted: bool):
    """Collect each layer's attention weights while the block runs (the layers themselves throw them away)."""
    weights: list[Tensor] = []
    handles = []
    if wanted:
        handles = [
            tower.attention(layer).register_forward_hook(lambda module, args, output: weights.append(output[1]))
            for layer in tower.layers
        ]
    try:
        yield weights
    finally:
        for handle in handles:
            handle.remove()
