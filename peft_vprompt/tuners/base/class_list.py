"""`ClassList`: the classes that one adapter tells apart at present, tokenised and packed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ...core.packed_prompts import PackedPrompts, pack_bounded
from ...core.padded_prompts import PaddedPrompts
from ...core.tokenization import TokenSequence


#: Most token rows that are encoded at once and kept for the backward pass; where there are more, most are computed again
#: in it. At ViT-B/16's text width a row keeps about three tenths of a megabyte.
MAX_TOKEN_ROWS = 8192

#: Most plain token rows whose keys and values are kept for read-only prompts over a whole training: 1.6 GB in float32
#: at ViT-B/16's text width. More are computed anew in every step.
MAX_KV_CACHE_ROWS = 4 * MAX_TOKEN_ROWS

#: Class names per call of the base model in zero-shot classification.
ZERO_SHOT_BATCH = 1024


@dataclass(eq=False)
class ClassList:
    """Class names, and what was made of them.

    Attributes:
        names: in label order.
        sequences: their token sequences, one list per template; None until they are needed.
        layout: how they are laid out for the text encoder, see `PromptedTextEncoder.layout`.
        packed: what came of that, per template, of the classes first ... last.
        moved: the same on each device they were asked for on; replicas of a data-parallel model share them.
        read_by: the tokenizer that was handed over, the name of another, and the templates, that the sequences are of.
        rows: which of the adapter's own classes each one is, where it holds something for each and these are some of them or
            in another order; None for all of them in their order, and where it holds nothing.
    """

    names: list[str]
    sequences: list[list[TokenSequence]] | None = None
    layout: Callable = pack_bounded
    packed: dict[tuple[int, int], list[list[PackedPrompts | PaddedPrompts]]] = field(default_factory=dict)
    moved: dict[tuple[int, int, torch.device], list[list[PackedPrompts | PaddedPrompts]]] = field(default_factory=dict)
    read_by: tuple | None = None
    rows: list[int] | None = None

    def pick(self, of_own: Tensor, dim: int = 0) -> Tensor:
        """Return what an adapter holds for each of its own classes, along `dim`, for these classes."""
        if self.rows is None:
            return of_own
        return of_own.index_select(dim, torch.tensor(self.rows, device=of_own.device))

    def pack(
        self, first: int, last: int, read_only: int, device: torch.device
    ) -> list[list[PackedPrompts | PaddedPrompts]]:
        """Return the classes first ... last - 1 in chunks of bounded size, made once, a list for each template.

        Args:
            first: the first class.
            last: the class after the last.
            read_only: number of read-only prompts of each class, which come on top.
            device: where they are needed.
        """
        self.prepare(first, last, read_only, device)
        return self.moved[first, last, device]

    @torch.compiler.assume_constant_result  # a compiler finds them there, and looks no further
    def prepare(self, first: int, last: int, read_only: int, device: torch.device) -> bool:
        """Do what is left to do for `pack`."""
        made = self.packed.get((first, last))
        # Tensors made under inference_mode could not be used in a later backward pass, nor could an exporter's.
        with torch.inference_mode(False), torch.device("cpu"), _disable_current_modes():
            if made is None:
                made = [
                    self.layout(sequences[first:last], MAX_TOKEN_ROWS, read_only)
                    for sequences in self.sequences  # pyrefly: ignore[not-iterable]  # tokenised before they are packed
                ]
                self.packed[first, last] = made
            # From where they were made, since nothing comes back from the meta device.
            if (first, last, device) not in self.moved:
                self.moved[first, last, device] = [[chunk.to(device) for chunk in chunks] for chunks in made]
        return True

    def take(self, sequences: list[list[TokenSequence]], layout: Callable, read_by: tuple) -> None:
        """Take what a tokenizer made of the names; `read_by` is what it was made by."""
        self.sequences = sequences
        self.layout = layout
        self.read_by = read_by
        self.packed.clear()
        self.moved.clear()
