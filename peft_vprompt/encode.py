"""The layer loop that every method and every tower runs through.

Shapes: b = batch, s = rows, n = prompts, j = prompted layers, d = width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn


if TYPE_CHECKING:
    from .towers.base import Tower


def insert(hidden: Tensor, prompts: Tensor, start: int) -> Tensor:
    """Put prompts [n, d] or [b, n, d] between the rows of `hidden` [b, s, d], before row `start`: [b, s + n, d]."""
    return torch.cat([hidden[:, :start], expand(prompts, hidden), hidden[:, start:]], dim=1)


def replace(hidden: Tensor, prompts: Tensor, start: int) -> Tensor:
    """Put prompts [n, d] or [b, n, d] in the place of the rows `start ...` of `hidden` [b, s, d]: [b, s, d]."""
    return torch.cat([hidden[:, :start], expand(prompts, hidden), hidden[:, start + prompts.shape[-2] :]], dim=1)


def remove(hidden: Tensor, rows: slice) -> Tensor:
    """`hidden` [b, s, d] without the n rows `rows`: [b, s - n, d]."""
    return torch.cat([hidden[:, : rows.start], hidden[:, rows.stop :]], dim=1)


def expand(prompts: Tensor, hidden: Tensor) -> Tensor:
    """Prompts [n, d] or [b, n, d] for each item of the batch, in the dtype of `hidden`."""
    return prompts.to(hidden.dtype).expand(hidden.shape[0], -1, -1)


class Place(Protocol):
    """How prompts [n, d] or [b, n, d] meet the tokens [b, s, d]."""

    def enter(self, hidden: Tensor, prompts: Tensor) -> Tensor:
        """Tokens that have met no prompt yet, with the first prompts."""

    def renew(self, hidden: Tensor, prompts: Tensor) -> Tensor:
        """Tokens that carry prompts of an earlier layer, with the prompts of this one."""

    def rows(self, num_prompts: int) -> slice:
        """The rows that are prompts and nothing else."""


@dataclass(frozen=True)
class Rows:
    """Prompts are rows of their own from row `start`; each layer's take the place of those before."""

    start: int

    def enter(self, hidden: Tensor, prompts: Tensor) -> Tensor:
        """[b, s + n, d]."""
        return insert(hidden, prompts, self.start)

    def renew(self, hidden: Tensor, prompts: Tensor) -> Tensor:
        """[b, s, d]."""
        return replace(hidden, prompts, self.start)

    def rows(self, num_prompts: int) -> slice:
        """`start ...`."""
        return slice(self.start, self.start + num_prompts)


@dataclass(frozen=True)
class Sum:
    """Prompts are added to the tokens: one to each of them, or the same one to all."""

    def enter(self, hidden: Tensor, prompts: Tensor) -> Tensor:
        """[b, s, d].

        Raises:
            ValueError: one prompt per token, of images of another size.
        """
        if prompts.shape[-2] not in (1, hidden.shape[1]):
            raise ValueError(
                f"There is one prompt for each of {prompts.shape[-2]} tokens. Received: {hidden.shape[1]} tokens. "
                "Resize the images, or use location='add-1' or 'prepend'."
            )
        return hidden + expand(prompts, hidden)

    renew = enter

    def rows(self, num_prompts: int) -> slice:
        """None."""
        return slice(0, 0)


def meet(hidden: Tensor, prompts: Sequence[Tensor] | None, place: Place | None, step: int) -> Tensor:
    """The input of a layer with the prompts of the `step`-th prompted layer, if there are any."""
    if prompts is None or not 0 <= step < len(prompts):
        return hidden
    return (place.renew if step else place.enter)(hidden, prompts[step])


def encode(
    tower: Tower,
    hidden: Tensor,
    prompts: Tensor | None = None,
    place: Place | None = None,
    first_layer: int = 0,
    states: list[Tensor] | None = None,
    readout: Readout | None = None,
    **kwargs,
) -> Tensor:
    """Run the layers of `tower` over `hidden` [b, s, d]: the last layer's output, or its rows that `readout` names.

    `prompts` [j, n, d] or [j, b, n, d] belong to the j layers from `first_layer` on. Those of layer 0 are in `hidden`
    already; each other layer's come in, by `place`, in front of it. After the last prompted layer the prompts' states
    flow on like any other token's. `kwargs` reach the attention function; `states`, if given, collects the input of
    the first and the output of every layer.
    """
    if states is not None:
        states.append(hidden)
    for index, layer in enumerate(tower.layers):
        if index > 0:
            hidden = meet(hidden, prompts, place, index - first_layer)
        if readout is not None and index == tower.num_layers - 1:
            return readout(tower, layer, hidden)
        hidden = tower.run_layer(layer, hidden, **kwargs)
        if states is not None:
            states.append(hidden)
    return hidden


@dataclass(frozen=True)
class Readout:
    """The rows that are read out after the last layer; no other row needs a query or a feed-forward pass there.

    In that layer these rows are readers of the keys and values of all rows.

    Attributes:
        rows: index of the rows, [r] or a slice.
        pattern: makes the pattern by which they read from the keys and values of all rows.
    """

    rows: Tensor | slice
    pattern: Callable[[Tensor, Tensor], Callable]

    def __call__(self, tower: Tower, layer: nn.Module, hidden: Tensor) -> Tensor:
        """One layer's output [b, r, d] at the rows, from its input `hidden` [b, s, d]."""
        return tower.read_layer(layer, hidden[:, self.rows], self.pattern(*tower.keys_values(layer, hidden)))


def record(tower: Tower, hidden: Tensor, **kwargs) -> list[tuple[Tensor, Tensor]]:
    """Keys and values [b, h, s, head size] of each layer over the plain tokens `hidden` [b, s, d], for readers.

    Of the last layer nothing else is computed.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    *layers, last = tower.layers
    for layer in layers:
        hidden = tower.run_layer(layer, hidden, record=kept, **kwargs)
    return [*kept, tower.keys_values(last, hidden)]


def read(tower: Tower, prompts: Tensor, first_layer: int, patterns: Sequence[Callable], batch_size: int) -> Tensor:
    """Run readers alone: [batch_size, n, d] of the last layer.

    `patterns` let the readers read what each layer recorded of the plain tokens. The readers `prompts[0]` start at
    layer `first_layer`; `prompts[k]` are added to what has become of them k layers later.
    """
    readers = prompts[0].expand(batch_size, -1, -1)
    for step, layer in enumerate(list(tower.layers)[first_layer:]):
        if 0 < step < prompts.shape[0]:
            readers = readers + prompts[step]
        readers = run_reader_layer(tower, layer, readers, patterns[first_layer + step])
    return readers


def run_reader_layer(tower: Tower, layer: nn.Module, readers: Tensor, pattern: Callable) -> Tensor:
    """`tower.read_layer`, computed again in the backward pass where gradient checkpointing is on, as layers do."""
    if layer.training and getattr(layer, "gradient_checkpointing", False):
        return layer._gradient_checkpointing_func(functools.partial(tower.read_layer, layer, pattern=pattern), readers)
    return tower.read_layer(layer, readers, pattern)


@contextmanager
def attention_weights(tower: Tower, wanted: bool):
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
