"""CLIP with a ResNet as its image encoder: RN50, RN101, RN50x4, RN50x16, RN50x64, and any other sizes."""

from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification

from .configuration import ResNetCLIPConfig, ResNetCLIPVisionConfig
from .modeling import ResNetCLIPModel, ResNetCLIPVisionModel


for _config, _model in ((ResNetCLIPVisionConfig, ResNetCLIPVisionModel), (ResNetCLIPConfig, ResNetCLIPModel)):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
AutoModelForZeroShotImageClassification.register(ResNetCLIPConfig, ResNetCLIPModel, exist_ok=True)

__all__ = ["ResNetCLIPConfig", "ResNetCLIPModel", "ResNetCLIPVisionConfig", "ResNetCLIPVisionModel"]
