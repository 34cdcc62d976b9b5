"""DINOv2 (with registers or without), DINOv3, and what is built of DINOv2's layers: TIPSv2 and RADIO.

Their position encodings fit images of any size, so no size is refused.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..core.insertion import insert
from ..core.plain_modules import modeling_file
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


class Tipsv2VisionView(DINOView):
    """`Tipsv2VisionModel`: DINOv2 with registers; its images are not normalised."""

    pixel_mean, pixel_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    pooled_rows = slice(0, 1)


class RadioView(DINOView):
    """`RadioModel`: several class tokens and registers, no final norm; it normalises images itself.

    The image's feature is the `summary`, some of the class tokens beside each other.
    """

    patch_embedding = None  # patches are cut, not convolved
    pixel_mean, pixel_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    @property
    def num_prefix_tokens(self) -> int:
        """The class tokens and the registers."""
        return self.module.config.num_summary_tokens

    @property
    def reference_weight(self) -> Tensor:
        """The patch embedding."""
        return self.module.embeddings.patch_projection.weight

    def embed(self, pixel_values: Tensor, **kwargs) -> Tensor:
        """Make `[CLS, ..., registers, patches]` with positions, [b, s, d]."""
        pixels = self.module.input_conditioner(pixel_values.to(self.reference_weight.dtype))
        return self.module.embeddings(pixels)

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Return the tokens as they are."""
        return hidden

    def summarize(self, tokens: Tensor) -> Tensor:
        """Return the class tokens that make up the summary, [b, k * d] of [b, s, d]."""
        return tokens[:, self.module.summary_idxs].flatten(1)

    def finish(self, hidden: Tensor, **kwargs) -> Any:
        """Make the model's own kind of output."""
        return modeling_file(self.module).RadioModelOutput(
            summary=self.summarize(hidden), features=hidden[:, self.num_prefix_tokens :], last_hidden_state=hidden
        )
