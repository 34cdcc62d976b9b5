"""CLIP-LoRA: PEFT's LoRA under the class-name classifier.

Paper: Zanella and Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language Models", CVPR 2024 Workshops, section 3; code:
MaxZanella/CLIP-LoRA, commit 358f0d7.

Deviations. With `dropout_rate` 0 the authors' code takes the product of the low-rank factors out of the weight before the
backward pass, so that earlier layers get gradients of the frozen weight; gradients here are exact for any dropout. Class
prompts share their prefix, so one mask of dropout serves the prefix of all classes.
"""

from __future__ import annotations

import copy
import re
from typing import Any

from peft import LoraModel, PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ...backbones.supported import find_backbone
from ...core.offloading import computing_device
from ...errors import UnsupportedModelError
from ..base.base_model import check_model, trainable
from ..base.bounded import bounded
from ..base.method import PromptMethod
from ..base.patterns import targets_named
from .config import CLIPLoraConfig


#: What transformers calls the projections to queries, keys and values.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "query", "key", "value")


class CLIPLora(PromptMethod):
    """No prompts: the layers of the towers are PEFT's."""

    without_image_layers = "towers='text'"

    def needs_image_layers(self, config: CLIPLoraConfig | None) -> bool:
        """Return whether projections of the image tower are adapted; those that `target_modules` names are the caller's."""
        return config is None or (config.target_modules is None and config.towers != "text")

    def scale(self, config: CLIPLoraConfig) -> float | None:
        """Return 100, as the authors have it, or what the config says."""
        return config.logit_scale


class CLIPLoraModel(LoraModel):
    """PEFT's LoRA, which finds its modules in the towers."""

    peft_name = "clip_lora"
    prefix: str = "lora_"
    method = CLIPLora()

    def __init__(self, model: nn.Module, peft_config: PeftConfig | dict[str, PeftConfig], adapter_name: str, **kwargs):
        layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        carried = {name for layer in layers for name in layer._all_available_adapter_names()}
        configs = getattr(model, "peft_config", {})
        if not all(isinstance(configs.get(name), CLIPLoraConfig) for name in carried):
            raise ValueError(
                "Expected a base model without adapters of other methods, with which this LoRA would be mixed. Take them "
                "out with unload(), or put them into the weights with merge_and_unload(), on the PEFT model that holds them."
            )
        self._was_trainable = trainable(model)
        super().__init__(model, peft_config, adapter_name, **kwargs)

    def _unload_and_optionally_merge(self, *args, **kwargs) -> nn.Module:
        """Return the base model, and let learn in it what did before: PEFT's own would leave it frozen."""
        model: Any = super()._unload_and_optionally_merge(*args, **kwargs)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = self._was_trainable.get(name, parameter.requires_grad)
        return model

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args, **kwargs) -> None:
        """Put one adapter's layers into the towers.

        Raises:
            UnsupportedModelError: the model has no text tower, or its weights are offloaded.
            ValueError: modules to save that are not there, or a rank that makes more numbers than the model has.
        """
        config: Any = copy.copy(self.peft_config[adapter_name])  # targets are noted in it, and not in the caller's
        self.peft_config[adapter_name] = config
        check_model(config, model, find_backbone(model))
        weights = ((module, weight) for module in model.modules() for weight in module.parameters(recurse=False))
        if any(weight.is_meta and computing_device(module, weight).type != "meta" for module, weight in weights):
            raise UnsupportedModelError(
                "Expected a base model whose weights are in memory. Received one whose weights are offloaded: PEFT makes a "
                "LoRA where they are, so it would have no values. Load the model whole, without offloading."
            )
        with bounded(config, model), targets_named(config):
            super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _prepare_adapter_config(self, peft_config: CLIPLoraConfig, model_config: dict) -> CLIPLoraConfig:
        """Name the projections of the towers, where no modules are named; those of some layers, where layers are."""
        if peft_config.target_modules is None:
            backbone = find_backbone(self.model)
            towers = {"text": backbone.text, "vision": backbone.vision}
            chosen = [
                re.escape(name) for tower, name in towers.items() if name and peft_config.towers in ("both", tower)
            ]
            inside = _in_layers(peft_config.layers_to_transform, peft_config.layers_pattern)
            peft_config.target_modules = rf"({'|'.join(chosen)})\.{inside}.*\.({'|'.join(PROJECTIONS)})"
            peft_config.layers_to_transform = peft_config.layers_pattern = None  # PEFT takes none beside an expression
        return peft_config


def _in_layers(layers: list[int] | int | None, pattern: list[str] | str | None) -> str:
    """Return the expression that names of modules in some layers go on with, the empty one for all layers.

    As PEFT has it, the first number in a name is its layer's, or the one behind one of the names in `pattern`.
    """
    numbers = [layers] if isinstance(layers, int) else layers
    if not numbers:
        return ""
    names = [pattern] if isinstance(pattern, str) else pattern
    before = rf".*(?<=\.)(?:{'|'.join(names)})\." if names else r"\D*(?<=\.)"
    return rf"{before}(?:{'|'.join(map(str, numbers))})\."
