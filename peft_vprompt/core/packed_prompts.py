"""`PackedPrompts`: the prompts of all classes as one sequence without padding and without repeated prefixes.

A causal text encoder gives the tokens that all class prompts begin with (`[SOS] context ...`) the same states in every
class, so they are kept once:

    [SOS, context, name_1 . EOT, name_2 . EOT, ...]

Names that begin alike ("Boeing 707", "Boeing 717") share those rows too: with 16 context tokens the 196 names of
StanfordCars take 1,147 rows instead of 2,082, the 100 of FGVCAircraft 572 instead of 741, ImageNet's 4,020 instead of
4,182. Norms, projections and feed-forward layers run on this one sequence unchanged; only attention has to know which rows
belong together (`attention.SharedPrefix`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import SharedPrefix
from .class_prompts import ClassPrompts
from .encoder import CausalEmbedding
from .tokenization import TokenSequence


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedPrompts(ClassPrompts):
    """One sequence for all classes; s = packed rows, c = classes, d = width.

    Attributes:
        position_ids: [s] position of each row in its own class prompt.
        end_rows: [c] row of each class's end token.
        pattern: who may read whom.
    """

    position_ids: Tensor
    end_rows: Tensor
    pattern: SharedPrefix

    @property
    def num_classes(self) -> int:
        """Number of classes in the sequence."""
        return self.end_rows.shape[0]

    def embed(self, encoder: CausalEmbedding, learned: Tensor | None) -> Tensor:
        """Return the input of the first layer, [b, s, d]; `learned` are the learned vectors, [n, d] or [b, n, d]."""
        hidden = self.put_learned(encoder.token_embedding(self.token_ids), learned)
        return hidden + encoder.position_embedding(self.position_ids)


def shared_length(sequences: list[TokenSequence]) -> int:
    """Count the leading entries that all sequences have in common, leaving each at least its last entry."""
    shortest = min(map(len, sequences))
    first = sequences[0]
    for length in range(shortest - 1):
        if any(sequence[length] != first[length] for sequence in sequences):
            return length
    return shortest - 1


def pack(sequences: list[TokenSequence]) -> PackedPrompts:
    """Lay out the token sequences of all classes as one packed sequence: a prefix tree, each node a row."""
    prefix = shared_length(sequences)
    entries = list(sequences[0][:prefix])
    positions = list(range(prefix))
    rows: dict[tuple[int, int], int] = {}  # (row before, entry) -> row
    paths = []
    for sequence in sequences:
        path = [prefix - 1]
        for position, entry in enumerate(sequence[prefix:], prefix):
            row = rows.setdefault((path[-1], entry), len(entries))
            if row == len(entries):
                entries.append(entry)
                positions.append(position)
            path.append(row)
        paths.append(path[1:])
    token_ids = torch.tensor(entries)
    learned_rows = (token_ids < 0).nonzero().squeeze(1)
    return PackedPrompts(
        token_ids=token_ids.clamp(min=0),
        position_ids=torch.tensor(positions),
        learned_rows=learned_rows,
        learned_sources=-token_ids[learned_rows] - 1,
        end_rows=torch.tensor([path[-1] for path in paths]),
        pattern=SharedPrefix.from_paths(prefix, [[row - prefix for row in path] for path in paths]),
    )


def pack_bounded(sequences: list[TokenSequence], max_rows: int, read_only: int = 0) -> list[PackedPrompts]:
    """Lay out the token sequences of all classes as packed sequences of at most `max_rows` rows each.

    `read_only` is the number of read-only prompts of each class, which come on top. A class that is larger by itself
    has a sequence of its own; the shared prefix, short beside the names, is computed once in each sequence.
    """
    prefix = shared_length(sequences)
    parts: list[list[TokenSequence]] = [[]]
    rows = prefix
    for sequence in sequences:
        own = len(sequence) - prefix + read_only
        if parts[-1] and rows + own > max_rows:
            parts.append([])
            rows = prefix
        parts[-1].append(sequence)
        rows += own
    return [pack(part) for part in parts]
