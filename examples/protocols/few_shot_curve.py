"""A few-shot curve with the stock Trainer: train on 1, 2, 4, 8 and 16 images of every class, and test among all classes.

    python examples/protocols/few_shot_curve.py --output_dir runs/curve
    python examples/protocols/few_shot_curve.py --output_dir runs/curve --shots 1 16 --num_train_epochs 20

All methods, seeds and data sets in one go: `vprompt bench few-shot`.
"""

from pathlib import Path

from common import parse, read, test, train

from peft_vprompt import ContextOptConfig


def main():
    """Train CoOp with each number of images per class, and print the accuracies beside that of zero-shot."""
    parsed = parse(learning_rate=2e-3, per_device_train_batch_size=32, num_train_epochs=10, shots=[1, 2, 4, 8, 16])
    arguments, training = parsed
    images = read(arguments.data)
    names = images["train"].features["label"].names
    folder = Path(training.output_dir)
    for shots in arguments.shots:
        training.output_dir = str(folder / f"{shots}-shots")
        config = ContextOptConfig(class_names=names, num_virtual_tokens=4)
        trainer = train(config, names, shots, images, arguments, training)
        print(f"{shots} shots: {test(trainer, images['test'], names):.1f} %")
        trainer.save_model()
    with trainer.model.disable_adapter():
        print(f"zero-shot: {test(trainer, images['test'], names):.1f} %")


if __name__ == "__main__":
    main()
