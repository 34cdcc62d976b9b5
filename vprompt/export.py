"""`vprompt export`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.markup import escape

from .app import command, console, given, say_named, say_next_line
from .options import SEVERAL_LABELS, ImageSize, Wait, option, read_names, takes_data


if TYPE_CHECKING:
    from peft_vprompt.data import DataOptions
    from peft_vprompt.export import Classifier, Exported


@command
@takes_data(default="none", without=("benchmark", "class_names", "train_split", *SEVERAL_LABELS))
def export(
    adapter: Annotated[str, option("Folder or Hub id (id@revision) of a trained adapter.")],
    output: Annotated[Path, option("Folder for the model, its labels, its preprocessing and predict.py.")],
    data: "DataOptions | None",
    format: Annotated[
        str,
        option(
            "onnx or torch-export: one graph with the prompts inside, of every method; plain: a model of transformers, where "
            "the adapter is a change of weights and class features alone."
        ),
    ] = "onnx",
    model: Annotated[str | None, option("Base model; default: the one the adapter names.")] = None,
    split: Annotated[
        str | None, option("Split of --data to compare on; default: the test split.", panel="Data")
    ] = None,
    class_names: Annotated[
        Path | None,
        option("File of class names to tell apart, one per line or JSON; default: all that the adapter knows."),
    ] = None,
    bf16: Annotated[bool, option("Store the weights of a plain model in bfloat16.", "--bf16")] = False,
    int8: Annotated[bool, option("Store the weights of an ONNX model in 8 bits.", "--int8")] = False,
    image_size: ImageSize = None,
    wait: Wait = False,
):
    """Write a trained adapter as a model that runs without this package, and make sure that it says the same.

    The folder holds the model, `labels.json`, `preprocessor_config.json` and `predict.py`, which needs Pillow and NumPy
    beside onnxruntime, torch or transformers. Logits are compared with the adapter's before anything is in its place;
    with `--data`, labelled images tell what `--int8` or `--bf16` cost.

    **Examples**

    - `vprompt export --adapter runs/a --output model`
    - `vprompt export --adapter runs/a --output small --int8 --data path/to/images`
    - `vprompt export --adapter runs/coop --output plain --format plain`
    - `python model/predict.py photo.jpg --top-k 3`
    """
    from peft_vprompt.data import load_split
    from peft_vprompt.data.feature_folders import require_images
    from peft_vprompt.experiments.trained import SavedAdapter
    from peft_vprompt.export import Classifier
    from peft_vprompt.export import export as write_export

    saved = SavedAdapter.find(adapter)
    say_named(saved.config, model is not None or saved.is_embedded)
    names = read_names(class_names, saved.known_classes)
    classifier = Classifier.of(saved, model, names, image_size=image_size, device="cpu", precision="float32")
    if data is not None and not given("background"):
        data = replace(data, background=saved.background)
    rows = None if data is None else load_split(data, split, classifier.class_names)
    require_images(rows, ", by which the export is compared")
    exported = write_export(classifier, output, format, bf16=bf16, int8=int8, wait=wait)
    console.print(
        f"Saved in {escape(str(output))}: {exported.bytes / 1e6:.1f} MB, logits within {exported.difference:.1g} of the adapter's"
        f"{' before the weights were rounded' if bf16 or int8 else ''}.",
        soft_wrap=True,
        highlight=False,
    )
    if rows is not None:
        _say_cost(classifier, exported, rows)
    elif bf16 or int8:
        console.print("What rounding costs is told with labelled images: --data path/to/images.")
    say_next_line("python", exported.script, "path/to/photo.jpg")


def _say_cost(classifier: "Classifier", exported: "Exported", rows) -> None:
    """Print how the exported model does on labelled images, beside the adapter."""
    from peft_vprompt.export.comparison import compare

    found = compare(classifier, exported.predictor().logits, rows, progress="Compare")
    console.print(
        f"On {found.images} images: accuracy {found.accuracy:.2f} %, the adapter's {found.adapter_accuracy:.2f} %; the same "
        f"label for {found.agreement:.2f} %.",
        soft_wrap=True,
        highlight=False,
    )
