"""The other ways to transfer a vision model that visual prompts are compared with, where PEFT has none of its own."""

from ..base.registry import Method, register_transfer
from .config import (
    BiasTuningConfig,
    BottleneckAdapterConfig,
    FineTuningConfig,
    MLPHeadConfig,
    SideTuningConfig,
    TransferConfig,
)
from .model import BiasTuningModel, BottleneckAdapterModel, FineTuningModel, MLPHeadModel, SideTuningModel


__all__ = [
    "BiasTuningConfig",
    "BiasTuningModel",
    "BottleneckAdapterConfig",
    "BottleneckAdapterModel",
    "FineTuningConfig",
    "FineTuningModel",
    "MLPHeadConfig",
    "MLPHeadModel",
    "SideTuningConfig",
    "SideTuningModel",
    "TransferConfig",
]

VPT_BASELINES = "a baseline of Jia et al., Visual Prompt Tuning, ECCV 2022"

for name, title, paper, learns, config_class, model_class in (
    (
        "bias_tuning",
        "Bias tuning",
        f"Ben Zaken et al., BitFit, ACL 2022; {VPT_BASELINES}",
        "every bias and the head",
        BiasTuningConfig,
        BiasTuningModel,
    ),
    (
        "bottleneck_adapter",
        "Pfeiffer",
        f"Pfeiffer et al., AdapterFusion, EACL 2021; {VPT_BASELINES}",
        "a bottleneck after every feed-forward part and the head",
        BottleneckAdapterConfig,
        BottleneckAdapterModel,
    ),
    (
        "fine_tuning",
        "Fine-tuning",
        f"Full, partial or linear: {VPT_BASELINES}",
        "copies of whole modules",
        FineTuningConfig,
        FineTuningModel,
    ),
    (
        "mlp_head",
        "MLP head",
        f"Mlp-k: {VPT_BASELINES}",
        "a perceptron in the place of the head",
        MLPHeadConfig,
        MLPHeadModel,
    ),
    (
        "side_tuning",
        "Side tuning",
        f"Zhang et al., Side-Tuning, ECCV 2020; {VPT_BASELINES}",
        "a small network beside the encoder and the head",
        SideTuningConfig,
        SideTuningModel,
    ),
):
    register_transfer(Method(name, title, paper, learns, config_class, model_class))
