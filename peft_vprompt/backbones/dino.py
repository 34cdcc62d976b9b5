"""DINOv2 (with registers or without) and DINOv3.

Their position encodings fit images of any size, so no size is refused.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..core.insertion import insert
from .layer_parts import DINO_PARTS, LayerParts
from .vit import ViTLikeView


class DINOView(ViTLikeView):
    """`[CLS, registers, prompts, patches]`; heads read CLS and the mean of the patches, which holds no prompt."""

    fixed_size = False

    @property
    def layers(self) -> nn.ModuleList:
        """`Dinov2Layer`s."""
        return self.module.encoder.layer

    def attention(self, layer: nn.Module) -> nn.Module:
        """Return the module whose second output are the weights; transformers before 5.18 keep it inside another."""
        return getattr(layer.attention, "attention", layer.attention)

    @property
    def layer_parts(self) -> LayerParts | None:
        """DINOv2's; None with transformers before 5.18, whose attention modules are built otherwise."""
        return DINO_PARTS if hasattr(self.layers[0].attention, "o_proj") else None

    @property
    def no_read_only(self) -> str | None:
        """None; layers of transformers before 5.18 hand nothing down to the attention function."""
        if self.layer_parts is not None:
            return None
        return "its layers cannot be told who reads whom in this release of transformers; newer ones can"

    @property
    def num_prefix_tokens(self) -> int:
        """The class token and the registers."""
        return 1 + getattr(self.module.config, "num_register_tokens", 0)

    def embed(self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None, **kwargs) -> Tensor:
        """Make `[CLS, registers, patches]`, [b, s, d], with positions where they are not rotations."""
        return self.module.embeddings(pixel_values.to(self.reference_weight.dtype), bool_masked_pos=bool_masked_pos)

    def embed_grid(self, grid: Tensor) -> Tensor:
        """Make `[CLS, registers, patches]`, [b, s, d], of embedded patches [b, d, h, w]; registers have no positions."""
        tokens = super().embed_grid(grid)
        registers = getattr(self.module.embeddings, "register_tokens", None)
        return tokens if registers is None else insert(tokens, registers, 1)

    def finish(self, hidden: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Normalise all tokens [b, s, d]; the class token is the pooled output."""
        hidden = self.final_norm(hidden)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=hidden[:, 0, :])


class DINOv3View(DINOView):
    """`DINOv3ViTModel`: patches are rotated by their position; special tokens, and so the prompts, are not.

    The attention modules take the last rows for the patches and leave all rows before them unrotated.
    """

    no_read_only = "its attention rotates the rows of patches, which read-only prompts alone do not have"
    layer_parts = None  # keys are rotated
    patch_embedding = None  # its positions are rotations, made for the image that was handed over

    @property
    def layers(self) -> nn.ModuleList:
        """`DINOv3ViTLayer`s."""
        return self.module.model.layer

    def attention(self, layer: nn.Module) -> nn.Module:
        """Return the module whose second output are the weights."""
        return layer.attention

    @property
    def reference_weight(self) -> Tensor:
        """The patch embedding."""
        return self.module.embeddings.patch_embeddings.weight

    def layer_options(self, pixel_values: Tensor, **kwargs) -> dict:
        """Return the rotations of the patches."""
        pixel_values = pixel_values.to(self.reference_weight.dtype)
        return {"position_embeddings": self.module.rope_embeddings(pixel_values)}

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Run `norm` on [..., d]."""
        return self.module.norm(hidden)
