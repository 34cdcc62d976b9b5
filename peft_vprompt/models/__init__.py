"""Hugging Face models of our own, where transformers has none, and models in files of other libraries.

Importing this registers them with the Auto classes.
"""

from .opaque_clip import OpaqueCLIPConfig, OpaqueCLIPModel, OpaqueTower
from .open_clip import is_open_clip, load_open_clip
from .resnet_clip import ResNetCLIPConfig, ResNetCLIPModel, ResNetCLIPVisionConfig, ResNetCLIPVisionModel


__all__ = [
    "OpaqueCLIPConfig",
    "OpaqueCLIPModel",
    "OpaqueTower",
    "ResNetCLIPConfig",
    "ResNetCLIPModel",
    "ResNetCLIPVisionConfig",
    "ResNetCLIPVisionModel",
    "is_open_clip",
    "load_open_clip",
]
