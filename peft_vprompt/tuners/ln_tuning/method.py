"""Tuning of the norms in the layers of both towers.

Paper: Farina et al., "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages", CVPR 2025, section 4; code:
FarinaMatteo/rethinking_fewshot_vlms, commit 64ac143. The norms outside the layers (`ln_pre`, `ln_post`, `ln_final`) stay
frozen: the authors put them into the optimizer, and their code then freezes them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ...backbones.base import EncoderView
from ...backbones.text import TextView
from ...backbones.vision import VisionView
from ...errors import UnsupportedModelError
from ..base.classifier_parts import own_modules, plain
from ..base.method import PromptMethod
from ..base.tuner import PromptTuner
from .config import NormTuningConfig


class NormTuning(PromptMethod):
    """No prompts: copies of the norms are trained."""

    without_image_layers = "towers='text'"

    def needs_image_layers(self, config: NormTuningConfig | None) -> bool:
        """Return whether norms of the image tower are trained."""
        return config is None or config.towers != "text"

    def check(self, config: NormTuningConfig, vision: VisionView, text: TextView) -> None:
        """Refuse a first layer that is not there, and a tower that another adapter trains whole.

        Raises:
            ValueError: names the field, or the remedy.
        """
        for tower, view in (("text", text), ("vision", vision)):
            if config.towers not in ("both", tower):
                continue
            field = f"{tower}_first_layer"
            modules = own_modules(view.module).values()
            if not any(layer is module for layer in view.layers for module in modules):
                raise ValueError(
                    "Another adapter of this model trains a copy of the whole encoder, in which these norms are. Put the "
                    "two adapters on models of their own."
                )
            if getattr(config, field) >= view.num_layers:
                raise ValueError(
                    f"Expected {field} < {view.num_layers}, the layers of the tower. "
                    f"Received: {field}={getattr(config, field)}."
                )

    def trained_modules(self, config: NormTuningConfig, view: EncoderView) -> Sequence[str]:
        """Return the norms inside the layers, from the first one on that the config names.

        Raises:
            UnsupportedModelError: there are none.
        """
        tower = "text" if isinstance(view, TextView) else "vision"
        if config.towers not in ("both", tower):
            return ()
        modules = own_modules(view.module)
        layers = view.layers[getattr(config, f"{tower}_first_layer") :]
        inside = tuple(f"{name}." for name, module in modules.items() if any(module is layer for layer in layers))
        norms = [name for name, module in modules.items() if name.startswith(inside) and is_norm(plain(module))]
        if not norms:
            raise UnsupportedModelError(
                f"Expected norms in the layers of {type(view.module).__name__}. Received layers with none that is known. Use "
                "another method, such as CLIP-LoRA."
            )
        return norms


def is_norm(module: nn.Module | None) -> bool:
    """Tell whether a module is a LayerNorm, or the RMSNorm that transformers writes for a model (AIMv2's)."""
    return isinstance(module, (nn.LayerNorm, nn.RMSNorm)) or type(module).__name__.endswith("RMSNorm")


class NormTuningModel(PromptTuner):
    """The norms' tuner."""

    peft_name = "norm_tuning"
    prefix = "norm_tuning_"
    method = NormTuning()
