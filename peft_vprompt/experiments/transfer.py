"""The ways to transfer an image classifier that VPT is compared with, each as the PEFT config it comes down to.

LoRA is PEFT's; heads are trained as the copies that PEFT's `modules_to_save` makes; `tuners/transfer` has what PEFT
has no part for.

Paper: Jia et al., "Visual Prompt Tuning", ECCV 2022, section 4.1 and appendix A.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from peft import LoraConfig, PeftConfig
from transformers import PreTrainedModel

from ..tuners.fine_tuning import (
    BiasTuningConfig,
    BottleneckAdapterConfig,
    FineTuningConfig,
    MLPHeadConfig,
    SideTuningConfig,
)
from ..tuners.fine_tuning.classifier_parts import ClassifierParts
from ..tuners.vpt import VisualPromptConfig


def lora_config(model: PreTrainedModel, **options) -> PeftConfig:
    """LoRA by PEFT on the query and value projections, with the head; not in the paper. `options`: PEFT's fields."""
    parts = ClassifierParts(model)
    return LoraConfig(**{"target_modules": parts.queries_and_values(), "modules_to_save": [parts.head]} | options)


@dataclass(frozen=True)
class Transfer:
    """A row of `TRANSFERS`.

    Attributes:
        title: the name as the paper writes it.
        configure: PEFT config for a model, from options by name.
        options: options that make it this row.
    """

    title: str
    configure: Callable[..., PeftConfig]
    options: dict = field(default_factory=dict)

    def config(self, model: PreTrainedModel, **options) -> PeftConfig:
        """The PEFT config for an image classifier; `options` replace this row's."""
        return self.configure(model, **self.options | options)


def _own(config_class: type[PeftConfig]) -> Callable[..., PeftConfig]:
    """These find their places in the model by themselves."""

    def configure(model: PreTrainedModel, **options) -> PeftConfig:
        return config_class(**options)

    return configure


#: Every way to transfer an image classifier, by its name on the command line. Any other k is allowed: `find_transfer`.
TRANSFERS: dict[str, Transfer] = {
    "full": Transfer("Full", _own(FineTuningConfig)),
    "linear": Transfer("Linear", _own(FineTuningConfig), {"num_layers": 0}),
    "mlp-3": Transfer("Mlp-3", _own(MLPHeadConfig), {"num_layers": 3}),
    "partial-1": Transfer("Partial-1", _own(FineTuningConfig), {"num_layers": 1}),
    "bias": Transfer("Bias", _own(BiasTuningConfig)),
    "adapter": Transfer("Adapter", _own(BottleneckAdapterConfig)),
    "sidetune": Transfer("Sidetune", _own(SideTuningConfig)),
    "lora": Transfer("LoRA", lora_config, {"r": 8}),
    "vpt-shallow": Transfer("VPT-shallow", _own(VisualPromptConfig), {"num_virtual_tokens": 10}),
    "vpt-deep": Transfer("VPT-deep", _own(VisualPromptConfig), {"num_virtual_tokens": 10, "deep": True}),
}


def find_transfer(name: str) -> Transfer | None:
    """A row of `TRANSFERS`, or mlp-k and partial-k for any k; None if there is none of that name."""
    if name in TRANSFERS or not (match := re.fullmatch(r"(mlp|partial)-([1-9]\d*)", name)):
        return TRANSFERS.get(name)
    row = TRANSFERS["mlp-3" if match[1] == "mlp" else "partial-1"]
    return Transfer(name.capitalize(), row.configure, {"num_layers": int(match[2])})
