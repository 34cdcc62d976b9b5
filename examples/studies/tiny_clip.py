"""What the CLIPs of the demo world are before they are trained: tokenizer, architectures and image processor."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, PreTrainedModel

from peft_vprompt.demo import demo_model_path
from peft_vprompt.demo.drawing import IMAGE_SIZE
from peft_vprompt.models import ResNetCLIPConfig, ResNetCLIPModel


if TYPE_CHECKING:
    from .pretrain_demo import Options

MAX_TOKENS = 32
RESNET_DEPTHS = [1, 2, 1]
START, END = "<|startoftext|>", "<|endoftext|>"

#: Architectures of the image tower.
Tower = Literal["vit", "resnet"]


def train_tokenizer(captions: list[str], size: int) -> CLIPTokenizer:
    """Byte-level BPE with CLIP's conventions: lower case, `</w>` ends a word, the start and end tokens come last.

    Args:
        captions: Text to learn the merges from.
        size: Most entries of the vocabulary. All 256 bytes are in it, alone and as the end of a word, so that any text
            can be read.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    clip = CLIPTokenizer().backend_tokenizer
    learner.normalizer, learner.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=size, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]][: size - len(letters) - 2]
    entries = [*letters, *("".join(pair) for pair in merges), START, END]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def tower_sizes(options: Options) -> dict[str, Any]:
    """Width and heads of a transformer."""
    return {
        "hidden_size": options.width,
        "intermediate_size": 4 * options.width,
        "num_attention_heads": options.width // 32,
        "hidden_act": "quick_gelu",
    }


def text_sizes(options: Options, tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """Sizes of the text tower, and its special tokens."""
    return tower_sizes(options) | {
        "num_hidden_layers": options.text_layers,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def build_resnet(options: Options, tokenizer: CLIPTokenizer) -> ResNetCLIPModel:
    """A small CLIP with a ResNet of three stages, which leave a grid of 3x3 cells for the attention pool."""
    vision = {"depths": RESNET_DEPTHS, "embedding_size": options.width // 8, "image_size": IMAGE_SIZE}
    vision |= {"projection_dim": options.projection, "attention_head_size": 32}
    text = text_sizes(options, tokenizer) | {"projection_dim": options.projection}
    return ResNetCLIPModel(ResNetCLIPConfig(text, vision))


def build_vit(options: Options, tokenizer: CLIPTokenizer) -> CLIPModel:
    """A small CLIP with random weights, but image positions that start as sines and cosines of row and column."""
    vision = tower_sizes(options) | {"num_hidden_layers": options.layers, "image_size": IMAGE_SIZE, "patch_size": 8}
    text = text_sizes(options, tokenizer)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=options.projection))
    embeddings = model.vision_model.embeddings
    with torch.no_grad():
        embeddings.position_embedding.weight[1:] = 0.3 * _sine_positions(
            math.isqrt(embeddings.num_patches), options.width
        )
    return model


def lock_text(model: PreTrainedModel) -> None:
    """Give a CLIP of the same sizes the embedded CLIP's text tower and temperature, and train no more of the texts.

    Source: Zhai et al., "LiT: Zero-Shot Transfer with Locked-image text Tuning", CVPR 2022, the other way round.
    """
    embedded = CLIPModel.from_pretrained(demo_model_path())
    for name in ("text_model", "text_projection"):
        part = model.get_submodule(name)
        part.load_state_dict(embedded.get_submodule(name).state_dict())
        part.requires_grad_(False)
    with torch.no_grad():
        model.logit_scale.copy_(embedded.logit_scale)


def _sine_positions(side: int, width: int) -> torch.Tensor:
    """Fixed two-dimensional sine-cosine positions: [side * side, width]."""
    frequencies = 1 / 100 ** (torch.arange(width // 4) / (width // 4 - 1))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in (columns, rows)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)


def image_processor() -> CLIPImageProcessorPil:
    """CLIP's own preprocessing at this model's image size."""
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=side)


#: What makes a CLIP with random weights, by its image tower.
BUILDERS: dict[Tower, Callable[[Options, CLIPTokenizer], PreTrainedModel]] = {"vit": build_vit, "resnet": build_resnet}
