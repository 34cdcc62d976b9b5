"""The encoder of MAE, `ViTMAEModel`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.offloading import tensor_of
from .layer_parts import VIT_PARTS
from .vit import ViTLikeView


class MAEView(ViTLikeView):
    """`[CLS, prompts, patches]` of the whole image.

    For its pre-training the model drops three quarters of the patches at random, in a new order. A prompted encoder
    is there to classify, so it sees all patches in their order, as when the authors of MAE fine-tune it. With the
    adapter disabled the model drops patches as before.
    """

    layer_parts = VIT_PARTS
    embed_options = ("noise",)

    def embed(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool | None = None,
        noise: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """Make `[CLS, patches]` with positions, [b, s, d]; no patch is dropped.

        Raises:
            ValueError: there is `noise`, which orders the patches to drop.
        """
        if noise is not None:
            raise ValueError(
                f"Expected no noise with prompts: all patches are encoded. Received: noise of shape "
                f"{list(noise.shape)}. Call the model in disable_adapter() for MAE's random masking."
            )
        embeddings = self.module.embeddings
        patches = embeddings.patch_embeddings(pixel_values.to(self.reference_weight.dtype))
        positions = tensor_of(embeddings, "position_embeddings")
        if interpolate_pos_encoding:
            positions = embeddings.interpolate_pos_encoding(patches, *pixel_values.shape[-2:])
        tokens = torch.cat([tensor_of(embeddings, "cls_token").expand(patches.shape[0], -1, -1), patches], dim=1)
        return tokens + positions
