"""A prompt without a single label: zero-shot CLIP labels images, a robust loss stands its mistakes.

Labels random images of each predicted class, trains CoOp on their cached features with the stock `Trainer` and the
generalised cross-entropy, and compares with zero-shot.

Usage:

    python examples/train_without_labels.py
    python examples/train_without_labels.py --model openai/clip-vit-base-patch16 --shots 8
    python examples/train_without_labels.py --model openai/clip-vit-base-patch16 --data path/to/images
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from peft import get_peft_model
from transformers import AutoImageProcessor, CLIPModel, Trainer, TrainingArguments, set_seed

from peft_vprompt import ContextOptConfig
from peft_vprompt.data import DataOptions, EvalTransform, load_images
from peft_vprompt.demo import demo_model_path, demo_task
from peft_vprompt.experiments.models import ModelBundle
from peft_vprompt.experiments.pseudo_labels import random_k
from peft_vprompt.experiments.zero_shot_scores import zero_shot
from peft_vprompt.losses.classification import GeneralizedCrossEntropy
from peft_vprompt.training.cached_features import cache_features, feature_rows
from peft_vprompt.training.evaluation import EvalSet, evaluate


def main(
    model: Annotated[str | None, typer.Option(help="Folder or Hub id of a CLIP; default: the embedded one.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder of images, one folder per class; default: the embedded task.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the features and the adapter.")] = Path("runs/unlabelled"),
    shots: Annotated[int, typer.Option(help="Images per predicted class.")] = 16,
    epochs: Annotated[int, typer.Option(help="Passes over them.")] = 15,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate of SGD.")] = 0.02,
    q: Annotated[float, typer.Option(help="From cross-entropy (0) to mean absolute error (1).")] = 0.7,
    seed: Annotated[int, typer.Option(help="Seed of the images, the prompts and their order.")] = 1,
):
    """Learn a context on images that nobody labelled."""
    # 1. A frozen CLIP with a context. The names of the classes are all that is known.
    set_seed(seed)
    if data and not model:
        raise typer.BadParameter("Images of your own need a base model: --model openai/clip-vit-base-patch16.")
    source = load_images(DataOptions(data)) if data else {split: demo_task(split) for split in ("train", "test")}
    path = model or demo_model_path()
    names = source["test"].features["label"].names
    peft_model = get_peft_model(CLIPModel.from_pretrained(path), ContextOptConfig(class_names=names))
    processor = AutoImageProcessor.from_pretrained(path, backend="pil")

    # 2. Features of the unlabelled images, once; zero-shot labels from them; some images of each predicted class.
    images = source["train"].select_columns("image")
    features = cache_features(peft_model, images, EvalTransform(processor), cache_dir=output / "features")
    table = zero_shot(ModelBundle(peft_model, processor, None), features, names)
    train_set = feature_rows(random_k(table, names, shots, seed).label(features))

    # 3. The stock Trainer, with a loss that wrong labels hardly move.
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=32,
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        logging_strategy="epoch",
        save_strategy="no",
        remove_unused_columns=False,  # the rows hold what the model takes, and labels
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=seed,
        report_to="none",
    )
    context = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    trainer = Trainer(
        model=peft_model,
        args=arguments,
        train_dataset=train_set,
        compute_loss_func=GeneralizedCrossEntropy(q=q),
        optimizers=(torch.optim.SGD(context, lr=learning_rate, momentum=0.9, weight_decay=5e-4), None),
    )
    trainer.train()

    # 4. Test against zero-shot; then save a small safetensors file.
    test_set = {"test": EvalSet(source["test"].with_transform(EvalTransform(processor)), names)}
    print(f"zero-shot: {evaluate(peft_model, test_set, zero_shot=True)['test']:.1f} %")
    print(f"learned without labels: {evaluate(peft_model, test_set)['test']:.1f} %")
    peft_model.save_pretrained(output / "adapter")


if __name__ == "__main__":
    typer.run(main)
