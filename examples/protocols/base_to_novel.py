"""Base-to-novel generalisation with the stock Trainer: train on half of the classes, test on both halves.

    python examples/protocols/base_to_novel.py --output_dir runs/base_to_novel
    python examples/protocols/base_to_novel.py examples/protocols/base_to_novel.yaml
    python examples/protocols/base_to_novel.py --output_dir runs/pets --model openai/clip-vit-base-patch16 --data path/to/images

All methods, seeds and data sets in one go: `vprompt bench base-to-novel`.
"""

from common import parse, read, test, train

from peft_vprompt import MaPLeConfig
from peft_vprompt.data import base_novel_split
from peft_vprompt.training.evaluation import harmonic_mean


def main():
    """Train MaPLe on the base classes, and print the accuracies on base and novel classes and their harmonic mean."""
    arguments, training = parse(learning_rate=1e-3, per_device_train_batch_size=32, num_train_epochs=5)
    images = read(arguments.data)
    base, novel = base_novel_split(images["train"].features["label"].names)  # the first half, rounded up, is base
    config = MaPLeConfig(class_names=base, prompt_depth=3)
    trainer = train(config, base, arguments.shots[0], images, arguments, training)
    found = {name: test(trainer, images["test"], names) for name, names in (("base", base), ("novel", novel))}
    found["harmonic mean"] = harmonic_mean(**found)
    print("\n".join(f"{name}: {value:.1f} %" for name, value in found.items()))
    trainer.save_model()


if __name__ == "__main__":
    main()
