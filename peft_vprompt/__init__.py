"""Prompt learning for vision and vision-language transformers as a Hugging Face PEFT extension.

Importing the package is all it takes: `peft.get_peft_model`, `peft.PeftModel.from_pretrained` and the rest then know
its methods.

Shape legend used throughout: b = batch, c = classes, s = rows (tokens) of a sequence, n = prompts of one layer,
j = prompted layers, d = width of a tower.
"""

from . import models, tuners  # noqa: F401 - registers our models, and fills the method table
from .peft_models import late_patches  # noqa: F401 - what the Trainer and pipelines do with our models
from .peft_models.auto import AutoPeftModelForImageClassification
from .peft_models.peft_model import PeftModelForImageClassification
from .tuners.base.config import PromptConfig
from .tuners.bias_tuning import BiasTuningConfig
from .tuners.bottleneck_adapter import BottleneckAdapterConfig
from .tuners.clap import CLAPConfig, CLAPModel
from .tuners.class_head import ClassHeadConfig, ClassHeadModel
from .tuners.clip_lora import CLIPLoraConfig, CLIPLoraModel
from .tuners.cocoop import CoCoOpConfig, CoCoOpModel
from .tuners.coop import ContextOptConfig, ContextOptModel, CoOpConfig
from .tuners.fine_tuning import FineTuningConfig
from .tuners.kgcoop import KgCoOpConfig, KgCoOpModel
from .tuners.ln_tuning import NormTuningConfig, NormTuningModel
from .tuners.maple import MaPLeConfig, MaPLeModel
from .tuners.mlp_head import MLPHeadConfig
from .tuners.mmrl import MMRLConfig, MMRLModel
from .tuners.mrpo import MRPOConfig, MRPOModel
from .tuners.prograd import ProGradConfig, ProGradModel
from .tuners.promptkd import PromptKDConfig, PromptKDModel
from .tuners.promptsrc import PromptSRCConfig, PromptSRCModel
from .tuners.rpo import ReadOnlyPromptConfig, ReadOnlyPromptModel, RPOConfig
from .tuners.side_tuning import SideTuningConfig
from .tuners.tcp import TCPConfig, TCPModel
from .tuners.text_encoder import TextEncoderConfig, TextEncoderModel
from .tuners.tip_adapter import TipAdapterConfig, TipAdapterModel
from .tuners.two_stage import TwoStageConfig, TwoStageModel
from .tuners.vpt import VisualPromptConfig, VisualPromptModel, VPTConfig
from .version import __version__


__all__ = [
    "AutoPeftModelForImageClassification",
    "BiasTuningConfig",
    "BottleneckAdapterConfig",
    "CLAPConfig",
    "CLAPModel",
    "CLIPLoraConfig",
    "CLIPLoraModel",
    "ClassHeadConfig",
    "ClassHeadModel",
    "CoCoOpConfig",
    "CoCoOpModel",
    "CoOpConfig",
    "ContextOptConfig",
    "ContextOptModel",
    "FineTuningConfig",
    "KgCoOpConfig",
    "KgCoOpModel",
    "MLPHeadConfig",
    "MMRLConfig",
    "MMRLModel",
    "MRPOConfig",
    "MRPOModel",
    "MaPLeConfig",
    "MaPLeModel",
    "NormTuningConfig",
    "NormTuningModel",
    "PeftModelForImageClassification",
    "ProGradConfig",
    "ProGradModel",
    "PromptConfig",
    "PromptKDConfig",
    "PromptKDModel",
    "PromptSRCConfig",
    "PromptSRCModel",
    "RPOConfig",
    "ReadOnlyPromptConfig",
    "ReadOnlyPromptModel",
    "SideTuningConfig",
    "TCPConfig",
    "TCPModel",
    "TextEncoderConfig",
    "TextEncoderModel",
    "TipAdapterConfig",
    "TipAdapterModel",
    "TwoStageConfig",
    "TwoStageModel",
    "VPTConfig",
    "VisualPromptConfig",
    "VisualPromptModel",
    "__version__",
]
