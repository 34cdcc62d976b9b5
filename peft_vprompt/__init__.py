"""Prompt learning for vision and vision-language transformers as a Hugging Face PEFT extension.

Importing the package is all it takes: `peft.get_peft_model`, `peft.PeftModel.from_pretrained` and the rest then know
its methods.

Shape legend used throughout: b = batch, c = classes, s = rows (tokens) of a sequence, n = prompts of one layer,
j = prompted layers, d = width of a tower.
"""

from .peft_models.auto import AutoPeftModelForImageClassification
from .peft_models.peft_model import PeftModelForImageClassification
from .tuners.base.config import PromptConfig
from .tuners.class_head import ClassHeadConfig, ClassHeadModel, TextEncoderConfig, TextEncoderModel
from .tuners.cocoop import CoCoOpConfig, CoCoOpModel
from .tuners.coop import ContextOptConfig, ContextOptModel
from .tuners.fine_tuning import (
    BiasTuningConfig,
    BottleneckAdapterConfig,
    FineTuningConfig,
    MLPHeadConfig,
    SideTuningConfig,
)
from .tuners.maple import MaPLeConfig, MaPLeModel
from .tuners.rpo import MRPOConfig, MRPOModel, ReadOnlyPromptConfig, ReadOnlyPromptModel
from .tuners.vpt import VisualPromptConfig, VisualPromptModel
from .version import __version__


__all__ = [
    "AutoPeftModelForImageClassification",
    "BiasTuningConfig",
    "BottleneckAdapterConfig",
    "ClassHeadConfig",
    "ClassHeadModel",
    "CoCoOpConfig",
    "CoCoOpModel",
    "ContextOptConfig",
    "ContextOptModel",
    "FineTuningConfig",
    "MLPHeadConfig",
    "MRPOConfig",
    "MRPOModel",
    "MaPLeConfig",
    "MaPLeModel",
    "PeftModelForImageClassification",
    "PromptConfig",
    "ReadOnlyPromptConfig",
    "ReadOnlyPromptModel",
    "SideTuningConfig",
    "TextEncoderConfig",
    "TextEncoderModel",
    "VisualPromptConfig",
    "VisualPromptModel",
    "__version__",
]
