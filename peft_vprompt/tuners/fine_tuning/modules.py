"""What an adapter puts beside one module of the model: a part is called with that module and with its arguments.

New parts are in float32 also beside a model in half precision, to which they give their results in its own.
Shapes: b = batch, s = tokens, d = width, k = bottleneck, c = classes.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import ResNetConfig, ResNetModel


class Part(nn.Module):
    """A trained part. `forward(base_layer, *args, **kwargs)` answers in the place of `base_layer(*args, **kwargs)`.

    In state dicts its tensors are named by one word, `down/weight` for `down.weight`: PEFT before 0.21 finds the adapter's
    name only in front of the last word of a key.
    """

    def __init__(self):
        super().__init__()
        self.register_state_dict_post_hook(_join_names)
        self.register_load_state_dict_pre_hook(_split_names)

    def merged(self, base_layer: nn.Module) -> nn.Module:
        """A module without PEFT that computes the same.

        Raises:
            ValueError: there is none among the model's own modules.
        """
        raise ValueError(
            f"{type(self).__name__} is a module of its own and cannot be merged into the base model's weights. Use "
            "unload() for the base model without it, or keep the adapter and call save_pretrained()."
        )


class Copy(Part):
    """A copy of the module, trained in its place and in its precision."""

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.module = deepcopy(base_layer)

    def forward(self, base_layer: nn.Module, *args, **kwargs):
        """The copy's answer."""
        return self.module(*args, **kwargs)

    def merged(self, base_layer: nn.Module) -> nn.Module:
        """The copy."""
        return self.module


class Bias(Part):
    """Another bias for a module that has one; starts from the module's."""

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.bias = nn.Parameter(base_layer.bias.detach().clone())

    def forward(self, base_layer: nn.Module, *args, **kwargs) -> Tensor:
        """The module's own computation with this bias."""
        return functional_call(base_layer, {"bias": self.bias.to(base_layer.bias.dtype)}, args, kwargs)

    def merged(self, base_layer: nn.Module) -> nn.Module:
        """The module, with this bias."""
        base_layer.bias.data = self.bias.detach().to(base_layer.bias.dtype, copy=True)
        return base_layer


class Bottleneck(Part):
    """x + up(GELU(down(x))) on the output x [b, s, d] of a linear layer.

    Source: KMnP/vpt `src/models/vit_adapter/adapter_block.py`, style "Pfeiffer".

    Raises:
        ValueError: the bottleneck would have no unit.
    """

    def __init__(self, base_layer: nn.Linear, reduction_factor: int, init_weights: str):
        super().__init__()
        width = base_layer.out_features
        if width < reduction_factor:
            raise ValueError(
                f"Expected reduction_factor <= {width}, the width of the model. "
                f"Received: reduction_factor={reduction_factor}."
            )
        factory = {"dtype": base_layer.weight.dtype, "device": base_layer.weight.device}
        self.down = nn.Linear(width, width // reduction_factor, **factory)
        self.up = nn.Linear(width // reduction_factor, width, **factory)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)
        if init_weights == "zero":
            nn.init.zeros_(self.down.weight)

    def forward(self, base_layer: nn.Module, *args, **kwargs) -> Tensor:
        """[b, s, d]."""
        hidden = base_layer(*args, **kwargs)
        change = self.up(nn.functional.gelu(self.down(hidden.to(self.down.weight.dtype))))
        return hidden + change.to(hidden.dtype)


class MLPHead(Part):
    """Linear - BatchNorm - ReLU - Dropout, `num_layers` - 1 times, then the layer to the classes.

    Source: KMnP/vpt `src/models/mlp.py`; the last layer starts as theirs (kaiming fan-out).
    """

    def __init__(self, base_layer: nn.Linear, num_layers: int, dropout: float):
        super().__init__()
        width = base_layer.in_features
        factory = {"dtype": full_precision(base_layer.weight.dtype), "device": base_layer.weight.device}
        layers = []
        for _ in range(num_layers - 1):
            layers += [nn.Linear(width, width, **factory), nn.BatchNorm1d(width, **factory)]
            layers += [nn.ReLU(), nn.Dropout(dropout)]
        last = nn.Linear(width, base_layer.out_features, **factory)
        nn.init.kaiming_normal_(last.weight, a=0, mode="fan_out")
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, base_layer: nn.Module, features: Tensor) -> Tensor:
        """Features [b, d] -> logits [b, c]; the base model's head is not used."""
        return self.layers(features.to(self.layers[-1].weight.dtype)).to(features.dtype)

    def merged(self, base_layer: nn.Module) -> nn.Module:
        """The perceptron itself."""
        return self.layers.to(base_layer.weight.dtype)


class SideNetwork(Part):
    """sigmoid(alpha) * frozen feature + (1 - sigmoid(alpha)) * projected feature of a small convolutional network.

    Every token (and the pooled output, where there is one) is blended with the same side feature. What a classifier reads
    out, one token or a mean of tokens, is then the blend of its feature. Source: KMnP/vpt `src/models/vit_models.py`;
    alpha starts at 0.
    """

    def __init__(self, base_layer: nn.Module, side_widths: list[int]):
        super().__init__()
        config, weight = base_layer.config, next(base_layer.parameters())
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
            self.to(device=weight.device)

    def forward(self, base_layer: nn.Module, pixel_values: Tensor, *args, **kwargs):
        """The encoder's output, every token blended with the side feature."""
        output = base_layer(pixel_values, *args, **kwargs)
        side = self.projection(self.network(pixel_values.to(self.alpha.dtype)).pooler_output.flatten(1))
        side, share = (part.to(output.last_hidden_state.dtype) for part in (side, self.alpha.sigmoid()))
        output.last_hidden_state = share * output.last_hidden_state + (1 - share) * side[:, None]
        if getattr(output, "pooler_output", None) is not None:
            output.pooler_output = share * output.pooler_output + (1 - share) * side
        return output


def full_precision(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precisions, in which batch normalisation would keep its running statistics too."""
    return torch.promote_types(dtype, torch.float32)


def _join_names(part: Part, state_dict: dict[str, Tensor], prefix: str, metadata: dict) -> None:
    _rename(state_dict, prefix, ".", "/")


def _split_names(part: Part, state_dict: dict[str, Tensor], prefix: str, *rest) -> None:
    _rename(state_dict, prefix, "/", ".")


def _rename(state_dict: dict[str, Tensor], prefix: str, old: str, new: str) -> None:
    for key in [key for key in state_dict if key.startswith(prefix)]:
        state_dict[prefix + key.removeprefix(prefix).replace(old, new)] = state_dict.pop(key)
