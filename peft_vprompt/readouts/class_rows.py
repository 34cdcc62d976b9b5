"""The readout with learned vectors for some classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..utils.name_keys import as_read
from .cosine import CosineReadout


class ClassRowsReadout(CosineReadout):
    """Cosines with `weight` [n, e], normalised in each call, for n classes by their names; with text features for others.

    Args:
        names: the classes with vectors of their own; underscores are read as spaces.
        feature_dim: size of the joint space.
        dtype: of the vectors.
        device: where to put them.
    """

    def __init__(self, names: Sequence[str], feature_dim: int, *, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.positions = {as_read(name): position for position, name in reversed(list(enumerate(names)))}
        self.weight = nn.Parameter(torch.empty(len(names), feature_dim, dtype=dtype, device=device))
        nn.init.normal_(self.weight, std=feature_dim**-0.5)

    def knows(self, names: Sequence[str]) -> bool:
        """Return whether all classes have vectors, so that no text has to be encoded."""
        return all(as_read(name) in self.positions for name in names)

    def features_of(self, names: Sequence[str], text: Tensor | None) -> Tensor:
        """Return the L2-normalised features [c, e] of classes.

        Args:
            names: the classes.
            text: their text features [c, e], for those without a vector; None where all have one.
        """
        rows = F.normalize(self.weight, dim=-1)
        positions = [self.positions.get(as_read(name), -1) for name in names]
        if positions == list(range(len(rows))):
            return rows
        index = torch.tensor(positions, device=rows.device)
        if text is None:
            return rows[index]
        return torch.where((index >= 0)[:, None], rows[index.clamp(min=0)].to(text.dtype), text)
