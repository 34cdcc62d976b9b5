"""The other ways to transfer a vision model that visual prompts are compared with, where PEFT has none of its own."""

from ...registry import register_transfer
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

register_transfer("bias_tuning", BiasTuningConfig, BiasTuningModel)
register_transfer("bottleneck_adapter", BottleneckAdapterConfig, BottleneckAdapterModel)
register_transfer("fine_tuning", FineTuningConfig, FineTuningModel)
register_transfer("mlp_head", MLPHeadConfig, MLPHeadModel)
register_transfer("side_tuning", SideTuningConfig, SideTuningModel)
