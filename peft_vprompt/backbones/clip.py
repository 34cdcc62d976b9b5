"""CLIP and models built like it: MetaCLIP 2, CLIPSeg, OWL-ViT, MLCD, the image side of Chinese-CLIP and AltCLIP."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..core.offloading import tensor_of
from .base import EncoderView
from .layer_parts import CLIP_PARTS
from .text import CausalTextView
from .vision import VisionView, resize_positions


class CLIPView(EncoderView):
    """What both towers of `CLIPModel` have in common: their layers."""

    layer_parts = CLIP_PARTS

    @property
    def layers(self) -> nn.ModuleList:
        """`CLIPEncoderLayer`s."""
        return self.module.encoder.layers


class CLIPTextView(CLIPView, CausalTextView):
    """Causal text encoder of `CLIPModel`."""

    @property
    def token_embedding(self) -> nn.Module:
        """`nn.Embedding` over the vocabulary."""
        return self.module.embeddings.token_embedding

    @property
    def position_embedding(self) -> nn.Module:
        """`nn.Embedding` over positions."""
        return self.module.embeddings.position_embedding

    @property
    def end_token_id(self) -> int:
        """The configured id; OpenAI's configs say 2 where the last id of the vocabulary is meant."""
        configured = self.module.config.eos_token_id
        return self.module.config.vocab_size - 1 if configured in (None, 2) else configured

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Run `final_layer_norm` on [..., d]."""
        return self.module.final_layer_norm(hidden)


class MetaClip2TextView(CLIPTextView):
    """Causal text encoder of `MetaClip2Model`: as CLIP's, with the vocabulary of a multilingual model."""

    @property
    def end_token_id(self) -> int:
        """The configured id; here 2 is meant where it is said."""
        return self.module.config.eos_token_id


class CLIPLikeVisionView(CLIPView, VisionView):
    """What the image encoders of CLIP and SigLIP share: prompts follow the patches."""

    prompts_first = False

    @property
    def reference_weight(self) -> Tensor:
        """The patch embedding."""
        return self.module.embeddings.patch_embedding.weight

    def embed(self, pixel_values: Tensor, interpolate_pos_encoding: bool | None = None, **kwargs) -> Tensor:
        """Make `[CLS, patches]`, or patches alone, with positions, [b, s, d]."""
        return self.module.embeddings(pixel_values, interpolate_pos_encoding=bool(interpolate_pos_encoding))

    @property
    def patch_embedding(self) -> nn.Module | None:
        """A convolution."""
        return self.module.embeddings.patch_embedding

    def embed_grid(self, grid: Tensor) -> Tensor:
        """Make `[CLS, patches]`, or patches alone, with positions [b, s, d] of embedded patches [b, d, h, w]."""
        embeddings = self.module.embeddings
        tokens = grid.flatten(2).transpose(1, 2)
        if self.num_prefix_tokens:
            tokens = torch.cat([tensor_of(embeddings, "class_embedding").expand(grid.shape[0], 1, -1), tokens], dim=1)
        positions = tensor_of(embeddings.position_embedding, "weight").unsqueeze(0)
        return tokens + resize_positions(positions, tuple(grid.shape[-2:]), self.grid_size, self.num_prefix_tokens)

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Run `post_layernorm` on [..., d]."""
        return self.module.post_layernorm(hidden)


class CLIPVisionView(CLIPLikeVisionView):
    """Image encoder of `CLIPModel`: the prompts pass `pre_layrnorm` with the patches."""

    pooled_rows = slice(0, 1)
    pixel_mean, pixel_std = OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    def class_vector(self) -> Tensor:
        """Return the class token's embedding [d]."""
        return tensor_of(self.module.embeddings, "class_embedding").detach()

    def prepare(self, hidden: Tensor) -> Tensor:
        """Run `pre_layrnorm` (the spelling is transformers') on [b, s, d]."""
        return self.module.pre_layrnorm(hidden)

    def finish(self, hidden: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Normalise the class token of [b, s, d]: it is the pooled output."""
        pooled = self.final_norm(hidden[:, 0, :])
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)


class OwlViTVisionView(CLIPVisionView):
    """Image encoder of `OwlViTModel` and `Owlv2Model`: CLIP's, but for a name."""

    def embed(self, pixel_values: Tensor, interpolate_pos_encoding: bool | None = None, **kwargs) -> Tensor:
        """Make `[CLS, patches]` with positions, [b, s, d]; the embeddings themselves take pixels in their own precision."""
        return super().embed(pixel_values.to(self.reference_weight.dtype), interpolate_pos_encoding)

    def prepare(self, hidden: Tensor) -> Tensor:
        """Run `pre_layernorm` on [b, s, d]."""
        return self.module.pre_layernorm(hidden)


class MLCDView(CLIPVisionView):
    """`MLCDVisionModel`: CLIP's layers, whose queries and keys are rotated by the place of the patch.

    The class token has a learned rotation. Prompts are nowhere in the image, so they are not rotated.
    """

    no_read_only = "its attention rotates the rows of patches, which read-only prompts alone do not have"
    layer_parts = None  # keys are rotated
    patch_embedding = None  # its positions are rotations, made for the image that was handed over
    fixed_size = False

    def embed(self, pixel_values: Tensor, **kwargs) -> Tensor:
        """Make `[CLS, patches]`, [b, s, d]; positions are rotations."""
        return self.module.embeddings(pixel_values)

    def layer_options(self, pixel_values: Tensor, **kwargs) -> dict:
        """Return the angles [1 + patches, head size] of the class token and the patches, as cosines and sines."""
        rows, columns = (edge // self.patch_size for edge in pixel_values.shape[-2:])
        places = torch.cartesian_prod(*(torch.arange(n, device=pixel_values.device) for n in (rows, columns)))
        angles = tensor_of(self.module, "class_pos_emb").repeat(1, 2)
        rotary = self.module.vision_rotary_embedding(angles, places.view(-1, 2))
        own = (angles.cos(), angles.sin())
        return {"rotations": [torch.cat(pair, dim=0) for pair in zip(own, rotary, strict=True)]}

    def layer_arguments(self, hidden: Tensor, rotations: list[Tensor]) -> tuple[tuple, dict]:
        """Return the rotations, with none for the prompts that follow the patches."""
        room = (0, 0, 0, hidden.shape[1] - len(rotations[0]))
        cos, sin = rotations
        return (), {"position_embeddings": [F.pad(cos, room, value=1.0), F.pad(sin, room)]}
