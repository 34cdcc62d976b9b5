"""A tiny model of every supported class, built in memory from its config, and inputs for it.

Two layers, every parameter moved away from its start (many biases, positions and layer scales start at zero or one).
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

from peft_vprompt import models
from peft_vprompt.backbones.supported import DUAL_ENCODERS, ENCODERS, HEADS, OPAQUE
from tests.support.models import IMAGE_SIZE, NUM_LABELS, TEXT, VOCABULARY_SIZE, images, remembered, tiny_tokenizer


VISION = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
}

#: What a model needs beside the common sizes, so that its own parts are there to be tested.
OPTIONS = {
    "BeitModel": {"use_relative_position_bias": True},
    "BeitForImageClassification": {"use_shared_relative_position_bias": True, "use_relative_position_bias": True},
    "Data2VecVisionModel": {"use_shared_relative_position_bias": True},
    "Data2VecVisionForImageClassification": {"use_relative_position_bias": True, "use_mean_pooling": True},
    "Dinov2WithRegistersModel": {"num_register_tokens": 3},
    "DINOv3ViTModel": {"num_register_tokens": 2},
    "PixioModel": {"n_cls_tokens": 2, "mlp_ratio": 2},
    "RadioModel": {"num_registers": 2, "mlp_ratio": 2.0, "max_img_size": 64},
}

#: In the place of the common sizes: two stages of one block each.
SWIN = {
    "embed_dim": 24,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
}


def find_class(name: str) -> type | None:
    """The class of models of a name, of transformers or ours; None where this release of transformers lacks it."""
    return getattr(transformers, name, None) or getattr(models, name, None)


#: Supported models without a text tower. A class that this release of transformers lacks is left out.
VISION_MODELS = [name for name in (*ENCODERS, *HEADS) if hasattr(transformers, name) and name not in OPAQUE]
#: Those whose layers are all alike; `test_swin` has what differs in the others.
FLAT_MODELS = [name for name in VISION_MODELS if not name.startswith("Swin")]

#: In the place of the common sizes: four stages of one block each, and heads of 16 numbers.
RESNET_CLIP = {"depths": [1, 1, 1, 1], "embedding_size": 4, "image_size": IMAGE_SIZE, "attention_head_size": 16}

#: Likewise: an EfficientNet of two blocks.
ALIGN = {
    "image_size": IMAGE_SIZE,
    "in_channels": [32, 16],
    "out_channels": [16, 64],
    "kernel_sizes": [3, 3],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 2],
    "depthwise_padding": [],
    "width_coefficient": 0.25,
    "depth_coefficient": 1.0,
    "depth_divisor": 4,
    "hidden_dim": 16,
    "drop_connect_rate": 0.0,
}

#: Likewise: group tokens that gather patches in two stages.
GROUPVIT = {"depths": [1, 1], "num_group_tokens": [4, 2], "num_output_groups": [4, 2]}

#: Likewise: a ConvNet of two stages.
CONVNEXT = {"hidden_sizes": [8, 16], "depths": [1, 1], "image_size": IMAGE_SIZE}

#: Models with both towers, whose image towers take prompts.
DUAL_MODELS = [name for name in DUAL_ENCODERS if hasattr(transformers, name) and name not in OPAQUE]
#: Those whose image towers take none.
OPAQUE_MODELS = [name for name in OPAQUE if name in DUAL_ENCODERS and find_class(name)]
#: Image encoders by themselves, without layers that take prompts.
OPAQUE_ENCODERS = [name for name in OPAQUE if name not in DUAL_ENCODERS and hasattr(transformers, name)]


def frame(name: str) -> str:
    """The kind of tokenizer that a model has, see `models.FRAMES`."""
    starts = {"Siglip": "siglip", "Chinese": "bert", "Alt": "roberta", "MetaClip2": "roberta"}
    for start, kind in (starts | {"VisionText": "bert", "Align": "bert", "Tipsv2": "tips"}).items():
        if name.startswith(start):
            return kind
    return "clip"


@remembered
def tiny(name: str, seed: int = 0, **options) -> nn.Module:
    """A tiny model of the class `name`."""
    torch.manual_seed(seed)
    if name == "OpaqueCLIPModel":
        config = models.OpaqueCLIPConfig(text_sizes(name), projection_dim=16)
        return shake(models.OpaqueCLIPModel(config, convolutions(), IMAGE_SIZE).eval())
    model_class: Any = find_class(name)
    config_class = model_class.config_class
    options = OPTIONS.get(name, {}) | options
    implementation = options.pop("attn_implementation", None)
    vision = dict(SWIN if name.startswith("Swin") else VISION)
    if name == "ResNetCLIPModel":
        vision = RESNET_CLIP | {"projection_dim": 16}
    if name.startswith("Siglip2"):
        del vision["image_size"]
        vision["num_patches"] = 16
    if name == "AlignModel":
        vision = ALIGN
    if name == "GroupViTModel":
        vision |= GROUPVIT
    if "ConvNext" in name:
        vision = CONVNEXT if name.startswith("DINOv3") else CONVNEXT | {"num_stages": 2}
    if name == "VisionTextDualEncoderModel":
        parts = {
            "vision_config": {"model_type": "vit"} | vision,
            "text_config": {"model_type": "bert"} | text_sizes(name),
        }
        config = config_class(**parts, projection_dim=16, **options)
    elif "vision_config" in getattr(config_class, "sub_configs", {}):
        config = config_class(
            text_config=text_sizes(name), vision_config=vision, num_labels=NUM_LABELS, projection_dim=16, **options
        )
    else:
        config = config_class(**vision, num_labels=NUM_LABELS, projection_dim=16, **options)
    return shake(model_class._from_config(config, attn_implementation=implementation).eval())


def convolutions() -> nn.Module:
    """An image encoder of no library: a vector [b, 16] of images of any size."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 16),
    )


def text_sizes(name: str) -> dict:
    """Sizes of a tiny text tower, and its special tokens."""
    tokenizer = tiny_tokenizer(frame(name))
    text = TEXT | {"vocab_size": VOCABULARY_SIZE, "num_hidden_layers": 2, "pad_token_id": tokenizer.pad_token_id}
    text |= {"bos_token_id": VOCABULARY_SIZE - 2, "eos_token_id": VOCABULARY_SIZE - 1}
    if name.startswith("Siglip"):
        text |= {"projection_size": VISION["hidden_size"], "max_position_embeddings": 64}
    if name.startswith("Tipsv2"):  # one width for both towers
        text |= {"hidden_size": VISION["hidden_size"], "max_position_embeddings": 64}
    if name.startswith("Alt"):
        text |= {"project_dim": 20, "max_position_embeddings": 120}
    return text


@torch.no_grad()
def shake(model: nn.Module | torch.Tensor, seed: int = 7) -> nn.Module:
    """Add noise to every parameter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters() if isinstance(model, nn.Module) else [model]:
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def inputs(name: str, count: int = 4) -> dict[str, torch.Tensor]:
    """Images as the class `name` takes them; SigLIP 2's differ in shape and are padded."""
    pixels = images(count)
    if not name.startswith("Siglip2"):
        return {"pixel_values": pixels}
    shapes = torch.tensor([[4, 4], [2, 7], [3, 4], [5, 3]])[:count]
    patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    mask = torch.arange(16) < shapes.prod(1, keepdim=True)
    return {"pixel_values": patches, "pixel_attention_mask": mask.int(), "spatial_shapes": shapes}
