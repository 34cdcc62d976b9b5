"""BEiT and Data2Vec-Vision: patches whose attention is biased by how far apart they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .vit import ViTLikeView


class BeitView(ViTLikeView):
    """`[CLS, prompts, patches]`; prompts are nowhere in the image, so their rows and columns of the bias are zero.

    The head reads CLS or the mean of the patches, which holds no prompt. Biases are computed for the image at hand,
    so no size is refused.
    """

    fixed_size = False
    no_read_only = "its attention is biased by the places of patches, which read_only do not have"
    patch_embedding = None  # positions are biases, made for the image that was handed over

    @property
    def shared_bias(self) -> nn.Module | None:
        """The bias module that all layers share, if the model has one (older releases keep it in the encoder)."""
        encoder = getattr(self.module, "encoder", None)
        return getattr(self.module, "shared_position_bias", getattr(encoder, "relative_position_bias", None))

    @property
    def bias_modules(self) -> list[nn.Module]:
        """All modules that give a position bias."""
        return [m for m in self.module.modules() if type(m).__name__.endswith("RelativePositionBias")]

    def attach(self) -> None:
        """Let the bias modules leave room for prompts."""
        for module in self.bias_modules:
            if not hasattr(module, "prompt_hook"):
                module.prompt_hook = module.register_forward_hook(leave_room, with_kwargs=True)

    def detach(self) -> None:
        """Take the hooks away again."""
        for module in self.bias_modules:
            if hasattr(module, "prompt_hook"):
                module.prompt_hook.remove()
                del module.prompt_hook

    def embed(self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None, **kwargs) -> Tensor:
        """`[CLS, patches]`, with positions where the model has them beside the biases."""
        pixel_values = pixel_values.to(self.reference_weight.dtype)
        output = self.module.embeddings(pixel_values, bool_masked_pos=bool_masked_pos)
        return output[0] if isinstance(output, tuple) else output

    def layer_options(self, pixel_values: Tensor, **kwargs) -> dict:
        """The size of the image."""
        return {"resolution": tuple(pixel_values.shape[-2:])}

    def run_layer(self, layer: nn.Module, hidden: Tensor, resolution: tuple[int, int]) -> Tensor:
        """One layer, on the patches of an image of `resolution` pixels and prompts."""
        bias = None
        if self.shared_bias is not None:
            window = tuple(edge // self.patch_size for edge in resolution)
            bias = self.shared_bias(window, interpolate_pos_encoding=False, dim_size=hidden.shape[1])
        if hasattr(self.module, "layers"):
            return layer(hidden, attention_mask=bias, resolution=resolution)
        # Data2Vec's layers (and older BEiT's) take the bias by another name, and ask for weights before they return any.
        eager = self.module.config._attn_implementation == "eager"
        return layer(hidden, output_attentions=eager, relative_position_bias=bias, resolution=resolution)[0]


def leave_room(module: nn.Module, args: tuple, kwargs: dict, bias: Tensor) -> Tensor:
    """Forward hook: a bias [1, h, 1 + patches, 1 + patches] with zeros for prompts after the class token.

    The layers tell the module how many rows they have. A hook that stays for as long as the prompts do, and knows of
    no call, also works while a checkpointed layer is computed again.
    """
    rows = kwargs["dim_size"] if "dim_size" in kwargs else args[2]
    room = rows - bias.shape[-1]
    if not room:
        return bias
    bias = torch.cat([bias[..., :1], F.pad(bias[..., 1:], (room, 0))], dim=-1)
    return torch.cat([bias[..., :1, :], F.pad(bias[..., 1:, :], (0, 0, room, 0))], dim=-2)
