"""Options that several commands share, and how they are read."""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from .app import console
from .choices import DATA, METHODS, TEMPLATES


if TYPE_CHECKING:
    from datasets import DatasetDict

    from peft_vprompt.data import DataOptions
    from peft_vprompt.utils.precision import Precision


def option(help_text: str, *names: str, panel: str | None = None):
    """Return a typer option."""
    return typer.Option(*names, help=help_text, rich_help_panel=panel)


def _data_option(name: str, *flags: str):
    return option(DATA[name]["help"], *flags, panel="Data")


ClassNames = Annotated[
    Path | None,
    option(
        "File of class names. A list, for numbers in their order: one name per line, or JSON. By folder or number: JSON "
        "{key: name}, or two columns.",
        panel="Data",
    ),
]

#: Options that say how to read `--data`, by the field of `DataOptions` that they set.
DATA_OPTIONS = {
    "benchmark": Annotated[str | None, _data_option("benchmark")],
    "image_column": Annotated[str, _data_option("image_column")],
    "label_column": Annotated[str, _data_option("label_column")],
    "multi_label": Annotated[bool, _data_option("multi_label", "--multi-label")],
    "label_separator": Annotated[str, _data_option("label_separator")],
    "label_columns": Annotated[
        list[str] | None, option(DATA["label_columns"]["help"] + " May be repeated.", "--label-columns", panel="Data")
    ],
    "labels_from": Annotated[str, _data_option("labels_from")],
    "train_split": Annotated[str, _data_option("train_split")],
    "test_split": Annotated[str, _data_option("test_split")],
    "split_column": Annotated[str | None, _data_option("split_column")],
    "where": Annotated[list[str] | None, option(DATA["where"]["help"] + " May be repeated.", "--where", panel="Data")],
    "min_images": Annotated[int, _data_option("min_images")],
    "class_names": ClassNames,
    "clean_names": Annotated[bool, _data_option("clean_names", "--clean-names/--raw-names")],
    "background": Annotated[str, _data_option("background")],
    "skip_bad_images": Annotated[bool, _data_option("skip_bad_images", "--skip-bad-images")],
    "follow_urls": Annotated[bool, _data_option("follow_urls", "--follow-urls")],
    "test_fraction": Annotated[float, _data_option("test_fraction")],
    "val_fraction": Annotated[float, _data_option("val_fraction")],
}
#: Options of images that are of several classes or none, for commands that take one class for each.
SEVERAL_LABELS = ("multi_label", "label_separator", "label_columns")
#: Options of images' labels and splits, for commands that read images alone.
LABELS = (
    *("benchmark", "label_column", *SEVERAL_LABELS, "labels_from", "train_split", "test_split", "min_images"),
    *("class_names", "clean_names", "skip_bad_images", "test_fraction", "val_fraction"),
)
#: Where there are images of one's own and no model: what is known to work, with a text tower and without.
CLIP_MODELS = ("openai/clip-vit-base-patch16", "google/siglip-base-patch16-224")
CLASSIFIER_MODELS = ("google/vit-base-patch16-224-in21k", "facebook/dinov2-base")
Model = Annotated[
    str | None,
    option(
        f"Folder or Hub id (id@revision) of a base model, such as {CLIP_MODELS[0]}. Needed with --data; the embedded task "
        "has its own."
    ),
]
Device = Annotated[
    str,
    option("Where to compute: auto (a graphics card if there is one), cpu, cuda, cuda:1 or mps.", panel="Machine"),
]
ImageSize = Annotated[
    int | None,
    option("Edge of the images in pixels, with interpolated positions. Default: the model's own.", panel="Machine"),
]
ReportTo = Annotated[
    list[str] | None,
    option("Log to tensorboard, wandb, trackio or another tracker of the Trainer. May be repeated.", panel="Machine"),
]
PrecisionName = Annotated[
    str,
    option(
        "What the frozen weights are held in: auto (bf16 where the machine is faster in it), float32, bf16 or fp16. What is "
        "trained stays in float32.",
        panel="Machine",
    ),
]
PushToHub = Annotated[
    str | None,
    option(
        "Publish the adapter there when all is done: owner/name on the Hub. Name and log-in are checked before the training.",
        panel="Hub",
    ),
]
Private = Annotated[bool, option("Make a new repository private.", "--private", panel="Hub")]
Language = Annotated[str | None, option("Language of the class names, such as en, for the card.", panel="Hub")]
License = Annotated[str | None, option("License of the adapter, such as mit, for the card.", panel="Hub")]
MethodName = Annotated[str, option(f"One of: {', '.join(METHODS)}. What they are: `vprompt methods`.")]
Shots = Annotated[int, option("Training images per class; 0 for all.")]
Epochs = Annotated[int | None, option("Passes over the training images.", panel="Recipe")]
LearningRate = Annotated[float | None, option("Learning rate of the optimizer.", panel="Recipe")]
BatchSize = Annotated[int | None, option("Images per step.", panel="Recipe")]
Config = Annotated[
    list[str] | None,
    option("Field of the method's config, as NAME=VALUE. May be repeated.", "--set", panel="Recipe"),
]
ClassDescriptions = Annotated[
    Path | None,
    option(
        "JSON file of sentences by class name, {class: [sentence, ...]}: they stand for the templates, for zero-shot and "
        "wherever the text side is not learned.",
        panel="Data",
    ),
]
Templates = Annotated[
    list[str] | None,
    option(
        "Text around class names, for zero-shot and wherever the text side is not learned: such as 'a photo of a {}.', or one of "
        f"{', '.join(TEMPLATES)}. May be repeated: several are averaged.",
        "--template",
        panel="Data",
    ),
]
#: Changes to the authors' recipe and to the method's config: type and default of each option.
RECIPE_OPTIONS = {
    "epochs": (Epochs, None),
    "lr": (LearningRate, None),
    "batch_size": (BatchSize, None),
    "config": (Config, None),
    "class_descriptions": (ClassDescriptions, None),
}
Cached = Annotated[bool, option("Augment every training image once and keep the pixels.", "--cached")]
Views = Annotated[
    int | None,
    option(
        "Cached augmentations of every training image; default: one, and for tip-adapter, clap and their kin their authors' "
        "number."
    ),
]
Workers = Annotated[
    str,
    option(
        "Processes that load images: a number, or auto for as many as the step needs (none for features).",
        panel="Machine",
    ),
]
Wait = Annotated[
    bool,
    option(
        "Wait while another process writes to the output; else it is an error that names the process.",
        "--wait",
        panel="Machine",
    ),
]
Storage = Annotated[
    str | None,
    option(
        "URL of a database that keeps the book of the grid, such as postgresql://user@host/name. Default: a journal file in "
        "the output folder. The folder is shared by all workers in both cases.",
        panel="Several workers",
    ),
]
Status = Annotated[
    bool,
    option(
        "Show which cells of the grid are done, wait or failed and who works on which, and compute nothing.",
        "--status",
        panel="Several workers",
    ),
]
Seed = Annotated[int, option("Seed of the shots, the prompts and the order of images.")]


