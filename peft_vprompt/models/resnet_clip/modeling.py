"""CLIP with a ResNet as its image encoder, in Hugging Face's form.

Paper: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, section 2.4: a
ResNet-D with a stem of three convolutions, average pools where it narrows, and an attention pool at its end. Names of the
image encoder's parts are those of the published files (openai/CLIP, open_clip). The text encoder is transformers' own.

Shapes: b = batch, c = channels, h, w = height and width, s = h * w cells and their mean, e = size of the joint space.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from ...backbones.vision import resize_positions
from ..comparing import CLIPOutput, compare, encode_texts
from .configuration import ResNetCLIPConfig, ResNetCLIPVisionConfig


class Bottleneck(nn.Module):
    """A block of three convolutions: narrow, look around, widen by four; where it halves the grid, a pool does.

    Args:
        channels: channels that come in.
        width: channels inside; four times as many go out.
        stride: what height and width are divided by.
        eps: of the norms.
    """

    def __init__(self, channels: int, width: int, stride: int, eps: float):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width, eps)
        self.downsample = None
        if stride > 1 or channels != 4 * width:
            shortcut = [
                ("-1", nn.AvgPool2d(stride) if stride > 1 else nn.Identity()),
                ("0", nn.Conv2d(channels, 4 * width, 1, bias=False)),
                ("1", nn.BatchNorm2d(4 * width, eps)),
            ]
            self.downsample = nn.Sequential(OrderedDict(shortcut))

    def forward(self, hidden: Tensor) -> Tensor:
        """Run the block: [b, c, h, w] to [b, 4 * width, h / stride, w / stride]."""
        shortcut = hidden if self.downsample is None else self.downsample(hidden)
        hidden = F.relu(self.bn1(self.conv1(hidden)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        hidden = self.bn3(self.conv3(self.avgpool(hidden)))
        return F.relu(hidden + shortcut)


class AttentionPool(nn.Module):
    """Attention of the mean of all cells to itself and to all cells, which ends in the joint space.

    Args:
        config: that of the image encoder.
    """

    def __init__(self, config: ResNetCLIPVisionConfig):
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.grid_size = config.image_size // config.stride
        self.positional_embedding = nn.Parameter(torch.zeros(self.grid_size**2 + 1, width))
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, config.projection_dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """Pool cells [b, c, h, w] to a feature [b, e]; positions are resized to the grid."""
        size = tuple(hidden.shape[-2:])
        tokens = hidden.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)
        own = (self.grid_size, self.grid_size)
        tokens = tokens + resize_positions(self.positional_embedding.unsqueeze(0), size, own)
        query, key, value = (
            projection(rows).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, rows in ((self.q_proj, tokens[:, :1]), (self.k_proj, tokens), (self.v_proj, tokens))
        )
        read = F.scaled_dot_product_attention(query, key, value)
        return self.c_proj(read.transpose(1, 2).flatten(2).squeeze(1))


class ResNetCLIPPreTrainedModel(PreTrainedModel):
    """What both models share: first values, and which modules stay whole on one device."""

    config_class = ResNetCLIPConfig
    base_model_prefix = "clip"
    input_modalities: Any = ("image", "text")
    _no_split_modules = ["Bottleneck", "AttentionPool", "CLIPTextEmbeddings", "CLIPEncoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Bottleneck):
            init.zeros_(module.bn3.weight)  # each block starts as its shortcut
        elif isinstance(module, AttentionPool):
            width = module.q_proj.in_features
            for part in (module.q_proj, module.k_proj, module.v_proj, module.c_proj):
                init.normal_(part.weight, std=width**-0.5)
            init.normal_(module.positional_embedding, std=width**-0.5)
        elif isinstance(module, ResNetCLIPModel):
            init.normal_(module.text_projection.weight, std=module.text_projection.in_features**-0.5)
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)


class ResNetCLIPVisionModel(ResNetCLIPPreTrainedModel):
    """CLIP's ResNet: images to one feature each, in the joint space.

    Args:
        config: its sizes.
    """

    config_class = ResNetCLIPVisionConfig
    main_input_name = "pixel_values"
    input_modalities: Any = ("image",)

    def __init__(self, config: ResNetCLIPVisionConfig):
        super().__init__(config)
        width = config.embedding_size
        eps = config.batch_norm_eps
        self.conv1 = nn.Conv2d(config.num_channels, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2, eps)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2, eps)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width, eps)
        self.avgpool = nn.AvgPool2d(2)
        channels = width
        for index, depth in enumerate(config.depths):
            blocks = []
            for block in range(depth):
                stride = 2 if index and not block else 1
                blocks.append(Bottleneck(channels, width * 2**index, stride, eps))
                channels = 4 * width * 2**index
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        self.attnpool = AttentionPool(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the convolution that reads the pixels."""
        return self.conv1

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: [b, c, h, w].
            interpolate_pos_encoding: resize the pool's positions to images of another size.
            output_hidden_states: also return what leaves the stem and each stage.
            kwargs: what else a call of the whole model carries; not looked at.

        Returns:
            `pooler_output` [b, e] is the feature, `last_hidden_state` [b, c, h, w] what the pool reads.

        Raises:
            ValueError: images of another size, without `interpolate_pos_encoding`.
        """
        edge = self.config.image_size
        if tuple(pixel_values.shape[-2:]) != (edge, edge) and not interpolate_pos_encoding:
            raise ValueError(
                f"Expected images of {edge}x{edge} pixels. Received: pixel_values of shape {list(pixel_values.shape)}. "
                "Resize them with the model's image processor, or pass interpolate_pos_encoding=True."
            )
        hidden = pixel_values.to(self.conv1.weight.dtype)
        for convolution, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            hidden = F.relu(norm(convolution(hidden)))
        hidden = self.avgpool(hidden)
        states = [hidden]
        for index in range(len(self.config.depths)):
            hidden = self.get_submodule(f"layer{index + 1}")(hidden)
            states.append(hidden)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=self.attnpool(hidden),
            hidden_states=tuple(states) if output_hidden_states else None,
        )


class ResNetCLIPModel(ResNetCLIPPreTrainedModel):
    """CLIP with a ResNet: transformers' CLIP text encoder beside `ResNetCLIPVisionModel`, called like `CLIPModel`.

    Args:
        config: sizes of both.

    Example:

    ```python
    model = ResNetCLIPModel.from_pretrained("path/to/rn50")  # made by `vprompt convert-clip`
    model = get_peft_model(model, CoOpConfig(class_names=["cat", "dog"]))
    ```
    """

    def __init__(self, config: ResNetCLIPConfig):
        super().__init__(config)
        self.text_model = CLIPTextModel._from_config(config.text_config)
        self.vision_model = ResNetCLIPVisionModel._from_config(config.vision_config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding of the words."""
        return self.text_model.get_input_embeddings()

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Encode texts [b, l]: `pooler_output` [b, e] is in the joint space, not L2-normalised."""
        kwargs |= {"attention_mask": attention_mask, "position_ids": position_ids}
        return encode_texts(self.text_model, self.text_projection, input_ids, **kwargs)

    @can_return_tuple
    def get_image_features(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Encode images [b, c, h, w]: `pooler_output` [b, e] is in the joint space, not L2-normalised."""
        kwargs["return_dict"] = True
        return self.vision_model(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> CLIPOutput:
        """Compare images with texts, as `CLIPModel` does.

        Raises:
            ValueError: texts or images alone, or none of both.
        """
        if input_ids is None or pixel_values is None:
            raise ValueError("Expected input_ids and pixel_values. Received one of them alone, or none.")
        images = self.get_image_features(pixel_values, interpolate_pos_encoding, **kwargs)
        texts = self.get_text_features(input_ids, attention_mask, position_ids, **kwargs)
        output = compare(images, texts, self.logit_scale.exp())
        if return_loss:
            logits: Any = output.logits_per_text
            pairs = torch.arange(len(logits), device=logits.device)
            output.loss = (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.t(), pairs)) / 2
        return output
