"""Side tuning."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from ...backbones.supported import ENCODER_VIEWS, class_name, view
from ...core.offloading import computing_device
from ...errors import UnsupportedModelError
from ..base.classifier_parts import ClassifierParts
from ..base.config import BaselineConfig
from ..base.module_tuner import ModuleTuner
from ..base.tuned_module import TunedModule, full_precision


class SideNetwork(TunedModule):
    """sigmoid(alpha) * frozen feature + (1 - sigmoid(alpha)) * projected feature of a small convolutional network.

    Every token (and the pooled output, where there is one) is blended with the same side feature. What a classifier reads
    out, one token or a mean of tokens, is then the blend of its feature. Source: KMnP/vpt `src/models/vit_models.py`;
    alpha starts at 0.
    """

    def __init__(self, base_layer: nn.Module, side_widths: list[int]):
        super().__init__()
        config = base_layer.config
        weight = next(base_layer.parameters())
        self.network = ResNetModel(
            ResNetConfig(
                num_channels=config.num_channels,
                embedding_size=side_widths[0],
                hidden_sizes=side_widths,
                depths=[1] * len(side_widths),
                layer_type="basic",
            )
        )
        self.projection = nn.Linear(side_widths[-1], config.hidden_size, bias=False)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.to(dtype=full_precision(weight.dtype))
        if not self.alpha.is_meta:
            self.to(device=computing_device(base_layer, weight))

    def forward(self, base_layer: nn.Module, pixel_values: Tensor, *args, **kwargs):
        """Return the encoder's output, every token blended with the side feature."""
        output = base_layer(pixel_values, *args, **kwargs)
        side = self.projection(self.network(pixel_values.to(self.alpha.dtype)).pooler_output.flatten(1))
        side, share = (part.to(output.last_hidden_state.dtype) for part in (side, self.alpha.sigmoid()))
        output.last_hidden_state = share * output.last_hidden_state + (1 - share) * side[:, None]
        if getattr(output, "pooler_output", None) is not None:
            output.pooler_output = share * output.pooler_output + (1 - share) * side
        return output


class SideTuningModel(ModuleTuner):
    """A convolutional network beside the encoder."""

    peft_name = "side_tuning"
    prefix = "side_tuning_"
    module_class = SideNetwork
    module_options = ("side_widths",)

    @classmethod
    def targets(cls, config: BaselineConfig, classifier: ClassifierParts) -> list[str]:
        """Return the encoder."""
        return [classifier.encoder]

    @classmethod
    def make_module(cls, config: BaselineConfig, base_layer: nn.Module) -> TunedModule:
        """Return a side network.

        Raises:
            UnsupportedModelError: the encoder takes patches, of which no image can be made.
        """
        # pyrefly: ignore[missing-attribute]  # baselines are trained on image encoders
        if class_name(base_layer) in ENCODER_VIEWS and view(base_layer).num_tokens is None:
            raise UnsupportedModelError(
                f"Expected an encoder that takes images, which the side network reads too. Received: "
                f"{class_name(base_layer)}, which takes padded rows of patches. Choose another method."
            )
        return super().make_module(config, base_layer)