def bundle(argument: str, options: dict[str, tuple], read: Callable) -> Callable:
    """Let a command take several options as one argument.

    Args:
        argument: the command's argument, in whose place the options are shown.
        options: type and default of each option, by its name.
        read: makes the argument's value of the options' values.
    """

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def wrapped(**values):
            given = {name: values.pop(name) for name in options}
            return command(**{argument: read(**given)}, **values)

        parameters = {
            name: p.replace(kind=p.KEYWORD_ONLY) for name, p in inspect.signature(command).parameters.items()
        }
        shown = []
        for name, parameter in parameters.items():
            shown += [parameter] if name != argument else [
                inspect.Parameter(option_name, parameter.kind, default=default, annotation=kind)
                for option_name, (kind, default) in options.items()
            ]  # fmt: skip
        # pyrefly: ignore[missing-attribute]  # functions take any attribute; Typer reads this one
        wrapped.__signature__ = inspect.Signature(shown)
        wrapped.__annotations__ = {p.name: p.annotation for p in shown}
        return wrapped

    return decorate


def takes_data(default: str = "the embedded task", without: tuple[str, ...] = ()) -> Callable:
    """Give a command `--data` and the options that say how to read it, as `data`: a `DataOptions`, or None without.

    Args:
        default: what is used without `--data`, for the help.
        without: options of `DATA_OPTIONS` that the command has no use for.
    """
    defaults = {name: DATA[name]["default"] for name in DATA_OPTIONS} | dict.fromkeys(("where", "label_columns"))
    path = Annotated[str | None, option(f"{DATA['path']['help']} Default: {default}.")]
    shown = {name: (kind, defaults[name]) for name, kind in DATA_OPTIONS.items() if name not in without}
    return bundle("data", {"data": (path, None)} | shown, read_data_options)


def takes_recipe(without: tuple[str, ...] = ()) -> Callable:
    """Give a command the options of a recipe, as `recipe`: fields of `Settings`.

    Args:
        without: options of `RECIPE_OPTIONS` that the command has no use for.
    """
    return bundle("recipe", {name: row for name, row in RECIPE_OPTIONS.items() if name not in without}, _read_recipe)


def _read_recipe(
    lr: float | None = None, config: list[str] | None = None, class_descriptions: Path | None = None, **values
) -> dict:
    from peft_vprompt.utils.validation import parse_fields

    described = {} if class_descriptions is None else {"class_descriptions": str(class_descriptions)}
    return values | {"learning_rate": lr, "config": parse_fields(config, "--set") | described}


