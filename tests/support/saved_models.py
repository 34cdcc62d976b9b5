"""Tiny models in folders, and tiny labelled images in parquet files, as users have them."""

import io
from pathlib import Path

import numpy as np
import transformers
from datasets import Dataset
from PIL import Image
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

from peft_vprompt.backbones.supported import DUAL_ENCODERS
from tests.support.backbones import frame, tiny
from tests.support.models import IMAGE_SIZE, tiny_clip, tiny_tokenizer, tiny_vit


COLOURS = {"blue": (30, 30, 220), "green": (30, 200, 30), "red": (220, 30, 30), "white": (230, 230, 230)}


def save_tiny_clip(path: Path) -> str:
    """A folder with a tiny CLIP, its tokenizer and its image processor."""
    tiny_clip().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size).save_pretrained(path)
    return str(path)


def save_tiny_vit(path: Path) -> str:
    """A folder with a tiny ViT classifier and its image processor."""
    tiny_vit().save_pretrained(path)
    ViTImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(path)
    return str(path)


def save_tiny(path: Path, name: str) -> str:
    """A folder with a tiny model of the class `name`, a processor that gives its images, and its tokenizer."""
    tiny(name).save_pretrained(path)
    if name.startswith("Siglip2"):
        transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16).save_pretrained(path)
    else:
        ViTImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(path)
    if name in DUAL_ENCODERS:
        tiny_tokenizer(frame(name)).save_pretrained(path)
    return str(path)


def save_colours(path: Path, per_class: int = 10) -> str:
    """A parquet file of noisy one-coloured images, the colour's name in `colour`."""
    generator = np.random.default_rng(0)
    table = {"image": [], "colour": []}
    for name, colour in COLOURS.items():
        for _ in range(per_class):
            noise = generator.integers(-25, 26, (IMAGE_SIZE, IMAGE_SIZE, 3))
            buffer = io.BytesIO()
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(buffer, format="PNG")
            table["image"].append(buffer.getvalue())
            table["colour"].append(name)
    Dataset.from_dict(table).to_parquet(path)
    return str(path)
