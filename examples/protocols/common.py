"""What the scripts of this folder share: their arguments, and the stock Trainer on few images of each class."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from datasets import Dataset, DatasetDict
from peft import get_peft_model
from transformers import AutoImageProcessor, CLIPModel, HfArgumentParser, Trainer, TrainingArguments, set_seed

from peft_vprompt.data import DataOptions, EvalTransform, TrainTransform, few_shot, load_images, select_classes
from peft_vprompt.demo import demo_model_path, demo_task
from peft_vprompt.training.evaluation import compute_metrics


@dataclass
class ProtocolArguments:
    """What to train on, beside the Trainer's own arguments."""

    model: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a CLIP; default: the embedded one."}
    )
    data: str | None = field(
        default=None, metadata={"help": "Folder of images, one folder per class; default: the embedded task."}
    )
    targets: list[str] = field(
        default_factory=list, metadata={"help": "Of a transfer: such folders to test on; default: embedded tasks."}
    )
    shots: list[int] = field(
        default_factory=lambda: [16], metadata={"help": "Training images per class; of a curve, several numbers."}
    )


def parse(**defaults) -> tuple[ProtocolArguments, TrainingArguments]:
    """Read the arguments from the command line, or from the one YAML or JSON file that is named there.

    Args:
        **defaults: of both kinds of arguments, in the place of their own.
    """
    parser = HfArgumentParser((ProtocolArguments, TrainingArguments))
    defaults = {"report_to": ["none"], "save_strategy": "no", "logging_strategy": "epoch"} | defaults
    if len(sys.argv) == 2 and sys.argv[1].endswith((".yaml", ".yml", ".json")):
        given = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))  # JSON is YAML, too
        arguments, training = parser.parse_dict(defaults | given)
    else:
        parser.set_defaults(**defaults)
        arguments, training = parser.parse_args_into_dataclasses()
    training.remove_unused_columns = False  # the transforms need the column `image`
    return arguments, training


def read(path: str | None, task: str = "shapes", splits: tuple[str, ...] = ("train", "test")) -> DatasetDict:
    """Read the training and test images of a folder, or some of an embedded task."""
    if path is not None:
        return load_images(DataOptions(path))
    return DatasetDict({split: demo_task(split, task) for split in splits})


def read_targets(paths: list[str], tasks: tuple[str, ...]) -> dict[str, Dataset]:
    """Read the test images of the targets of a transfer by name: those of folders, or else of embedded tasks."""
    images = {Path(path).name: read(path) for path in paths} or {task: read(None, task, ("test",)) for task in tasks}
    return {name: splits["test"] for name, splits in images.items()}


def train(config, names: list[str], shots: int, images: DatasetDict, arguments, training) -> Trainer:
    """Train prompts on few images of the classes `names`, by the stock Trainer."""
    set_seed(training.seed)
    path = arguments.model or demo_model_path()
    processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    chosen = select_classes(few_shot(images["train"], shots, training.seed), names)
    trainer = Trainer(
        model=get_peft_model(CLIPModel.from_pretrained(path), config),
        args=training,
        train_dataset=chosen.with_transform(TrainTransform(processor)),
        compute_metrics=compute_metrics,
        processing_class=processor,
    )
    trainer.train()
    return trainer


def test(trainer: Trainer, images: Dataset, names: list[str]) -> float:
    """Return the accuracy on test images among the classes `names`, in percent."""
    trainer.model.set_class_names(names)
    rows = select_classes(images, names).with_transform(EvalTransform(trainer.processing_class))
    return trainer.evaluate(rows)["eval_accuracy"]
