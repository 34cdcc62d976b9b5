"""`vprompt features`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.markup import escape

from .app import command, console, given, say_named, say_next, say_saved
from .options import LABELS, ImageSize, Machine, Model, option, require_model, takes_data, takes_machine


if TYPE_CHECKING:
    from peft_vprompt.data import DataOptions
    from peft_vprompt.data.encoded import EncodedShards
    from peft_vprompt.experiments.trained import SavedAdapter
    from peft_vprompt.training.feature_folders import FeatureMaker


#: Options of labels and splits that mean nothing before the features are used.
WITHOUT = tuple(name for name in LABELS if name not in ("label_column", "labels_from"))


@command(several_processes=True)
@takes_data(default="none, it is needed", without=WITHOUT)
@takes_machine
def features(
    machine: Machine,
    output: Annotated[Path, option("Folder for the features; an unfinished one is gone on with.")],
    data: "DataOptions | None",
    model: Model = None,
    adapter: Annotated[
        str | None, option("Features as this adapter sees images (folder or Hub id); default: those of the model.")
    ] = None,
    split: Annotated[str | None, option("Split to take; default: all images.", panel="Data")] = None,
    batch_size: Annotated[int, option("Images per forward pass.", panel="Machine")] = 64,
    shard_size: Annotated[int, option("Images of a file of features at most.", panel="Machine")] = 4096,
    image_size: ImageSize = None,
):
    """Compute image features once, in shards on the disk, for training, labels and predictions on any number of images.

    Images may be more than fit in memory or on the disk: parquet files and tar files of the WebDataset form, here or at an
    address (s3://, hf://, https://, ...), and data sets of the Hub are streamed, and nothing of them is kept. Any other data
    will do, too. The folder is then the `--data` of `train`, `pseudo-label`, `evaluate` and `predict`, mapped into memory.

    A run that was stopped goes on where it was when started again in the same way. Started several times, on one machine or
    on several that share the folder, or by `torchrun`, the processes share the work, file by file of the images. Images
    that cannot be read are named, skipped and counted.

    **Examples**

    - `vprompt features --model openai/clip-vit-base-patch16 --data photos --output features`
    - `vprompt features --model openai/clip-vit-base-patch16 --data "hf://datasets/owner/name/data/train-*.parquet"
      --output features`
    - `vprompt features --model openai/clip-vit-base-patch16 --data "s3://bucket/shards/*.tar" --output features`
    - `vprompt train --model openai/clip-vit-base-patch16 --data features --method coop --output runs/coop`
    - `vprompt features --adapter runs/maple --data photos --output maple-features`
    """
    from peft_vprompt.data.options import require_outside
    from peft_vprompt.experiments.trained import SavedAdapter
    from peft_vprompt.training.feature_folders import write_features

    if data is None:
        raise ValueError("Expected images. Give --data: a folder, files of parquet or tar, an address or a data set.")
    if adapter is None:
        require_model(model, data)
    require_outside(data, output)
    saved = SavedAdapter.find(adapter) if adapter is not None else None
    if saved is not None and not given("background"):
        data = replace(data, background=saved.background)
    images = _images(data, split, shard_size)
    maker = _maker(model, saved, image_size, machine)
    found = write_features(maker, images, output, batch_size=batch_size, shard_size=shard_size, progress="Features")
    console.print(f"{found.images:,} images in {found.shards} files, {found.skipped} skipped.", highlight=False)
    if found.problems is not None:
        console.print(f"Skipped images are listed in {escape(str(found.problems))}.", soft_wrap=True)
    say_saved(output)
    if "adapter" in maker.content:  # nothing but the same adapter makes use of its own features
        return
    same = given("model", "image_size", "device", "precision")
    if adapter is not None:
        say_next("predict", "--adapter", adapter, *same, "--data", output, "--output", f"{output}.csv")
    elif images.label is None:
        names = ("--class-names", "names.txt", "--output", f"{output}-labels.safetensors")
        say_next("pseudo-label", *same, "--data", output, *names)
    else:
        say_next("train", *same, "--data", output, "--method", "coop", "--output", f"{output}-coop")


def _images(data: "DataOptions", split: str | None, shard_size: int) -> "EncodedShards":
    """Open the images: as a stream where they can be streamed."""
    from peft_vprompt.data.any_images import load_shards
    from peft_vprompt.data.streams import can_stream, open_stream

    return open_stream(data, split, labelled=True) if can_stream(data) else load_shards(data, split, shard_size)


def _maker(
    model: str | None, saved: "SavedAdapter | None", image_size: int | None, machine: Machine
) -> "FeatureMaker":
    """Load what makes the features."""
    from peft_vprompt.experiments.models import build_model
    from peft_vprompt.export import Classifier
    from peft_vprompt.export.adapter_features import adapter_features
    from peft_vprompt.training.feature_folders import feature_maker
    from peft_vprompt.utils.devices import find_device

    if saved is None:
        place = {"device": find_device(machine.device), "precision": machine.precision}
        bundle = build_model(model, "zero-shot", ("image",), image_size=image_size, **place)
        return feature_maker(bundle.model, bundle.image_processor)
    say_named(saved.config, model is not None or saved.is_embedded)
    return adapter_features(Classifier.of(saved, model, image_size=image_size, **machine._asdict()))
