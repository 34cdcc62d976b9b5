"""VPT-deep on an image classifier: prompts in every layer of a frozen ViT, and a new head.

Without `--model` a small ViT with random weights stands in, which shows the calls; what prompts are worth shows on a
pretrained one:

    python examples/visual_prompt_vit.py
    python examples/visual_prompt_vit.py --model google/vit-base-patch16-224-in21k
    python examples/visual_prompt_vit.py --model google/vit-base-patch16-224-in21k --data path/to/images
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from peft import PeftModel, get_peft_model
from transformers import (
    AutoImageProcessor,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    set_seed,
)

from peft_vprompt import VisualPromptConfig
from peft_vprompt.data import DataOptions, EvalTransform, few_shot, load_images
from peft_vprompt.demo import demo_task
from peft_vprompt.training.evaluation import accuracy, compute_metrics


def main(
    model: Annotated[str | None, typer.Option(help="Folder or Hub id of a ViT; default: a small one.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder of images, one folder per class; default: the embedded task.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the adapter.")] = Path("runs/visual_prompt_vit"),
    shots: Annotated[int, typer.Option(help="Training images per class.")] = 16,
    epochs: Annotated[int, typer.Option(help="Passes over them.")] = 5,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate of SGD.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the shots, the prompts and the order of images.")] = 1,
):
    """Learn visual prompts and a head for all classes of the embedded task or of your images."""
    if data and not model:
        raise typer.BadParameter("Images of your own need a base model: --model google/vit-base-patch16-224-in21k.")
    source = load_images(DataOptions(data)) if data else {split: demo_task(split) for split in ("train", "test")}
    names = source["train"].features["label"].names
    set_seed(seed)
    vit, processor = load_vit(model, names)
    peft_model = get_peft_model(vit, VisualPromptConfig(num_virtual_tokens=10, deep=True))
    peft_model.print_trainable_parameters()  # the prompts and the head

    transform = EvalTransform(processor)
    train_set = few_shot(source["train"], shots, seed).with_transform(transform)
    test_set = source["test"].with_transform(transform)
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=32,
        per_device_eval_batch_size=100,
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        logging_strategy="epoch",
        save_strategy="no",
        remove_unused_columns=False,  # the transform needs the column `image`
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=seed,
        report_to="none",
    )
    trained = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    trainer = Trainer(
        model=peft_model,
        args=arguments,
        train_dataset=train_set,
        eval_dataset=test_set,
        compute_metrics=compute_metrics,
        optimizers=(torch.optim.SGD(trained, lr=learning_rate, momentum=0.9), None),
    )
    trainer.train()
    print(f"accuracy: {trainer.evaluate()['eval_accuracy']:.1f} %")

    # The adapter holds the prompts and the head; the base model is loaded (or made) as before.
    peft_model.save_pretrained(output)
    set_seed(seed)
    loaded = PeftModel.from_pretrained(load_vit(model, names)[0], output)
    print(f"loaded again: {accuracy(loaded, test_set):.1f} %")


def load_vit(model: str | None, names: list[str]):
    """A ViT with a new head for `names`, and its image processor."""
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}
    if model is None:
        config = ViTConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=64,
            patch_size=8,
            **labels,
        )
        return ViTForImageClassification(config), ViTImageProcessorPil(size={"height": 64, "width": 64})
    vit = ViTForImageClassification.from_pretrained(model, ignore_mismatched_sizes=True, **labels)
    return vit, AutoImageProcessor.from_pretrained(model, backend="pil")


if __name__ == "__main__":
    typer.run(main)
