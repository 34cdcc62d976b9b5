"""Models at published shapes with random weights, class names and a tokenizer, made in memory or read from files."""

from __future__ import annotations

import copy
import functools
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerBase,
    ViTConfig,
    ViTForImageClassification,
)

from peft_vprompt.demo import demo_model_path


#: `openai/clip-vit-base-patch16` and `google/vit-base-patch16-224`, and shapes that take no time.
SHAPES = {
    "ViT-B/16": (
        {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048, "num_hidden_layers": 12},
        {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": 12}
        | {"patch_size": 16, "image_size": 224},
        512,
    ),
    "tiny": (
        {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 10},
        {"hidden_size": 48, "num_attention_heads": 2, "intermediate_size": 96, "num_hidden_layers": 10}
        | {"patch_size": 8, "image_size": 32},
        32,
    ),
}

#: exp of it is 100, as in the published models.
LOGIT_SCALE = 4.6052

ADJECTIVES = (
    "red green blue black white small large old young wild tame fast slow soft hard round flat dark bright cold"
)
PLACES = "sea river forest desert mountain garden island meadow city valley cave lake beach house farm road sky swamp hill rock"
NOUNS = "cat dog bird fish horse tree flower stone boat car chair lamp bridge clock apple bread hat shoe drum bell kite fox owl crab"


@dataclass(frozen=True)
class Inputs:
    """What all cells of a run share.

    Attributes:
        shape: a key of `SHAPES`.
        tokenizer: folder or Hub id; None for the embedded model's.
        names_file: JSON list of class names, or an object with such lists (the longest is taken); None to make names up.
        device, dtype, threads: where and how to compute; `dtype` is a name in `torch`.
        clock: "wall", or "processor" for the processor's time, which other work on the machine hardly moves (use it
            with one thread: threads that wait for each other spend processor time too).
    """

    shape: str = "ViT-B/16"
    tokenizer: str | None = None
    names_file: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 2
    clock: str = "wall"

    @property
    def compiler(self) -> str:
        """Backend of `torch.compile`; generating code for tiny shapes would take longer than all else."""
        return "eager" if self.shape == "tiny" else "inductor"

    @property
    def tokenizer_path(self) -> str:
        """Where the tokenizer is."""
        return self.tokenizer or str(demo_model_path())

    @functools.cache  # noqa: B019 - a run has one
    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        return AutoTokenizer.from_pretrained(self.tokenizer_path)

    def class_names(self, count: int) -> list[str]:
        """`count` distinct class names: the first of the file, numbered anew where it has too few."""
        if self.names_file is None:
            words = itertools.product(ADJECTIVES.split(), PLACES.split(), NOUNS.split())
            names = [" ".join(triple) for triple in words]
            names = names[:: max(1, len(names) // count)]
        else:
            names = json.loads(Path(self.names_file).read_text(encoding="utf-8"))
            names = max(names.values(), key=len) if isinstance(names, dict) else names
        rounds = -(-count // len(names))
        numbered = (name if k == 0 else f"{name} {k + 1}" for k in range(rounds) for name in names)
        return list(itertools.islice(numbered, count))

    def clip(self) -> CLIPModel:
        """A CLIP with random weights that reads this tokenizer's tokens."""
        text, vision, projection = SHAPES[self.shape]
        tokenizer = self.load_tokenizer()
        text = text | {
            "vocab_size": len(tokenizer),
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": tokenizer.bos_token_id,
        }
        config = CLIPConfig(
            text_config=text, vision_config=vision, projection_dim=projection, logit_scale_init_value=LOGIT_SCALE
        )
        torch.manual_seed(0)
        return CLIPModel(config).to(self.device, getattr(torch, self.dtype))

    def save_clip(self, folder: Path) -> Path:
        """Save `clip` with its tokenizer and its image processor, as a model that commands take; return the folder."""
        self.clip().save_pretrained(folder)
        self.load_tokenizer().save_pretrained(folder)
        edge = SHAPES[self.shape][1]["image_size"]
        size = {"size": {"shortest_edge": edge}, "crop_size": {"height": edge, "width": edge}}
        AutoImageProcessor.from_pretrained(demo_model_path(), backend="pil", **size).save_pretrained(folder)
        return folder

    def vit(self, classes: int) -> ViTForImageClassification:
        """A ViT classifier with random weights."""
        torch.manual_seed(0)
        model = ViTForImageClassification(ViTConfig(**SHAPES[self.shape][1], num_labels=classes))
        return model.to(self.device, getattr(torch, self.dtype))

    def images(self, count: int) -> Tensor:
        """Random images [count, 3, edge, edge]."""
        edge = SHAPES[self.shape][1]["image_size"]
        images = torch.randn(count, 3, edge, edge, generator=torch.Generator().manual_seed(0))
        return images.to(self.device, getattr(torch, self.dtype))

    def labels(self, count: int, classes: int) -> Tensor:
        """Random labels [count]."""
        return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(0)).to(self.device)


def twin(model: nn.Module) -> nn.Module:
    """Another model over the very same parameters, so that wrapping one leaves the other as it is."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
