"""The layer loop that every method and every tower runs through.

Shapes: b = batch, s = rows, n = prompts, j = prompted layers, h = heads, d = width.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from .attention import KVCache
from .checkpointing import recompute
from .encoder import LayerStack
from .insertion import InsertionRule, insert_prompts


def encode(
    encoder: LayerStack,
    hidden: Tensor,
    prompts: Tensor | Sequence[Tensor] | None = None,
    rule: InsertionRule | None = None,
    first_layer: int = 0,
    states: list[Tensor] | None = None,
    output_rows: OutputRows | None = None,
    **options,
) -> Tensor:
    """Run the layers of `encoder` over `hidden` [b, s, d].

    Args:
        encoder: the encoder.
        hidden: input of the first layer; the prompts of layer 0, if there are any, are in it already, unless the rule says
            that they come in right in front of it.
        prompts: [j, n, d] or [j, b, n, d], those of the j layers from `first_layer` on. Each layer's come in, by `rule`,
            in front of it. After the last prompted layer the prompts' states flow on like any other token's.
        rule: how prompts are put among the tokens.
        first_layer: first layer with prompts.
        states: a list that gets the input of the first and the output of every layer.
        output_rows: the rows that are wanted of the last layer.
        options: what the encoder's `layer_arguments` understands; where it knows nothing of them they reach the
            attention function.

    Returns:
        The last layer's output [b, s, d] (prompts included), or its rows that `output_rows` names.
    """
    if states is not None:
        states.append(hidden)
    args, kwargs = encoder.layer_arguments(hidden, **options)
    for index, layer in enumerate(encoder.layers):
        if index > 0 or (rule is not None and rule.in_layer):
            rows = hidden.shape[1]
            hidden = insert_prompts(hidden, prompts, rule, index - first_layer)
            if hidden.shape[1] != rows:
                args, kwargs = encoder.layer_arguments(hidden, **options)
        if output_rows is not None and index == encoder.num_layers - 1 and encoder.runs_in_parts(layer):
            return output_rows(encoder, layer, hidden)
        output = layer(hidden, *args, **kwargs)
        hidden = output[0] if isinstance(output, tuple) else output
        if states is not None:
            states.append(hidden)
    return hidden if output_rows is None else hidden[:, output_rows.rows]


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

    def __call__(self, encoder: LayerStack, layer: nn.Module, hidden: Tensor) -> Tensor:
        """Return one layer's output [b, r, d] at the rows, from its input `hidden` [b, s, d]."""
        pattern = self.pattern(*encoder.keys_values(layer, hidden))
        return encoder.run_queries(layer, hidden[:, self.rows], pattern)


def fill_kv_cache(encoder: LayerStack, hidden: Tensor, **options) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values [b, h, s, head size] of each layer over the plain tokens `hidden` [b, s, d].

    They are what read-only prompts read. Of the last layer nothing else is computed.
    """
    kv_cache = KVCache()
    *layers, last = encoder.layers
    args, kwargs = encoder.layer_arguments(hidden, kv_cache=kv_cache, **options)
    for layer in layers:
        output = layer(hidden, *args, **kwargs)
        hidden = output[0] if isinstance(output, tuple) else output
    return [*kv_cache.layers, encoder.keys_values(last, hidden)]


def run_read_only(
    encoder: LayerStack, prompts: Tensor, first_layer: int, patterns: Sequence[Callable], batch_size: int
) -> Tensor:
    """Run read-only prompts alone: [batch_size, n, d] of the last layer.

    Args:
        encoder: the encoder.
        prompts: [j, n, d] or [j, b, n, d]. `prompts[0]` start at layer `first_layer`; `prompts[k]` are added to what has
            become of them k layers later.
        first_layer: first layer with prompts.
        patterns: one for each layer of the encoder, by which the prompts read that layer's KV cache.
        batch_size: b.
    """
    read_only = prompts[0].expand(batch_size, -1, -1)
    for step, layer in enumerate(list(encoder.layers)[first_layer:]):
        if 0 < step < prompts.shape[0]:
            read_only = read_only + prompts[step]
        run = functools.partial(encoder.run_queries, layer, pattern=patterns[first_layer + step])
        read_only = recompute(layer, run, read_only)
    return read_only


@contextmanager
def attention_weights(encoder: LayerStack, wanted: bool) -> Iterator[list[Tensor]]:
    """Collect each layer's attention weights while the block runs (the layers themselves throw them away).

    Gives a list that gets one tensor [b, h, s, s] per layer, and stays empty where the weights are not `wanted`. Calls
    that other threads make meanwhile do not get into it.
    """
    weights: list[Tensor] = []
    handles = []
    if wanted:
        mine = threading.get_ident()

        def collect(module: nn.Module, args: tuple, output: tuple) -> None:
            if threading.get_ident() == mine:
                weights.append(output[1])

        handles = [encoder.attention(layer).register_forward_hook(collect) for layer in encoder.layers]
    try:
        yield weights
    finally:
        for handle in handles:
            handle.remove()
