"""SigLIP, SigLIP 2, and the image encoder of AIMv2."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..core.offloading import tensor_of
from .clip import CLIPLikeVisionView, CLIPView
from .text import PaddedTextView
from .vision import resize_positions


class SiglipTextView(CLIPView, PaddedTextView):
    """Text encoder of `SiglipModel` and `Siglip2Model`.

    Texts are padded to all positions, padding is read like any token, and the feature is the last token's, through a
    linear head.
    """

    parts = ("embeddings", "encoder", "final_layer_norm", "head")
    fills_up = reads_padding = True

    @property
    def token_embedding(self) -> nn.Module:
        """`nn.Embedding` over the vocabulary."""
        return self.module.embeddings.token_embedding

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Normalise the last token's state of [c, l, d] and run the head: [c, e]."""
        return self.module.head(self.module.final_layer_norm(hidden[:, -1]))

    def plain_features(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the pooled output [c, e] for ids [c, l]; the mask has no meaning here."""
        return self.module(input_ids=token_ids).pooler_output


class SiglipVisionView(CLIPLikeVisionView):
    """Image encoder of `SiglipModel`: patches and no class token.

    The pooling head, a learned query that reads all patches, does not read the prompts.
    """

    num_prefix_tokens = 0
    pixel_mean, pixel_std = IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD
    no_read_only = "its attention modules cannot be told who reads whom"

    def finish(self, hidden: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Normalise all patches [b, s, d], and pool them where the model has a pooling head."""
        hidden = self.final_norm(hidden)
        pooled = self.module.head(hidden, *self.head_arguments(**kwargs)) if self.module.use_head else None
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)

    def pooled_output(self, feature: Tensor) -> Tensor:
        """Run the pooling head, if there is one, where it finds nothing but the feature."""
        return self.module.head(feature.unsqueeze(1)) if self.module.use_head else feature

    def head_arguments(self, **kwargs) -> tuple:
        """Return what the pooling head reads beside the patches."""
        return ()


class Siglip2VisionView(SiglipVisionView):
    """Image encoder of `Siglip2Model`: images of any shape as padded rows of patches; nobody reads the padding."""

    fixed_size = False
    patch_embedding = None  # patches are cut before the model sees them
    num_tokens = num_head_rows = None  # an image has as many rows as its mask
    embed_options = ("spatial_shapes", "pixel_attention_mask")

    def embed(self, pixel_values: Tensor, spatial_shapes: Tensor | None = None, **kwargs) -> Tensor:
        """Make tokens [b, s, d] of patches [b, s, 3 * patch size ** 2]; `spatial_shapes` is [b, 2], in patches.

        Raises:
            ValueError: there are no shapes.
        """
        if spatial_shapes is None:
            raise ValueError(
                "Expected spatial_shapes and pixel_attention_mask beside pixel_values, as Siglip2ImageProcessor gives "
                "them. Received: spatial_shapes=None."
            )
        return self.module.embeddings(pixel_values, spatial_shapes)

    def layer_options(self, pixel_values: Tensor, pixel_attention_mask: Tensor | None = None, **kwargs) -> dict:
        """Return the mask of the padding."""
        return {"pixel_attention_mask": pixel_attention_mask}

    def layer_arguments(self, hidden: Tensor, pixel_attention_mask: Tensor | None = None) -> tuple[tuple, dict]:
        """Return the mask: nobody reads the padding, and everybody the prompts that follow it."""
        mask = None
        if pixel_attention_mask is not None:
            prompts = hidden.shape[1] - pixel_attention_mask.shape[1]
            mask = create_bidirectional_mask(
                config=self.module.config,
                inputs_embeds=hidden,
                attention_mask=F.pad(pixel_attention_mask, (0, prompts), value=1),
            )
        return (mask,), {}

    def head_arguments(self, pixel_attention_mask: Tensor | None = None, **kwargs) -> tuple:
        """Return the mask of the padding."""
        return (pixel_attention_mask,)


class Aimv2VisionView(SiglipVisionView):
    """`Aimv2VisionModel`: as SigLIP's, of other parts; positions are sines for images of any size, or learned for one."""

    layer_parts = None
    pixel_mean, pixel_std = OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
    resizes_positions = False

    @property
    def fixed_size(self) -> bool:
        """Whether positions are learned."""
        return not self.module.config.is_native

    @property
    def reference_weight(self) -> Tensor:
        """The patch embedding."""
        return self.module.embeddings.patch_embed.weight

    @property
    def patch_embedding(self) -> nn.Module | None:
        """A convolution; None where positions are made for the image that was handed over."""
        return self.module.embeddings.patch_embed if self.fixed_size else None

    def attention(self, layer: nn.Module) -> nn.Module:
        """Return the layer's `Aimv2Attention`."""
        return layer.attention

    def embed(self, pixel_values: Tensor, **kwargs) -> Tensor:
        """Make patches with positions, [b, s, d]."""
        return self.module.embeddings(pixel_values.to(self.reference_weight.dtype))

    def embed_grid(self, grid: Tensor) -> Tensor:
        """Make normalised patches with positions [b, s, d] of embedded patches [b, d, h, w]."""
        embeddings = self.module.embeddings
        tokens = embeddings.rms_norm(grid.flatten(2).transpose(1, 2))
        positions = tensor_of(embeddings.position_embedding, "weight").unsqueeze(0)
        return tokens + resize_positions(positions, tuple(grid.shape[-2:]), self.grid_size, 0)

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Run `rms_norm` on [..., d]."""
        return self.module.rms_norm(hidden)
