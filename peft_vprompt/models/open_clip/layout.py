"""The tensors of openai/CLIP and open_clip by their names, as models of transformers: a ViT's is a `CLIPModel`, a ResNet's ours.

Whatever neither model has is refused by name.

Layouts: openai/CLIP `RN50.pt`, `ViT-B-32.pt` (scripted archives or state dicts), open_clip's `CLIP` and its `CustomTextCLIP`
(the text tower's names begin with "text.").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedModel

from ...errors import UnsupportedModelError
from ...utils.validation import shorten
from ..resnet_clip import ResNetCLIPConfig, ResNetCLIPModel
from .files import REMEDY


#: Entries of a state dict that are no weights of the model.
IGNORED = ("input_resolution", "context_length", "vocab_size", "attn_mask", "text.attn_mask")

#: Parts of a transformer's block: their names in these files, and in transformers.
BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
#: Other parts, likewise; the text tower's projection and a ViT's are transposed.
TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
VISION = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
TRANSPOSED = ("text_projection", "visual.proj")


def from_state_dict(
    state: Mapping[str, Tensor],
    quick_gelu: bool = True,
    text_head_size: int = 64,
    vision_head_size: int = 64,
    image_size: int | None = None,
) -> PreTrainedModel:
    """Make a model of tensors by their names in openai/CLIP or open_clip, in any of the three layouts.

    Args:
        state: the tensors.
        quick_gelu: the approximate GELU of openai/CLIP; else the exact one.
        text_head_size: numbers of each head of the text tower, which tensors do not tell.
        vision_head_size: likewise of the image tower or the attention pool.
        image_size: edge of the images, where a ViT's number of positions does not tell.

    Raises:
        UnsupportedModelError: tensors of parts that CLIP does not have, or some that it needs are missing.
    """
    tensors = _Named(state)
    names = tensors.names
    resnet = "visual.attnpool.c_proj.weight" in names
    activation = "quick_gelu" if quick_gelu else "gelu"
    with torch.device("meta"):
        if resnet:
            model: Any = ResNetCLIPModel(_resnet_config(tensors, activation, text_head_size, vision_head_size))
        else:
            model = CLIPModel(_vit_config(tensors, activation, text_head_size, vision_head_size, image_size))
    weights = _resnet(tensors) if resnet else {}
    weights |= _text(tensors)
    if not resnet:
        weights |= _transformer(tensors, "visual.transformer", "vision_model") | _single(tensors, VISION)
    if left := [name for name in names if name not in tensors.read and not name.endswith("num_batches_tracked")]:
        raise UnsupportedModelError(
            f"Expected the parts of a CLIP with a ViT or a ResNet. Received others: {shorten(left, 4)}. {REMEDY}."
        )
    needed = {name: value.shape for name, value in model.named_parameters()}
    needed |= {name: value.shape for name, value in model.named_buffers() if "running_" in name}
    wrong = [name for name in needed if name not in weights or weights[name].shape != needed[name]]
    if wrong:
        raise UnsupportedModelError(
            f"Expected the tensors of a {type(model).__name__}. Received none, or of another shape: {shorten(wrong, 4)}. {REMEDY}."
        )
    model = type(model)(model.config)
    model.load_state_dict(weights, strict=False)
    return model.eval()


def text_tensors(state: Mapping[str, Tensor]) -> tuple[_Named, dict[str, Tensor]]:
    """Return the tensors by open_clip's names, and those of the text side by transformers' names."""
    tensors = _Named(state)
    return tensors, _text(tensors)


class _Named:
    """Tensors by their names in open_clip's `CLIP`, whether the text tower's begin with "text." or not.

    Attributes:
        names: the names here -> those in the file.
        read: names that were read.
    """

    def __init__(self, state: Mapping[str, Tensor]):
        custom = "text.token_embedding.weight" in state
        self.state = state
        self.names = {name.removeprefix("text.") if custom else name: name for name in state if name not in IGNORED}
        self.read: set[str] = set()

    @property
    def taken(self) -> set[str]:
        """Names in the file that were read or mean nothing."""
        return {self.names[name] for name in self.read} | set(IGNORED)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise UnsupportedModelError(
                f"Expected the tensors of a CLIP of openai/CLIP or open_clip. Received none called {name!r}. {REMEDY}."
            )
        self.read.add(name)
        return self.state[self.names[name]].detach().float()

    def count(self, pattern: str) -> int:
        """Return one more than the largest number at the group of `pattern` among the names, 0 without any."""
        found = (re.match(pattern, name) for name in self.names)
        return max((int(match[1]) + 1 for match in found if match), default=0)


def text_config(tensors: _Named, activation: str, head_size: int) -> dict:
    """Return the fields of a `CLIPTextConfig`, read off the tensors."""
    vocabulary, width = tensors["token_embedding.weight"].shape
    depth = tensors.count(r"transformer\.resblocks\.(\d+)\.")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": depth,
        "num_attention_heads": max(1, width // head_size),
        "max_position_embeddings": len(tensors["positional_embedding"]),
        "hidden_act": activation,
        "projection_dim": tensors["text_projection"].shape[1],
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,  # both towers of software pool at the largest id
        "pad_token_id": 0,
    }


def _resnet_config(tensors: _Named, activation: str, text_head_size: int, vision_head_size: int) -> ResNetCLIPConfig:
    depths = [tensors.count(rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
    positions = len(tensors["visual.attnpool.positional_embedding"])
    vision = {
        "depths": depths,
        "embedding_size": tensors["visual.conv3.weight"].shape[0],
        "num_channels": tensors["visual.conv1.weight"].shape[1],
        "image_size": 32 * round((positions - 1) ** 0.5),
        "projection_dim": tensors["visual.attnpool.c_proj.weight"].shape[0],
        "attention_head_size": vision_head_size,
    }
    return ResNetCLIPConfig(text_config(tensors, activation, text_head_size), vision)


def _vit_config(
    tensors: _Named, activation: str, text_head_size: int, vision_head_size: int, image_size: int | None
) -> CLIPConfig:
    width, channels, patch, _ = tensors["visual.conv1.weight"].shape
    grid = round((len(tensors["visual.positional_embedding"]) - 1) ** 0.5)
    vision = {
        "hidden_size": width,
        "intermediate_size": tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": tensors.count(r"visual\.transformer\.resblocks\.(\d+)\."),
        "num_attention_heads": max(1, width // vision_head_size),
        "num_channels": channels,
        "patch_size": patch,
        "image_size": image_size or grid * patch,
        "hidden_act": activation,
        "projection_dim": tensors["visual.proj"].shape[1],
    }
    text = text_config(tensors, activation, text_head_size)
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=vision["projection_dim"])


def _text(tensors: _Named) -> dict[str, Tensor]:
    """Return the text tower, its projection and the scale."""
    return _transformer(tensors, "transformer", "text_model") | _single(tensors, TEXT)


def _single(tensors: _Named, table: dict[str, str]) -> dict[str, Tensor]:
    found = {ours: tensors[theirs].t() if theirs in TRANSPOSED else tensors[theirs] for theirs, ours in table.items()}
    return {ours: value.contiguous() for ours, value in found.items()}


def _transformer(tensors: _Named, theirs: str, ours: str) -> dict[str, Tensor]:
    """Return the layers of a tower; queries, keys and values are one matrix in the files."""
    weights: dict[str, Tensor] = {}
    for index in range(tensors.count(rf"{re.escape(theirs)}\.resblocks\.(\d+)\.")):
        source = f"{theirs}.resblocks.{index}"
        target = f"{ours}.encoder.layers.{index}"
        for kind in ("weight", "bias"):
            parts = tensors[f"{source}.attn.in_proj_{kind}"].chunk(3)
            for letter, part in zip("qkv", parts, strict=True):
                weights[f"{target}.self_attn.{letter}_proj.{kind}"] = part.contiguous()
            for their, our in BLOCK.items():
                weights[f"{target}.{our}.{kind}"] = tensors[f"{source}.{their}.{kind}"]
    return weights


def _resnet(tensors: _Named) -> dict[str, Tensor]:
    names = [name for name in tensors.names if name.startswith("visual.") and not name.endswith("num_batches_tracked")]
    return {name.replace("visual.", "vision_model.", 1): tensors[name] for name in names}
