"""Base-to-novel generalisation in a training loop of your own, with Accelerate, on any number of processes.

    python examples/protocols/with_accelerate.py --output_dir runs/accelerate
    accelerate launch --num_processes 2 examples/protocols/with_accelerate.py --output_dir runs/accelerate

The arguments are those of the Trainer, also from a YAML or JSON file, of which this loop reads a few.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from common import parse, read
from peft import get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor, CLIPModel, default_data_collator

from peft_vprompt import KgCoOpConfig
from peft_vprompt.data import EvalTransform, TrainTransform, base_novel_split, few_shot, select_classes
from peft_vprompt.demo import demo_model_path
from peft_vprompt.training.evaluation import harmonic_mean


def main():
    """Train KgCoOp on the base classes, and print the accuracies on base and novel classes and their harmonic mean."""
    arguments, training = parse(learning_rate=2e-3, per_device_train_batch_size=32, num_train_epochs=5)
    accelerator = Accelerator(cpu=training.use_cpu)
    set_seed(training.seed)
    images, path = read(arguments.data), arguments.model or demo_model_path()
    base, novel = base_novel_split(images["train"].features["label"].names)
    model = get_peft_model(CLIPModel.from_pretrained(path), KgCoOpConfig(class_names=base))
    processor = AutoImageProcessor.from_pretrained(path, backend="pil")

    chosen = select_classes(few_shot(images["train"], arguments.shots[0], training.seed), base)
    rows = chosen.with_transform(TrainTransform(processor))
    size = training.per_device_train_batch_size
    loader = DataLoader(rows, size, shuffle=True, collate_fn=default_data_collator)
    prompts = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(prompts, lr=training.learning_rate, momentum=0.9)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for _ in range(int(training.num_train_epochs)):
        model.train()
        for batch in loader:
            accelerator.backward(model(**batch).loss)  # KgCoOp's own term is in it
            optimizer.step()
            optimizer.zero_grad()

    found = {}
    for name, names in (("base", base), ("novel", novel)):
        accelerator.unwrap_model(model).set_class_names(names)
        rows = select_classes(images["test"], names).with_transform(EvalTransform(processor))
        found[name] = accuracy(accelerator, model, rows)
    found["harmonic mean"] = harmonic_mean(**found)
    accelerator.print("\n".join(f"{name}: {value:.1f} %" for name, value in found.items()))
    accelerator.unwrap_model(model).save_pretrained(training.output_dir, is_main_process=accelerator.is_main_process)


@torch.no_grad()
def accuracy(accelerator: Accelerator, model: torch.nn.Module, rows) -> float:
    """Return the share of correct images over all processes, in percent."""
    model.eval()
    right = []
    for batch in accelerator.prepare(DataLoader(rows, 100, collate_fn=default_data_collator)):
        found = model(pixel_values=batch["pixel_values"]).logits.argmax(-1) == batch["labels"]
        right.append(accelerator.gather_for_metrics(found))
    return 100 * torch.cat(right).float().mean().item()


if __name__ == "__main__":
    main()
