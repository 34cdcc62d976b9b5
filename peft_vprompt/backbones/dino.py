"""DINOv2 (with registers or without) and DINOv3.

Their position encodings fit images of any size, so no size is refused.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..core.insertion import insert
from .layer_parts import DINO_PARTS
from .vit import ViTLikeView


class DINOView(ViTLikeView):
    """`[CLS, registers, prompts, patches]`; heads read CLS and the mean of the patches, which holds no prompt."""

    fixed_size = False
    layer_parts = DINO_PARTS

    @property
    def num_prefix_tokens(self) -> int:
        """The class token and the registers."""
        return 1 + getattr(self.module.config, "num_register_tokens", 0)

    def embed(self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None, **kwargs) -> Tensor:
        """`[CLS, registers, patches]`, with positions where they are not rotations."""
        return self.module.embeddings(pixel_values.to(self.reference_weight.dtype), bool_masked_pos=bool_masked_pos)

    def embed_grid(self, grid: Tensor) -> Tensor:
        """`[CLS, registers, patches]` with positions, which registers have none of."""
        tokens, registers = super().embed_grid(grid), getattr(self.module.embeddings, "register_tokens", None)
        return tokens if registers is None else insert(tokens, registers, 1)

    def finish(self, hidden: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Final norm of all tokens; the class token is the pooled output."""
        hidden = self.final_norm(hidden)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=hidden[:, 0, :])


class DINOv3View(DINOView):
    """`DINOv3ViTModel`: patches are rotated by their position; special tokens, and so the prompts, are not.

    The attention modules take the last rows for the patches and leave all rows before them unrotated.
    """

    no_read_only = "its attention rotates the rows of patches, which read_only alone do not have"
    layer_parts = None  # keys are rotated
    patch_embedding = None  # its positions are rotations, made for the image that was handed over

    @property
    def layers(self) -> nn.ModuleList:
        """`DINOv3ViTLayer`s; older transformers releases keep them in the model itself."""
        return getattr(self.module, "model", self.module).layer

    @property
    def reference_weight(self) -> Tensor:
        """The patch embedding."""
        return self.module.embeddings.patch_embeddings.weight

    def layer_options(self, pixel_values: Tensor, **kwargs) -> dict:
        """The rotations of the patches."""
        pixel_values = pixel_values.to(self.reference_weight.dtype)
        return {"position_embeddings": self.module.rope_embeddings(pixel_values)}

    def final_norm(self, hidden: Tensor) -> Tensor:
        """`norm`."""
        return self.module.norm(hidden)
