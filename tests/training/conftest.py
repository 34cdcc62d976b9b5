"""What several tests of training build."""

import pytest
import torch
from peft import get_peft_model
from transformers import ViTConfig, ViTForImageClassification

from peft_vprompt import VisualPromptConfig


@pytest.fixture
def build():
    """Make a tiny ViT with visual prompts and dropout, the same each time: images of 16 pixels, 3 classes."""

    def make(dtype=torch.float32):
        torch.manual_seed(0)
        config = ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=16,
            patch_size=8,
            num_labels=3,
        )
        base = ViTForImageClassification(config).to(dtype)
        return get_peft_model(base, VisualPromptConfig(num_virtual_tokens=2, deep=True, prompt_dropout=0.1))

    return make
