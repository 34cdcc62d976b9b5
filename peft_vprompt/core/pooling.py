"""Rows to one feature: the poolings that VPT's authors offer beside the encoder's own."""

from __future__ import annotations

import torch
from torch import Tensor


def pool(hidden: Tensor, pooling: str, prefix: int, prompts: slice) -> Tensor:
    """Average some rows of `hidden` [b, s, d] to one feature [b, d]; `prefix` rows come first (the class token).

    `pooling` is "img_pool" (the image's patches), "prompt_pool" (the rows `prompts`) or "imgprompt_pool" (both).
    Source: VPT, section 4.3; KMnP/vpt `MODEL.PROMPT.VIT_POOL_TYPE`.
    """
    if pooling == "prompt_pool":
        return hidden[:, prompts].mean(dim=1)
    if pooling == "imgprompt_pool":
        return hidden[:, prefix:].mean(dim=1)
    patches = torch.cat(
        [hidden[:, prefix : max(prefix, prompts.start)], hidden[:, max(prefix, prompts.stop) :]], dim=1
    )
    return patches.mean(dim=1)
