"""Domain generalisation with the stock Trainer: train on a source, test on images of its classes from other domains.

    python examples/protocols/domain_generalization.py --output_dir runs/domains
    python examples/protocols/domain_generalization.py --output_dir runs/domains --model openai/clip-vit-base-patch16 \
        --data path/to/photos --targets path/to/sketches path/to/paintings

All methods, seeds and data sets in one go: `vprompt bench domain-generalization`.
"""

from common import parse, read, read_targets, test, train

from peft_vprompt import ReadOnlyPromptConfig


#: Embedded tasks with the classes of the embedded source, seen otherwise.
EMBEDDED = ("dusk", "mosaic", "sketch")


def main():
    """Train RPO on the source, and print the accuracies on its test images and on those of the other domains."""
    arguments, training = parse(learning_rate=1e-2, per_device_train_batch_size=32, num_train_epochs=5)
    source = read(arguments.data)
    names = source["train"].features["label"].names
    config = ReadOnlyPromptConfig(class_names=names, num_virtual_tokens=4)
    trainer = train(config, names, arguments.shots[0], source, arguments, training)
    print(f"source: {test(trainer, source['test'], names):.1f} %")
    for name, target in read_targets(arguments.targets, EMBEDDED).items():
        own = target.features["label"].names  # some domains have images of some classes alone
        print(f"{name}: {test(trainer, target, own):.1f} %")
    trainer.save_model()


if __name__ == "__main__":
    main()
