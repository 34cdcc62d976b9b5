"""MaPLe with the stock `Trainer`: nothing here knows about prompts but the config.

Trains on a few images of the base classes, keeps the checkpoint that is best on validation images, and tests on the
base classes and on novel ones that training never saw.

Usage:

    python examples/train_with_trainer.py
    python examples/train_with_trainer.py --model openai/clip-vit-base-patch16
    python examples/train_with_trainer.py --model openai/clip-vit-base-patch16 --data path/to/images
    torchrun --nproc_per_node 2 examples/train_with_trainer.py          # two GPUs; two processes without: --cpu
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from peft import get_peft_model
from transformers import AutoImageProcessor, CLIPModel, Trainer, TrainingArguments, set_seed

from peft_vprompt import MaPLeConfig
from peft_vprompt.data import (
    DataOptions,
    EvalTransform,
    TrainTransform,
    base_novel_split,
    few_shot,
    load_images,
    select_classes,
    stratified_split,
)
from peft_vprompt.demo import demo_model_path, demo_task
from peft_vprompt.training.evaluation import compute_metrics


def main(
    model: Annotated[str | None, typer.Option(help="Folder or Hub id of a CLIP; default: the embedded one.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder of images, one folder per class; default: the embedded task.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the checkpoints and the adapter.")] = Path("runs/trainer"),
    shots: Annotated[int, typer.Option(help="Training images per class.")] = 16,
    epochs: Annotated[int, typer.Option(help="Passes over them.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Images per process and step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate of SGD.")] = 0.02,
    bf16: Annotated[bool, typer.Option("--bf16", help="Autocast to bfloat16; the prompts stay float32.")] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Stay on the CPU, with several processes too.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the shots, the prompts and the order of images.")] = 1,
):
    """Learn MaPLe prompts on the base classes of the embedded task or of your images with the stock Trainer."""
    # 1. A frozen CLIP with prompts in both towers.
    set_seed(seed)
    if data and not model:
        raise typer.BadParameter("Images of your own need a base model: --model openai/clip-vit-base-patch16.")
    source = (
        load_images(DataOptions(data))
        if data
        else {split: demo_task(split) for split in ("train", "validation", "test")}
    )
    if "validation" not in source:  # the best checkpoint is chosen on images that are not trained on
        source["train"], source["validation"] = stratified_split(source["train"], 0.2, seed)
    path = model or demo_model_path()
    clip = CLIPModel.from_pretrained(path)
    base, novel = base_novel_split(source["train"].features["label"].names)
    layers = min(clip.config.text_config.num_hidden_layers, clip.config.vision_config.num_hidden_layers)
    peft_model = get_peft_model(clip, MaPLeConfig(class_names=base, prompt_depth=min(9, layers)))
    peft_model.print_trainable_parameters()

    # 2. Rows of `image` and `label`; a transform makes `pixel_values` and `labels` of them.
    processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    augment, plain = TrainTransform(processor), EvalTransform(processor)
    train_set = select_classes(few_shot(source["train"], shots, seed), base).with_transform(augment)
    validation_set = select_classes(source["validation"], base).with_transform(plain)

    # 3. The stock Trainer.
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=100,
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        logging_strategy="epoch",
        remove_unused_columns=False,  # the transform needs the column `image`
        dataloader_pin_memory=torch.cuda.is_available(),
        bf16=bf16,
        use_cpu=cpu,
        seed=seed,
        report_to="none",
    )
    prompts = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    trainer = Trainer(
        model=peft_model,
        args=arguments,
        train_dataset=train_set,
        eval_dataset=validation_set,
        compute_metrics=compute_metrics,
        optimizers=(torch.optim.SGD(prompts, lr=learning_rate, momentum=0.9, weight_decay=5e-4), None),
    )
    trainer.train(resume_from_checkpoint=resume or None)

    # 4. Test, on classes that training never saw too; then save a small safetensors file.
    for split, names in (("base", base), ("novel", novel)):
        peft_model.set_class_names(names)
        test_set = select_classes(source["test"], names).with_transform(plain)
        metrics = trainer.evaluate(test_set, metric_key_prefix=split)
        if trainer.is_world_process_zero():
            print(f"{split}: {metrics[f'{split}_accuracy']:.1f} %")
    trainer.save_model(str(output / "adapter"))


if __name__ == "__main__":
    typer.run(main)
