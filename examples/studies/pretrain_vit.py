"""Pretrain a small ViT with labels on the procedural world, for the comparison in compare_transfer.py.

python examples/studies/pretrain_vit.py runs/vit

The paper transfers a ViT that was pretrained to tell classes by its class token; this makes one. Every picture is
labelled with its shape, fill and colour, and each of these words is one output. The layers start from the embedded CLIP's
image encoder, which saves most of the time; its norm in front of the first layer has no place in a ViT and is learned away.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from transformers import (
    CLIPVisionModel,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    set_seed,
)

from examples.studies.pretrain_demo import EVALUATION_SEED, Stream
from peft_vprompt.demo import demo_model_path
from peft_vprompt.demo.drawing import FILLS, IMAGE_SIZE, OUTLINES
from peft_vprompt.demo.world import COLOURS, render
from peft_vprompt.utils.environment import environment
from peft_vprompt.utils.io import write_json


#: The outputs, by the attribute of a scene that they name.
WORDS = {"shape": list(OUTLINES), "fill": list(FILLS), "colour": list(COLOURS)}
NAMES = [word for words in WORDS.values() for word in words]
#: Same parameters under the names that `CLIPVisionModel` and `ViTForImageClassification` have for them, in this order.
RENAMED = (
    ("embeddings.class_embedding", "vit.embeddings.cls_token"),
    ("embeddings.patch_embedding", "vit.embeddings.patch_embeddings.projection"),
    ("embeddings.position_embedding.weight", "vit.embeddings.position_embeddings"),
    ("encoder.layers", "vit.layers"),
    ("self_attn.out_proj", "attention.o_proj"),
    ("self_attn", "attention"),
    ("layer_norm1", "layernorm_before"),
    ("layer_norm2", "layernorm_after"),
    ("post_layernorm", "vit.layernorm"),
)


class Attributes(Dataset):
    """Pictures of the world, drawn when they are asked for, with a one for each of their three words.

    Args:
        length: number of pictures.
        seed: seed of the stream; a picture is the same whenever it is asked for.
        processor: gives the mean and the standard deviation of the pixels.
    """

    def __init__(self, length: int, seed: int, processor: ViTImageProcessorPil):
        self.stream, self.processor = Stream(length, seed), processor

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        scene, rng = self.stream.scene(index)
        labels = torch.zeros(len(NAMES))
        labels[[NAMES.index(getattr(scene, attribute)) for attribute in WORDS]] = 1.0
        picture = self.processor(render(scene, rng), return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": picture, "labels": labels}


def build() -> ViTForImageClassification:
    """The ViT with the weights of the embedded CLIP's image encoder and a new head."""
    clip = CLIPVisionModel.from_pretrained(demo_model_path())
    same = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
    config = ViTConfig(
        **{name: getattr(clip.config, name) for name in (*same, "layer_norm_eps", "image_size", "patch_size")},
        problem_type="multi_label_classification",
        id2label=dict(enumerate(NAMES)),
        label2id={name: index for index, name in enumerate(NAMES)},
    )
    vit = ViTForImageClassification(config)
    own = vit.state_dict()
    state = {}
    for name, tensor in clip.state_dict().items():
        for theirs, ours in RENAMED:
            name = name.replace(theirs, ours)
        if name in own:
            state[name] = tensor.view_as(own[name])
    torch.nn.init.zeros_(vit.vit.embeddings.patch_embeddings.projection.bias)  # CLIP's convolution has none
    vit.load_state_dict(own | state)
    return vit


@torch.no_grad()
def accuracy(vit: ViTForImageClassification, pictures: Attributes) -> dict[str, float]:
    """Percent of the pictures whose shape, fill, colour is told among all shapes, fills, colours."""
    batches = [
        (vit(batch["pixel_values"]).logits, batch["labels"])
        for batch in DataLoader(pictures, 250, collate_fn=default_collate)
    ]
    logits, labels = map(torch.cat, zip(*batches, strict=True))
    hits, start = {}, 0
    for attribute, words in WORDS.items():
        part = slice(start, start := start + len(words))
        hit = logits[:, part].argmax(1) == labels[:, part].argmax(1)
        hits[attribute] = round(100 * hit.double().mean().item(), 1)
    return hits


def pretrain(
    folder: Path, steps: int = 1800, batch_size: int = 64, learning_rate: float = 1e-3, pictures: int = 2000
) -> dict:
    """Train the ViT and save it, with its image processor and `training.json`, into `folder`.

    Returns:
        The record: options, losses along the way, and the accuracy on new pictures of the world.
    """
    set_seed(0)
    processor = ViTImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    vit = build()
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=0.05,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 20,
        save_strategy="no",
        logging_steps=max(steps // 10, 1),
        report_to="none",
    )
    trainer = Trainer(vit, arguments, train_dataset=Attributes(steps * batch_size, 1, processor))
    trainer.train()
    record = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "parameters": vit.num_parameters(),
        "accuracy": accuracy(vit.eval(), Attributes(pictures, EVALUATION_SEED, processor)),
        "loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "environment": environment(),
    }
    vit.config.problem_type = None  # whoever gives it new classes gives it one label for each image
    for part in (vit, processor):
        part.save_pretrained(folder)
    write_json(record, folder / "training.json")  # last: with it the folder is complete
    return record


def main(
    folder: Annotated[Path, typer.Argument(help="Folder for the ViT.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 1800,
) -> None:
    """Pretrain the ViT."""
    print(pretrain(folder, steps)["accuracy"])


if __name__ == "__main__":
    typer.run(main)
