"""Tokens of one space that both towers share, mapped to each layer of each tower (MMRL), and what reads them.

Shapes: b = batch, k = tokens, j = layers with tokens, d = width of a tower, m = size of the shared space, e = size of the
joint space, r = rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..core.class_prompts import ClassPrompts
from ..core.insertion import BlendRows, InsertionRule, InsertRows
from .base import PromptModule


if TYPE_CHECKING:
    from ..backbones.vision import VisionView


#: Standard deviation of the first tokens (MMRL, section 4.1).
REPRESENTATION_STD = 0.02


class LayerMaps(nn.Module):
    """Linear maps [m] -> [d], one for each of j layers, that start alike: as one `nn.Linear` does.

    Args:
        rank: rank of what a layer adds to a map that all share (MMRL++); None: each layer has a map of its own (MMRL).
    """

    def __init__(
        self, depth: int, size: int, width: int, rank: int | None, *, dtype: torch.dtype, device: torch.device
    ):
        super().__init__()
        made = {"dtype": dtype, "device": device}
        bound = 1 / math.sqrt(size)
        weight = torch.empty(width, size, **made).uniform_(-bound, bound)
        bias = torch.empty(width, **made).uniform_(-bound, bound)
        self.bias = nn.Parameter(bias.repeat(depth, 1))
        if rank is None:
            self.weight = nn.Parameter(weight.repeat(depth, 1, 1))
            return
        self.weight = nn.Parameter(weight)
        self.down = nn.Parameter(torch.zeros(depth, rank, size, **made))
        self.up = nn.Parameter(kaiming(torch.empty(depth, width, rank, **made)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [k, m] to every layer: [j, k, d]."""
        weight = self.weight if self.weight.ndim == 3 else self.weight + self.up @ self.down
        return torch.baddbmm(self.bias[:, None], tokens.expand(len(weight), -1, -1), weight.transpose(1, 2))


def kaiming(weight: Tensor) -> Tensor:
    """Fill [..., rows, r] as `nn.Linear` fills the weight of r inputs."""
    bound = 1 / math.sqrt(weight.shape[-1])
    return weight.uniform_(-bound, bound)


class RepresentationPrompts(PromptModule):
    """Tokens that come in after the first one, late in a tower.

    Args:
        layers: layers, counted from 0, in front of which the tokens come in; in ascending order.
        share: share of a later layer's tokens in the rows that they come into; 1 replaces what was there.
        maps: what maps the shared tokens to the tower.
    """

    def __init__(self, layers: Sequence[int], share: float, maps: LayerMaps):
        super().__init__(first_layer=layers[0])
        self.layers = list(layers)
        self.share = share
        self.maps = maps

    @property
    def among_words(self) -> bool:
        """False: the shared tokens are of a space of their own."""
        return False

    def spread(self, tokens: Tensor) -> list[Tensor | None]:
        """Return the tokens of each layer from the first one on, None for a layer that has none."""
        mapped = dict(zip(self.layers, self.maps(tokens), strict=True))
        return [mapped.get(layer) for layer in range(self.layers[0], self.layers[-1] + 1)]

    def text_rule(self, class_prompts: ClassPrompts) -> InsertionRule:
        """Return how the tokens come into class prompts: right after the start token."""
        return self._rule(class_prompts.start)

    def _rule(self, start: int) -> InsertionRule:
        return InsertRows(start, in_layer=True) if self.share == 1 else BlendRows(start, self.share, in_layer=True)


class TextRepresentations(RepresentationPrompts):
    """The shared tokens `tokens` [k, m], and their images in the text tower."""

    def __init__(self, num_tokens: int, size: int, *args, dtype: torch.dtype, device: torch.device):
        super().__init__(*args)
        self.tokens = nn.Parameter(torch.empty(num_tokens, size, dtype=dtype, device=device))
        nn.init.normal_(self.tokens, std=REPRESENTATION_STD)

    def forward(self, **inputs) -> list[Tensor | None]:
        """Return the tokens of each layer, [k, d]."""
        return self.spread(self.tokens)

    def for_images(self) -> Tensor:
        """Return the shared tokens [k, m]."""
        return self.tokens


class ImageRepresentations(RepresentationPrompts):
    """The images of the shared tokens in the image tower, and the projection by which they are read out.

    Args:
        width: d.
        feature_dim: e.
        readout_rank: rank of what is added to the model's own projection (MMRL++); None: one of its own (MMRL).
    """

    has_feature = True

    def __init__(
        self,
        width: int,
        feature_dim: int,
        readout_rank: int | None,
        *args,
        dtype: torch.dtype,
        device: torch.device,
    ):
        super().__init__(*args)
        made = {"dtype": dtype, "device": device}
        if readout_rank is None:
            self.projection = nn.Parameter(torch.randn(width, feature_dim, **made) / math.sqrt(width))
        else:
            self.projection_up = nn.Parameter(kaiming(torch.empty(width, readout_rank, **made)))
            self.projection_down = nn.Parameter(torch.zeros(readout_rank, feature_dim, **made))

    def forward(self, *, text_prompts: Tensor, **inputs) -> list[Tensor | None]:
        """Map the shared tokens [k, m] to the tower's layers, [k, d] each."""
        return self.spread(text_prompts)

    def insertion_rule(self, view: VisionView, length: int) -> InsertionRule:
        """Return how the tokens come in: right after the class token."""
        return self._rule(view.num_prefix_tokens)

    def project(self, rows: Tensor, own_projection: Callable[[Tensor], Tensor]) -> Tensor:
        """Project the mean of the tokens' rows [b, k, d] to the joint space [b, e], not normalised.

        `own_projection` is the model's.
        """
        mean = rows.mean(dim=1)
        if hasattr(self, "projection"):
            return (mean.to(self.projection.dtype) @ self.projection).to(mean.dtype)
        added = mean.to(self.projection_up.dtype) @ self.projection_up @ self.projection_down
        return own_projection(mean) + added.to(mean.dtype)
