"""`ClassList`: the classes that one adapter tells apart at present, tokenised and packed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

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
        packed: what came of that, per template, of the classes first ... last, on the device they were asked for last.
    """

    names: list[str]
    sequences: list[list[TokenSequence]] | None = None
    layout: Callable = pack_bounded
    packed: dict[tuple[int, int], list[list[PackedPrompts | PaddedPrompts]]] = field(default_factory=dict)

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
        with torch.inference_mode(False):  # tensors made under it could not be used in a later backward pass
            packed = self.packed.get((first, last)) or [
                self.layout(sequences[first:last], MAX_TOKEN_ROWS, read_only)
                for sequences in self.sequences  # pyrefly: ignore[not-iterable]  # tokenised before they are packed
            ]
            # Replicas of a data-parallel model share this list: each answers with what it has moved to its own device.
            packed = [[chunk.to(device) for chunk in chunks] for chunks in packed]
            self.packed[first, last] = packed
        return packed
