"""Configuration of CLIP with a ResNet as its image encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import CLIPTextConfig, PretrainedConfig

from ...utils.validation import require_choice


#: Sizes of the published models: blocks of each stage, width of the stem, image size, size of the joint space, width of
#: the text encoder (whose heads have 64 numbers each).
SHAPES: dict[str, tuple[tuple[int, ...], int, int, int, int]] = {
    "RN50": ((3, 4, 6, 3), 64, 224, 1024, 512),
    "RN101": ((3, 4, 23, 3), 64, 224, 512, 512),
    "RN50x4": ((4, 6, 10, 6), 80, 288, 640, 640),
    "RN50x16": ((6, 8, 18, 8), 96, 384, 768, 768),
    "RN50x64": ((3, 15, 36, 10), 128, 448, 1024, 1024),
}


class ResNetCLIPVisionConfig(PretrainedConfig):
    """Sizes of CLIP's ResNet; the defaults are those of RN50.

    Args:
        depths: blocks of each of the four stages.
        embedding_size: channels that leave the stem; stage i has 4 * 2**i times as many.
        image_size: edge of the images in pixels, which sets the positions of the attention pool.
        num_channels: channels of the images.
        projection_dim: size of the joint space, in which the attention pool ends.
        attention_head_size: numbers of each head of the attention pool.
        batch_norm_eps: what is added to the variances.
        initializer_range: standard deviation of new convolutions.
    """

    model_type = "resnet_clip_vision_model"
    base_config_key = "vision_config"

    def __init__(
        self,
        depths: Sequence[int] = (3, 4, 6, 3),
        embedding_size: int = 64,
        image_size: int = 224,
        num_channels: int = 3,
        projection_dim: int = 1024,
        attention_head_size: int = 64,
        batch_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        self.depths = list(depths)
        self.embedding_size = embedding_size
        self.image_size = image_size
        self.num_channels = num_channels
        self.projection_dim = projection_dim
        self.attention_head_size = attention_head_size
        self.batch_norm_eps = batch_norm_eps
        self.initializer_range = initializer_range
        super().__init__(**kwargs)

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels that leave each stage."""
        return [4 * self.embedding_size * 2**index for index in range(len(self.depths))]

    @property
    def hidden_size(self) -> int:
        """Channels that leave the last stage."""
        return self.hidden_sizes[-1]

    @property
    def num_attention_heads(self) -> int:
        """Heads of the attention pool."""
        return self.hidden_size // self.attention_head_size

    @property
    def stride(self) -> int:
        """Edge in pixels of a cell of the last stage: the stem and all stages but the first halve the image."""
        return 4 * 2 ** (len(self.depths) - 1)


class ResNetCLIPConfig(PretrainedConfig):
    """Configuration of `ResNetCLIPModel`: CLIP's text encoder beside a ResNet.

    Args:
        text_config: a `CLIPTextConfig`, or its fields.
        vision_config: a `ResNetCLIPVisionConfig`, or its fields.
        logit_scale_init_value: first value of the logarithm of the scale.

    Example:

    ```python
    ResNetCLIPModel(ResNetCLIPConfig.of("RN50x4"))  # with random weights
    ```
    """

    model_type = "resnet_clip"
    sub_configs = {"text_config": CLIPTextConfig, "vision_config": ResNetCLIPVisionConfig}

    def __init__(
        self,
        text_config: CLIPTextConfig | dict | None = None,
        vision_config: ResNetCLIPVisionConfig | dict | None = None,
        logit_scale_init_value: float = 2.6592,
        **kwargs,
    ):
        if not isinstance(vision_config, ResNetCLIPVisionConfig):
            vision_config = ResNetCLIPVisionConfig(**(vision_config or {}))
        if not isinstance(text_config, CLIPTextConfig):
            fields: dict[str, Any] = {"projection_dim": vision_config.projection_dim} | (text_config or {})
            text_config = CLIPTextConfig(**fields)
        self.text_config = text_config
        self.vision_config = vision_config
        self.logit_scale_init_value = logit_scale_init_value
        kwargs.pop("projection_dim", None)  # in saved files, where it is read by others
        super().__init__(**kwargs)

    @property
    def projection_dim(self) -> int:
        """Size of the joint space."""
        return self.vision_config.projection_dim

    @classmethod
    def of(cls, name: str) -> ResNetCLIPConfig:
        """Return the configuration of a published model: RN50, RN101, RN50x4, RN50x16 or RN50x64.

        Raises:
            ValueError: there is none of that name.
        """
        require_choice("name", name, list(SHAPES))
        depths, embedding_size, image_size, projection_dim, width = SHAPES[name]
        text: dict[str, Any] = {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_attention_heads": width // 64,
        }
        sizes: dict[str, Any] = {"depths": depths, "embedding_size": embedding_size, "image_size": image_size}
        return cls(text | {"projection_dim": projection_dim}, sizes | {"projection_dim": projection_dim})
