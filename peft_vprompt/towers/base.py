"""`Tower`: the thin, per-architecture view of one encoder.

A view holds no state: it is made on the fly around the module it looks at. A new backbone is one more view.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling


class Tower(ABC):
    """What the layer loop and the prompt holders need to know of an encoder."""

    def __init__(self, module: nn.Module):
        self.module = module

    @property
    @abstractmethod
    def layers(self) -> Iterable[nn.Module]:
        """The Hugging Face layers in order."""

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def width(self) -> int:
        """Size of a token."""
        return self.module.config.hidden_size

    @property
    @abstractmethod
    def reference_weight(self) -> Tensor:
        """A weight whose dtype and device new prompts take."""

    @abstractmethod
    def attention(self, layer: nn.Module) -> nn.Module:
        """The attention module of one layer."""

    def keys_values(self, layer: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [b, h, s, head size] that the layer's attention reads, from the layer's input [b, s, d].

        A tower that knows its layers' projections computes nothing else.
        """
        record: list[tuple[Tensor, Tensor]] = []
        self.run_layer(layer, hidden, record=record)
        return record[0]

    def run_layer(self, layer: nn.Module, hidden: Tensor, **kwargs) -> Tensor:
        """One layer on [b, s, d]; `kwargs` go to its attention function."""
        output = layer(hidden, None, **kwargs)
        return output[0] if isinstance(output, tuple) else output


def split_heads(projected: Tensor, head_size: int) -> Tensor:
    """[b, s, h * head size] as [b, h, s, head size]."""
    return projected.unflatten(-1, (-1, head_size)).transpose(1, 2)


class VisionTower(Tower):
    """An image encoder.

    Attributes:
        prompts_first: True where prompts stand right after the class token, False where they follow the patches.
        embed_options: further keyword arguments that `embed` understands.
        readout_rows: the rows that `pool` needs of the last layer; None for all.
    """

    prompts_first: bool
    embed_options: tuple[str, ...] = ()
    readout_rows: slice | None = None

    @property
    @abstractmethod
    def patch_size(self) -> int:
        """Edge of a patch in pixels."""

    @property
    @abstractmethod
    def image_size(self) -> tuple[int, int]:
        """Height and width the position embeddings are made for."""

    @abstractmethod
    def embed(self, pixel_values: Tensor, **kwargs) -> Tensor:
        """Class token and patches with positions, [b, 1 + patches, d].

        A call of the model hands on keywords that are not for the embeddings (the Trainer's `num_items_in_batch`,
        say); they are ignored.
        """

    def prepare(self, hidden: Tensor) -> Tensor:
        """What happens between embedding (prompts included) and the first layer."""
        return hidden

    @abstractmethod
    def class_vector(self) -> Tensor:
        """The class token's embedding, [d], without its position."""

    @abstractmethod
    def finish(self, hidden: Tensor) -> BaseModelOutputWithPooling:
        """Final norm and pooling of [b, s, d]."""

    def pool(self, hidden: Tensor) -> Tensor:
        """The image's feature [b, d] from what `readout_rows` leave of the last layer, [b, r, d]."""
        return self.finish(hidden).pooler_output

    @abstractmethod
    def final_norm(self, hidden: Tensor) -> Tensor:
        """The norm that a token read out at the end goes through."""

    def check_image_size(self, pixel_values: Tensor, interpolate_pos_encoding: bool | None) -> None:
        """Refuse images the position embeddings do not fit.

        Raises:
            ValueError: names both sizes and the two remedies.
        """
        size = tuple(pixel_values.shape[-2:])
        if size != self.image_size and not interpolate_pos_encoding:
            raise ValueError(
                f"Expected images of {self.image_size[0]}x{self.image_size[1]} pixels. Received: pixel_values of shape "
                f"{list(pixel_values.shape)}. Resize them with the model's image processor, or pass "
                "interpolate_pos_encoding=True."
            )


class TextTower(Tower):
    """A causal text encoder."""

    @property
    @abstractmethod
    def token_embedding(self) -> nn.Module:
        """Token ids -> vectors."""

    @property
    @abstractmethod
    def position_embedding(self) -> nn.Module:
        """Positions -> vectors."""

    @property
    @abstractmethod
    def end_token_id(self) -> int:
        """Id of the end token, where the text's feature is read."""

    @abstractmethod
    def final_norm(self, hidden: Tensor) -> Tensor:
        """The norm after the last layer."""

    @property
    def max_positions(self) -> int:
        """Longest text, start and end token included."""
        return self.module.config.max_position_embeddings

    @torch.no_grad()
    def word_vectors(self, token_ids: list[int]) -> Tensor:
        """Token embeddings [len(token_ids), d] to start prompts from."""
        weight = self.token_embedding.weight
        return weight[torch.tensor(token_ids, device=weight.device)].clone()
