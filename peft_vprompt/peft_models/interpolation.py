"""Weights between the frozen model's and an adapter's (WiSE-FT)."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.ln_tuning.layer import LNTuningLayer
from peft.tuners.lora import LoraConfig, LoraLayer
from peft.utils import set_peft_model_state_dict
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor

from ..backbones.supported import class_name
from ..tuners.base import registry
from ..tuners.base.classifier import ClassNameClassifier
from ..tuners.base.prompted_encoder import READOUT
from ..tuners.base.switching import require_unmerged
from .safe_saving import SavedPeftModel


WHAT_WORKS = (
    "It works for class heads (ClassHeadConfig, CLAPConfig), tuned encoders (TextEncoderConfig, NormTuningConfig, "
    "CLIPLoraConfig), and PEFT's LoRA and LayerNorm tuning on class names"
)


#: Starts of a LoRA that leave the base model's weights as they are, beside True and False.
KEEPS_BASE = ("gaussian", "eva", "orthogonal")


@torch.no_grad()
def interpolate(
    model: SavedPeftModel, classifier: ClassNameClassifier, share: float, adapter_name: str | None
) -> None:
    """Move the active adapter's weights, or those of a new one with its config, between the frozen model's and its own.

    Args:
        model: the PEFT model.
        classifier: its classifier.
        share: 0 for the frozen model, 1 for the adapter as trained.
        adapter_name: name of the new adapter; None to change the active one.

    Raises:
        ValueError: a share out of range, a name that is taken, or weights that have no counterpart in the frozen model.
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise ValueError(f"Expected a share from 0 (the frozen model) to 1 (as trained). Received: share={share!r}.")
    if adapter_name in model.peft_config:
        raise ValueError(
            f"Expected the name of a new adapter, or none to change the active one. Received: {adapter_name!r}, which this "
            "model has."
        )
    active = classifier.adapted.adapter_name
    require_unmerged(model, active)
    learned = model.adapter_state(active)
    frozen = frozen_state(classifier, active, learned)
    between = {
        key: torch.lerp(frozen[key].to(value), value, share) if value.is_floating_point() else value
        for key, value in learned.items()
    }
    if adapter_name is None:
        set_peft_model_state_dict(model, between, active)
    else:
        model.add_like(adapter_name, active, between)


def frozen_state(classifier: ClassNameClassifier, name: str, learned: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what stands for each tensor of an adapter in the frozen model.

    Raises:
        ValueError: one of them has no counterpart there.
    """
    _check_kind(classifier, name)
    model = classifier.model
    frozen: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and name in module.modules_to_save:
            frozen |= {f"{path}.{key}": value for key, value in module.original_module.state_dict().items()}
        elif (
            isinstance(module, LoraLayer) and name in module.lora_A and isinstance(model.peft_config[name], LoraConfig)
        ):
            # What is learned is a product of both: half of it is half of one of them.
            frozen[f"{path}.lora_A.weight"] = module.lora_A[name].weight
            frozen |= {f"{path}.lora_B.{key}": 0 * value for key, value in module.lora_B[name].state_dict().items()}
        elif isinstance(module, LNTuningLayer) and name in module.ln_tuning_layers:
            inner: Any = module.base_layer
            frozen |= {f"{path}.ln_tuning_layers.{key}": value for key, value in inner.state_dict().items()}
    text = classifier.adapted.text
    if registry.shares_model(model.peft_config[name].peft_type) and text is not None and text.module_of(name, READOUT):
        config = classifier.adapted.config_of(name)
        of_readout = classifier.adapted.method_of(name).frozen_readout(config, classifier.frozen_text_of(name))
        for key, value in of_readout.items():
            frozen |= {full: value for full in learned if full.endswith(f"{READOUT}.{key}")}
    peft_type: Any = model.peft_config[name].peft_type
    if left := [key for key in learned if key not in frozen]:
        raise ValueError(
            f"Expected an adapter whose weights have a counterpart in the frozen model. Received one of "
            f"{peft_type.value} with {left[0]}, which has none. {WHAT_WORKS}; for others average "
            "the logits of the model with the adapter and without it."
        )
    return frozen


def _check_kind(classifier: ClassNameClassifier, name: str) -> None:
    """Refuse what is not linear in its weights, or has lost the frozen ones."""
    model = classifier.model
    config: Any = model.peft_config[name]
    if classifier.adapted.backbone.dual is None:
        raise ValueError(
            "Expected a model that compares images with class names, whose frozen weights classify by themselves. Received: "
            f"{class_name(model.get_base_model())}, whose classification head is new. {WHAT_WORKS}."
        )
    start = getattr(config, "init_lora_weights", True)
    lost = {
        "use_dora": bool(getattr(config, "use_dora", False)),
        "bias": getattr(config, "bias", "none") != "none",
        "init_lora_weights": isinstance(start, str)
        and start not in KEEPS_BASE,  # others change the base model's weights
    }
    if refused := [f"{field}={getattr(config, field)!r}" for field, is_lost in lost.items() if is_lost]:
        raise ValueError(
            f"Expected a LoRA that is a sum of the frozen weights and a product. Received: {', '.join(refused)}. Average the "
            "logits of the model with the adapter and without it."
        )
