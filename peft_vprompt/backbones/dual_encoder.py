"""How the two towers of a model meet."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DualEncoderView:
    """How `CLIPModel` and those built like it compare images with texts: both features are projected.

    Attributes:
        text, vision: names of the towers.
        no_read_only: why read-only prompts have no place in this model; None where they have.
    """

    text, vision = "text_model", "vision_model"
    no_read_only: str | None = None

    def __init__(self, module: nn.Module):
        self.module = module

    @property
    def text_projection(self) -> nn.Module:
        """What maps a text's feature into the joint space."""
        return self.module.text_projection

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the joint space: that of the scale, which stays a float where weights are quantised."""
        return self.module.logit_scale.dtype

    @property
    def feature_dim(self) -> int:
        """Size of the joint space."""
        return self.module.config.projection_dim

    def project_text(self, pooled: Tensor) -> Tensor:
        """Projected and L2-normalised, [..., projection size]."""
        # A text encoder that is trained is kept in float32, its frozen projection in the precision it was loaded in.
        return F.normalize(self.text_projection(pooled.to(self.dtype)), dim=-1)

    def project_image(self, pooled: Tensor) -> Tensor:
        """Projected and L2-normalised, [..., projection size]."""
        return F.normalize(self.module.visual_projection(pooled), dim=-1)

    def scaled(self, similarity: Tensor) -> Tensor:
        """Return logits [b, c] of cosines [b, c]."""
        return self.module.logit_scale.exp() * similarity


class BertDualEncoderView(DualEncoderView):
    """Chinese-CLIP and AltCLIP: CLIP's image encoder beside a BERT."""

    no_read_only = (
        "its text encoder reads both ways, and read-only prompts take the place of an end token that has read the "
        "whole text"
    )


class SiglipDualEncoderView(DualEncoderView):
    """SigLIP: the towers' own heads end in the joint space, and logits have a bias.

    The bias is the same for all classes. It does not change which class wins, nor the softmax over the classes.
    """

    no_read_only = (
        "its text encoder reads both ways, and the features of both towers come from pooling heads, not from tokens "
        "that a prompt could stand beside"
    )

    @property
    def text_projection(self) -> nn.Module:
        """None of its own: the text tower ends with it."""
        return nn.Identity()

    @property
    def feature_dim(self) -> int:
        """Size of the text head's output."""
        return self.module.config.text_config.projection_size

    def project_image(self, pooled: Tensor) -> Tensor:
        """L2-normalised."""
        return F.normalize(pooled, dim=-1)

    def scaled(self, similarity: Tensor) -> Tensor:
        """Return logits with a bias [b, c] of cosines [b, c]."""
        return super().scaled(similarity) + self.module.logit_bias
