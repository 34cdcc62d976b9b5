"""Distillation: a student learns a teacher's predictions on images without labels (PromptKD, Li et al., CVPR 2024).

The teacher here is MaPLe, trained on a few labelled images. The student has visual prompts and a projector to the teacher's
joint space; it reads the teacher's class features. All training images are used, and no label of them is read.

Usage:

    python examples/distillation.py
    python examples/distillation.py --teacher-model openai/clip-vit-large-patch14 --model openai/clip-vit-base-patch16
    python examples/distillation.py --model openai/clip-vit-base-patch16 --data path/to/images
"""

from pathlib import Path
from typing import Annotated

import typer
from peft import get_peft_model
from transformers import AutoImageProcessor, CLIPModel, set_seed

from peft_vprompt import MaPLeConfig, PromptKDConfig
from peft_vprompt.data import DataOptions, TrainTransform, few_shot, load_images
from peft_vprompt.demo import demo_model_path, demo_task
from peft_vprompt.experiments.eval_sets import eval_sets
from peft_vprompt.training import DistillationRows, take_teacher, teacher_logits
from peft_vprompt.training.evaluation import evaluate
from peft_vprompt.training.trainer import train
from peft_vprompt.tuners.base.registry import METHODS


VIEWS = 2  # fixed augmentations of each image, which the teacher answers once


def main(
    model: Annotated[str | None, typer.Option(help="Folder or Hub id of a CLIP; default: the embedded one.")] = None,
    teacher_model: Annotated[str | None, typer.Option(help="That of the teacher, larger; default: the same.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder of images, one folder per class; default: the embedded task.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the adapters and the answers.")] = Path("runs/distillation"),
    shots: Annotated[int, typer.Option(help="Labelled images per class, for the teacher.")] = 16,
    epochs: Annotated[int, typer.Option(help="Passes of teacher and student over their images.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the shots, the prompts and the order of images.")] = 1,
):
    """Distil a trained adapter on the images of the embedded task or on yours."""
    set_seed(seed)
    if data and not model:
        raise typer.BadParameter("Images of your own need a base model: --model openai/clip-vit-base-patch16.")
    source = load_images(DataOptions(data)) if data else {split: demo_task(split) for split in ("train", "test")}
    path = model or demo_model_path()
    names = source["train"].features["label"].names
    options = {"epochs": epochs, "seed": seed, "checkpoints": False}

    # 1. The teacher, on labelled images.
    teacher_path = teacher_model or path
    teacher = get_peft_model(CLIPModel.from_pretrained(teacher_path), MaPLeConfig(class_names=names, prompt_depth=3))
    teachers_transform = TrainTransform(AutoImageProcessor.from_pretrained(teacher_path, backend="pil"))
    images = few_shot(source["train"], shots, seed).with_transform(teachers_transform)
    recipe = METHODS["maple"].recipe.override(learning_rate=0.02, batch_size=32)
    train(teacher, images, recipe, output / "teacher", progress="Teacher", **options)
    teacher.save_pretrained(output / "teacher")

    # 2. The student, on what the teacher says of all images. It needs the size of the teacher's joint space.
    size = teacher.get_base_model().config.projection_dim
    config = PromptKDConfig(class_names=names, teacher_dim=size, prompt_depth=3, distillation_weight=100.0)
    student = get_peft_model(CLIPModel.from_pretrained(path), config)
    take_teacher(student, teacher)
    processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    unlabelled = source["train"].select_columns("image")
    seen = {"views": VIEWS, "seed": seed, "cache_dir": output / "cache", "progress": "Teacher's answers"}
    logits = teacher_logits(teacher, unlabelled, teachers_transform, names, **seen)
    rows = DistillationRows(unlabelled, TrainTransform(processor), logits, config.temperature, seed)
    recipe = METHODS["promptkd"].recipe.override(batch_size=32)
    train(student, rows, recipe, output, progress="Student", **options)
    student.save_pretrained(output)

    # 3. Test both against zero-shot.
    test_sets = eval_sets(source["test"], {"all": names}, processor)
    print(f"zero-shot: {evaluate(student, test_sets, zero_shot=True)['all']:.1f} %")
    of_teacher = eval_sets(source["test"], {"all": names}, teachers_transform.image_processor)
    print(f"teacher: {evaluate(teacher, of_teacher)['all']:.1f} %")
    print(f"student: {evaluate(student, test_sets)['all']:.1f} %")


if __name__ == "__main__":
    typer.run(main)
