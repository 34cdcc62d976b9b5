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
    no_read_only = "its attention is biased by the places of patches, which read-only prompts do not have"
    patch_embedding = None  # positions are biases, made for the image that was handed over

    @property
    def shared_bias(self) -> nn.Module | None:
        """The bias module that all layers share, if the model has one."""
        return self.module.shared_position_bias

    @property
    def bias_modules(self) -> list[nn.Module]:
        """All modules that give a position bias."""
        return [m for m in self.module.modules() if type(m).__name__.endswith("RelativePositionBias")]

    def attach(self) -> None:
        """Let the bias modules leave room for prompts.

        * Reason: transformers computes biases for the rows that the image has, and refuses others.
        * Undo: `detach`.
        * Goes when the bias modules can be told of rows without a place.
        """
        for module in self.bias_modules:
            if not hasattr(module, "prompt_hook"):
                module.prompt_hook = module.register_forward_hook(leave_room, with_kwargs=True)

    def detach(self) -> None:
        """Undo `attach`."""
        for module in self.bias_modules:
            if hasattr(module, "prompt_hook"):
                module.prompt_hook.remove()
                del module.prompt_hook

    def embed(self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None, **kwargs) -> Tensor:
        """Make `[CLS, patches]`, [b, s, d], with positions where the model has them beside the biases."""
        pixel_values = pixel_values.to(self.reference_weight.dtype)
        output = self.module.embeddings(pixel_values, bool_masked_pos=bool_masked_pos)
        return output[0] if isinstance(output, tuple) else output

    def layer_options(self, pixel_values: Tensor, **kwargs) -> dict:
        """Return the size of the image."""
        return {"resolution": tuple(pixel_values.shape[-2:])}

    def layer_arguments(self, hidden: Tensor, resolution: tuple[int, int]) -> tuple[tuple, dict]:
        """Return the bias that all layers share, for the patches of an image of `resolution` pixels and prompts."""
        return (), {"attention_mask": self.bias(hidden, resolution), "resolution": resolution}

    def bias(self, hidden: Tensor, resolution: tuple[int, int]) -> Tensor | None:
        """Return the shared bias [1, h, s, s], if there is one; the layers' own come on top."""
        if self.shared_bias is None:
            return None
        window = tuple(edge // self.patch_size for edge in resolution)
        return self.shared_bias(window, interpolate_pos_encoding=False, dim_size=hidden.shape[1])


class Data2VecVisionView(BeitView):
    """`Data2VecVisionModel`: BEiT's layers, in an encoder module and with other names for their arguments."""

    @property
    def layers(self) -> nn.ModuleList:
        """`Data2VecVisionLayer`s."""
        return self.module.encoder.layer

    def attention(self, layer: nn.Module) -> nn.Module:
        """Return the module whose second output are the weights."""
        return layer.attention.attention

    @property
    def shared_bias(self) -> nn.Module | None:
        """The bias module that all layers share, if the model has one."""
        return getattr(self.module.encoder, "relative_position_bias", None)

    def layer_arguments(self, hidden: Tensor, resolution: tuple[int, int]) -> tuple[tuple, dict]:
        """Return the bias that all layers share; weights have to be asked for before there are any."""
        bias = self.bias(hidden, resolution)
        eager = self.module.config._attn_implementation == "eager"
        return (), {"output_attentions": eager, "relative_position_bias": bias, "resolution": resolution}


def leave_room(module: nn.Module, args: tuple, kwargs: dict, bias: Tensor) -> Tensor:
    """Give a bias [1, h, 1 + patches, 1 + patches] zeros for prompts after the class token; a forward hook.

    The layers tell the module how many rows they have. A hook that stays for as long as the prompts do, and knows of
    no call, also works while a checkpointed layer is computed again.
    """
    rows = kwargs["dim_size"] if "dim_size" in kwargs else args[2]
    room = rows - bias.shape[-1]
    if not room:
        return bias
    bias = torch.cat([bias[..., :1], F.pad(bias[..., 1:], (room, 0))], dim=-1)
    return torch.cat([bias[..., :1, :], F.pad(bias[..., 1:, :], (0, 0, room, 0))], dim=-2)
