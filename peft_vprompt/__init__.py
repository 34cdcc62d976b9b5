"""Prompt learning for vision and vision-language transformers as a Hugging Face PEFT extension.

Importing the package is all it takes: `peft.get_peft_model`, `peft.PeftModel.from_pretrained` and the rest then know
its methods.

Shape legend used throughout: b = batch, c = classes, s = rows (tokens) of a sequence, n = prompts of one layer,
j = prompted layers, d = width of a tower.
"""

from .auto import AutoPeftModelForImageClassification
from .config import PromptConfig
from .peft_model import PeftModelForImageClassification
from .tuners.baselines import ClassHeadConfig, ClassHeadModel, TextEncoderConfig, TextEncoderModel
from .tuners.cocoop import CoCoOpConfig, CoCoOpModel
from .tuners.context_opt import ContextOptConfig, ContextOptModel
from .tuners.maple import MaPLeConfig, MaPLeModel
from .tuners.read_only import MRPOConfig, MRPOModel, ReadOnlyPromptConfig, ReadOnlyPromptModel
from .tuners.transfer import (
    BiasTuningConfig,
    BottleneckAdapterConfig,
    FineTuningConfig,
    MLPHeadConfig,
    SideTuningConfig,
)
from .tuners.visual_prompt import VisualPromptConfig, VisualPromptModel
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
