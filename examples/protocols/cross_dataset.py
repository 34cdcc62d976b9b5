"""Cross-data-set transfer with the stock Trainer: train on all classes of a source, test on other data sets as it is.

    python examples/protocols/cross_dataset.py --output_dir runs/transfer
    python examples/protocols/cross_dataset.py --output_dir runs/transfer --model openai/clip-vit-base-patch16 \
        --data path/to/source --targets path/to/pets path/to/flowers

All methods, seeds and data sets in one go: `vprompt bench cross-dataset`.
"""

from common import parse, read, read_targets, test, train

from peft_vprompt import MaPLeConfig


#: Embedded tasks with other classes than those of the embedded source.
EMBEDDED = ("toys", "signs")


def main():
    """Train MaPLe on the source, and print the accuracies on its test images and on those of the targets."""
    arguments, training = parse(learning_rate=1e-3, per_device_train_batch_size=32, num_train_epochs=5)
    source = read(arguments.data)
    names = source["train"].features["label"].names
    trainer = train(
        MaPLeConfig(class_names=names, prompt_depth=3), names, arguments.shots[0], source, arguments, training
    )
    print(f"source: {test(trainer, source['test'], names):.1f} %")
    for name, target in read_targets(arguments.targets, EMBEDDED).items():
        others = target.features["label"].names  # each target among its own classes
        print(f"{name}: {test(trainer, target, others):.1f} %")
    trainer.save_model()


if __name__ == "__main__":
    main()