class Machine(NamedTuple):
    """Where to compute, and in what the frozen weights are held."""

    device: str
    precision: "Precision"


def takes_machine(command: Callable) -> Callable:
    """Give a command `--device` and `--precision`, as `machine`."""
    return bundle("machine", {"device": (Device, "auto"), "precision": (PrecisionName, "auto")}, _read_machine)(
        command
    )


def _read_machine(device: str, precision: str) -> Machine:
    from peft_vprompt.utils.devices import find_device
    from peft_vprompt.utils.precision import find_precision

    place = find_device(device)
    found = find_precision(precision, place)
    if precision == "auto" and found != "float32":
        console.print(f"Frozen weights are held in {found}, in which the {place.type} computes (--precision float32).")
    return Machine(device, found)


def read_data_options(
    data: str | None,
    where: list[str] | None,
    class_names: Path | None = None,
    label_columns: list[str] | None = None,
    **values,
) -> "DataOptions | None":
    """Make the data options of their values; None for the embedded task, which takes none.

    Raises:
        ValueError: there is no path, but an option that says how to read it.
    """
    from peft_vprompt.data import DataOptions, read_class_names

    defaults = DataOptions(".")  # any: its other fields are looked at
    values |= {"where": tuple(where or ()), "class_names": read_class_names(class_names) if class_names else None}
    values |= {"label_columns": tuple(label_columns or ())}
    changed = [name for name, value in values.items() if value != getattr(defaults, name)]
    if data is None and changed:
        raise ValueError(f"Options that say how to read data need --data. Received: {', '.join(changed)}.")
    return None if data is None else DataOptions(data, **values)


def read_data(
    options: "DataOptions | None", output: Path | None = None, unlabelled: bool = False, validation: bool = False
) -> "DatasetDict":
    """Read the images that the options name, or draw the embedded task.

    Args:
        options: None for the embedded task.
        output: where the command writes, which is no part of the data.
        unlabelled: leave out the labels of the training images.
        validation: read the split `validation`, too, where the data have one.
    """
    from datasets import DatasetDict

    from peft_vprompt.data import load_images, load_unlabelled
    from peft_vprompt.data.options import require_outside
    from peft_vprompt.demo import demo_task

    require_outside(options, output)
    if options is not None:
        return load_unlabelled(options) if unlabelled else load_images(options, validation)
    train = demo_task("train")
    return DatasetDict(train=train.select_columns("image") if unlabelled else train, test=demo_task("test"))


def read_workers(workers: str) -> Any:
    """Return the number that was typed, or what else; the package refuses all but "auto"."""
    try:
        return int(workers)
    except ValueError:
        return workers


def read_names(path: Path | None, known: Sequence[str] | None = None) -> list[str] | None:
    """Return the classes that a file lists, in label order, maybe some of those that an adapter knows; None without a file."""
    from peft_vprompt.data import read_class_names
    from peft_vprompt.data.class_names import in_label_order

    return in_label_order(read_class_names(path), known or ()) if path else None


def require_model(model: object, data: "DataOptions | None", method: str | None = None) -> None:
    """Refuse images of one's own without a base model: the embedded one knows the embedded task alone.

    Raises:
        ValueError: names models that are known to work.
    """
    if model or data is None:
        return
    classifier = method is not None and METHODS.get(method, {}).get("baseline", False)
    choices = CLASSIFIER_MODELS if classifier else CLIP_MODELS
    raise ValueError(
        "Expected a base model for images of your own. Received: --data without --model. Two good choices: "
        f"--model {choices[0]} or --model {choices[1]}."
    )


#: Options of a command that say which images, for `app.given`.
SAME_IMAGES = ("data", *DATA_OPTIONS)


def split_list(flag: str, items: str) -> list[str]:
    """Return the items of a list separated by commas.

    Raises:
        ValueError: there is none; names the option.
    """
    found = [item.strip() for item in items.split(",") if item.strip()]
    if not found:
        raise ValueError(f"{flag} takes at least one item, several separated by commas. Received: {items!r}.")
    return found


def split_numbers(flag: str, items: str, kind: type = float) -> list:
    """Return the numbers of a list separated by commas.

    Raises:
        ValueError: something else, or none; names the option.
    """
    found = split_list(flag, items)
    try:
        numbers = [kind(item) for item in found]
        if kind is float and not all(map(math.isfinite, numbers)):
            raise ValueError(f"{items!r} has numbers that are not finite.")
        return numbers
    except ValueError as error:
        raise ValueError(
            f"{flag} takes {'whole ' if kind is int else ''}numbers separated by commas. Received: {items!r}."
        ) from error


def describe_data(options: "DataOptions | None") -> dict | None:
    """Say where the images are, for the results; None for the embedded task."""
    from peft_vprompt.data.options import describe

    return None if options is None else describe(options)
