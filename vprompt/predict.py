"""`vprompt predict`."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.markup import escape

from .app import command, console, given, say_named, say_next, say_saved
from .options import (
    LABELS,
    ClassDescriptions,
    ImageSize,
    Machine,
    Templates,
    Wait,
    option,
    read_names,
    takes_data,
    takes_machine,
)


if TYPE_CHECKING:
    from collections.abc import Callable

    from peft_vprompt.data import DataOptions
    from peft_vprompt.export.predictions import Summary


@command(several_processes=True)
@takes_data(default="none, it is needed; one image will do, too", without=LABELS)
@takes_machine
def predict(
    machine: Machine,
    data: "DataOptions | None",
    output: Annotated[Path, option("File for the predictions: .csv, .jsonl or .parquet.")],
    adapter: Annotated[
        str | None, option("Folder or Hub id (id@revision) of a trained adapter; zero-shot without one.")
    ] = None,
    model: Annotated[str | None, option("Base model; default: the one the adapter names.")] = None,
    split: Annotated[str | None, option("Split to take; default: all images.", panel="Data")] = None,
    stream: Annotated[
        bool,
        option(
            "Read parquet and tar files, or a data set of the Hub, image by image without keeping anything of them; an address is "
            "always read so.",
            "--stream",
            panel="Data",
        ),
    ] = False,
    class_names: Annotated[
        Path | None,
        option("File of class names to tell apart, one per line or JSON; default: all that the adapter knows."),
    ] = None,
    template: Templates = None,
    class_descriptions: ClassDescriptions = None,
    top_k: Annotated[int, option("Labels of each image.")] = 1,
    embeddings: Annotated[bool, option("Write image features, too; to .jsonl or .parquet.", "--embeddings")] = False,
    batch_size: Annotated[int, option("Images per forward pass.", panel="Machine")] = 32,
    image_size: ImageSize = None,
    wait: Wait = False,
):
    """Classify any images, with a trained adapter or by zero-shot: one row for each image, with its file name.

    Images need no labels: one file, a folder and all folders in it, a pattern, a table, an archive or a data set. Those
    that cannot be read are named, skipped and counted. Files at an address, and with `--stream` any parquet and tar files, are
    read without being kept; a folder of `vprompt features` stands for its images. A run that was stopped goes on where it was when started again in
    the same way, and gives the same file.

    **Examples**

    - `vprompt predict --adapter runs/a --data photos --output predictions.csv --top-k 3`
    - `vprompt predict --adapter runs/a --data photo.jpg --output one.csv`
    - `vprompt predict --adapter runs/a --data "photos/2026-*/*.jpg" --output predictions.jsonl`
    - `vprompt predict --adapter runs/a --data photos --class-names other.txt --output others.csv`
    - `vprompt predict --model openai/clip-vit-base-patch16 --data photos --class-names names.txt --template ensemble-80
      --output zero-shot.csv`
    - `vprompt predict --adapter me/adapter --data images.parquet --output features.parquet --embeddings`
    - `torchrun --nproc_per_node 2 -m peft_vprompt predict --adapter runs/a --data photos --output predictions.csv`
    - `vprompt predict --adapter runs/a --data "s3://bucket/shards/*.tar" --output predictions.parquet`
    - `vprompt predict --adapter runs/a --data features --output predictions.csv`
    """
    from peft_vprompt.data.options import require_outside
    from peft_vprompt.experiments.results import require_own
    from peft_vprompt.experiments.templates import read_templates, set_templates
    from peft_vprompt.experiments.trained import SavedAdapter
    from peft_vprompt.export import Classifier, PredictOptions
    from peft_vprompt.export.tables import is_predictions, require_format

    if data is None:
        raise ValueError(
            "Expected images to classify. Give --data: a file, a folder, a pattern, a table or a data set."
        )
    options = PredictOptions(top_k, embeddings, batch_size)
    require_format(output, embeddings)
    require_own(output, "predictions", is_predictions)
    require_outside(data, output)
    saved = SavedAdapter.find(adapter) if adapter is not None else None
    names = read_names(class_names, saved.known_classes if saved else None)
    if saved is None and (model is None or names is None):
        raise ValueError(
            "Expected --adapter, or --model and --class-names for zero-shot. Received no adapter, and not both of the others."
        )
    described = class_descriptions is not None
    templates = read_templates(template, saved.benchmark if saved else None, described)
    if saved is not None:
        say_named(saved.config, model is not None or saved.is_embedded)
        if not given("background"):
            data = replace(data, background=saved.background)
    write = _prepared(data, split, stream, machine)
    place: dict[str, Any] = {"image_size": image_size, "class_descriptions": class_descriptions, **machine._asdict()}
    if saved is None:
        classifier = Classifier.zero_shot(model, names or [], template=templates, **place)
    else:
        classifier = Classifier.of(saved, model, names, **place)
        if templates is not None:
            set_templates(classifier.model, templates)
    found = write(classifier, output=output, options=options, progress="Predict", wait=wait)
    shown = ", ".join(f"{label} {count}" for label, count in list(found.labels.items())[:8])
    console.print(
        f"{found.images} images, {found.skipped} skipped. Most often: {escape(shown)}"
        f"{', ...' if len(found.labels) > 8 else '.'}",
        soft_wrap=True,
        highlight=False,
    )
    if found.problems is not None:
        console.print(f"Skipped images are listed in {escape(str(found.problems))}.", soft_wrap=True)
    say_saved(output)
    if adapter is None:
        say_next(
            "train", "--model", model, "--data", "path/to/labelled", "--method", "maple", "--output", "runs/maple"
        )
        return
    if template or described:  # which the exported model would not have
        say_next("inspect", adapter)
        return
    say_next(
        "export",
        "--adapter",
        adapter,
        *given("model", "class_names", "image_size"),
        "--output",
        f"{output.stem}-model",
    )


def _prepared(data: "DataOptions", split: str | None, stream: bool, machine: Machine) -> "Callable[..., Summary]":
    """Open the images, or their features, and return what writes predictions for them with a classifier."""
    from peft_vprompt.data.any_images import load_any
    from peft_vprompt.data.feature_folders import is_feature_folder
    from peft_vprompt.data.streams import can_stream, open_stream
    from peft_vprompt.export import predict as predict_images
    from peft_vprompt.export.streamed import features_of, predict_features, predict_stream
    from peft_vprompt.utils.processes import all_processes

    streams = stream or "://" in data.path
    processes = all_processes(machine.device)
    if processes.count > 1 and (streams or is_feature_folder(data.path)):
        raise ValueError(
            "Expected images that the processes can share out. Received: streamed images or a folder of features, which one "
            "process classifies. Start it without torchrun or accelerate launch; of streamed images, the processes of `vprompt "
            "features` share the work."
        )
    if is_feature_folder(data.path):
        return partial(predict_features, features=features_of(data, split))
    if stream and not can_stream(data):
        raise ValueError(
            f"Expected files of parquet or tar, or a data set of the Hub, to stream. Received: --stream --data {data.path}. Leave "
            "--stream out."
        )
    if streams:
        return partial(predict_stream, images=open_stream(data, split))
    return partial(predict_images, images=load_any(data, split), processes=processes)
