"""Hugging Face models of our own, where transformers has none. Importing this registers them with the Auto classes."""

from .resnet_clip import ResNetCLIPConfig, ResNetCLIPModel, ResNetCLIPVisionConfig, ResNetCLIPVisionModel


__all__ = ["ResNetCLIPConfig", "ResNetCLIPModel", "ResNetCLIPVisionConfig", "ResNetCLIPVisionModel"]
