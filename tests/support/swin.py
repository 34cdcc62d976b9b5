"""Tiny Swins, and what was learned on one."""

import torch
from transformers import SwinConfig, SwinForImageClassification, Swinv2Config, Swinv2ForImageClassification

from tests.support.models import NUM_LABELS


SIZES = {"embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "patch_size": 2, "num_labels": NUM_LABELS}


def swin(version=1, seed=0, **config):
    """A tiny Swin whose every parameter has been moved from its start."""
    config = SIZES | {"window_size": 4, "image_size": 32} | config
    torch.manual_seed(seed)
    if version == 1:
        model = SwinForImageClassification(SwinConfig(**config))
    else:
        model = Swinv2ForImageClassification(Swinv2Config(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model.eval()


def learned(model):
    middle = "visual_prompt_learner.default."
    return {name.split(middle)[1]: p for name, p in model.named_parameters() if middle in name}
