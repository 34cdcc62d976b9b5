"""CLIP's text encoder, or a BERT, beside any image encoder that gives one vector for each image."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from ..backbones.supported import view
from ..backbones.text import PaddedTextView
from .comparing import CLIPOutput, compare, encode_texts


class OpaqueTower(nn.Module):
    """An image encoder by the interface of those of transformers: its output has a `pooler_output` [b, e].

    Args:
        encoder: any module that makes a vector [b, e] of images [b, c, h, w]; or an output of transformers that holds one as
            `image_embeds` or `pooler_output`.
        image_size: edge of its images in pixels; None where it takes any.
        num_channels: channels of its images.
    """

    main_input_name = "pixel_values"

    def __init__(self, encoder: nn.Module, image_size: int | None = None, num_channels: int = 3):
        super().__init__()
        self.encoder = encoder
        self.config: Any = PretrainedConfig()
        self.config.image_size = image_size
        self.config.num_channels = num_channels

    def forward(self, pixel_values: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Encode images; `kwargs` are what else a call of the whole model carries, and are not looked at.

        Raises:
            ValueError: the encoder gives something else than one vector for each image.
        """
        output: Any = self.encoder(pixel_values)
        given = output
        for name in ("pooler_output", "image_embeds"):
            given = getattr(output, name, None) if getattr(output, name, None) is not None else given
        if not isinstance(given, Tensor) or given.ndim != 2 or len(given) != len(pixel_values):
            shape = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(
                f"Expected an image encoder that gives one vector for each image, [{len(pixel_values)}, dim]. Received: {shape} "
                f"of {type(self.encoder).__name__}. Pool its output, in a module of your own around it."
            )
        return BaseModelOutputWithPooling(pooler_output=given)


class OpaqueCLIPConfig(PretrainedConfig):
    """Configuration of the text side of an `OpaqueCLIPModel`.

    Args:
        text_config: a `CLIPTextConfig`, or its fields; or the configuration of another text encoder.
        projection_dim: size of the joint space.
        logit_scale_init_value: first value of the logarithm of the scale.
    """

    model_type = "opaque_clip"
    sub_configs = {"text_config": CLIPTextConfig}

    def __init__(
        self,
        text_config: PretrainedConfig | dict | None = None,
        projection_dim: int = 512,
        logit_scale_init_value: float = 2.6592,
        **kwargs,
    ):
        if not isinstance(text_config, PretrainedConfig):
            fields: dict[str, Any] = {"projection_dim": projection_dim} | (text_config or {})
            text_config = CLIPTextConfig(**fields)
        # A copy: a model chooses an attention function for its config, and this one may be the text encoder's own.
        self.text_config = copy.deepcopy(text_config)
        self.projection_dim = projection_dim
        self.logit_scale_init_value = logit_scale_init_value
        super().__init__(**kwargs)


class OpaqueCLIPModel(PreTrainedModel):
    """CLIP's text encoder beside any image encoder, whose vectors are in the joint space. Called like `CLIPModel`.

    Args:
        config: the text side.
        image_encoder: what makes a vector [b, projection_dim] of images [b, c, h, w].
        image_size: edge of the images in pixels; None where the encoder takes any.
        text_encoder: a text encoder in the place of CLIP's, a BERT or RoBERTa.
        text_projection: what maps its features into the joint space.

    Example:

    ```python
    clip = CLIPModel.from_pretrained("openai/clip-vit-base-patch16")
    model = OpaqueCLIPModel(OpaqueCLIPConfig(clip.config.text_config, 512), my_encoder, image_size=224)
    model.text_model, model.text_projection = clip.text_model, clip.text_projection
    model = get_peft_model(model, CoOpConfig(class_names=["cat", "dog"], tokenizer_name_or_path=...))
    ```
    """

    config_class = OpaqueCLIPConfig
    base_model_prefix = "clip"
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: OpaqueCLIPConfig,
        image_encoder: nn.Module,
        image_size: int | None = None,
        text_encoder: nn.Module | None = None,
        text_projection: nn.Module | None = None,
    ):
        super().__init__(config)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        if text_encoder is None:
            self.text_model: nn.Module = CLIPTextModel._from_config(config.text_config)
        if text_projection is None:
            width = config.text_config.hidden_size
            self.text_projection: nn.Module = nn.Linear(width, config.projection_dim, bias=False)
        self.post_init()  # before the parts that are given are there, whose weights it would make anew
        if text_encoder is not None:
            self.text_model = text_encoder
        if text_projection is not None:
            self.text_projection = text_projection
        self.vision_model = OpaqueTower(image_encoder, image_size)

    def save_pretrained(self, *args, **kwargs) -> None:
        """Refuse: the image encoder is not one that transformers could make again.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "Expected to save an adapter, by save_pretrained of the PEFT model. Received the base model, whose image encoder "
            "is no model of transformers: save it in its own way."
        )

    @can_return_tuple
    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Encode texts [b, l]: `pooler_output` [b, e] is in the joint space, not L2-normalised."""
        tower = view(self.text_model)
        if isinstance(tower, PaddedTextView):
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            kwargs |= {} if position_ids is None else {"position_ids": position_ids}
            output = self.text_model(input_ids=input_ids, attention_mask=mask, **kwargs)
            pooled = self.text_projection(tower.pool(output.last_hidden_state, mask.bool()))
            return BaseModelOutputWithPooling(last_hidden_state=output.last_hidden_state, pooler_output=pooled)
        kwargs |= {"attention_mask": attention_mask, "position_ids": position_ids}
        return encode_texts(self.text_model, self.text_projection, input_ids, **kwargs)

    @can_return_tuple
    def get_image_features(self, pixel_values: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Encode images [b, c, h, w]: `pooler_output` [b, e], not L2-normalised."""
        return self.vision_model(pixel_values, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs,
    ) -> CLIPOutput:
        """Compare images with texts, as `CLIPModel` does."""
        images = self.get_image_features(pixel_values)
        texts = self.get_text_features(input_ids, attention_mask, position_ids, **kwargs)
        return compare(images, texts, self.logit_scale.exp())
