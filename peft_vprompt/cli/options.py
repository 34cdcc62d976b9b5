"""Options that several commands share, and how they are read."""

import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer
from datasets import DatasetDict

from ..build import METHODS
from ..data import DataOptions, load_images, load_unlabelled, read_class_names
from ..demo import demo_task
from ..losses import LOSSES
from ..pseudo_labels import SELECTORS


DATA_HELP = {field.name: field.metadata["help"] for field in fields(DataOptions)}
DEFAULTS = DataOptions("")


def option(help_text: str, *names: str, panel: str | None = None):
    """A typer option."""
    return typer.Option(*names, help=help_text, rich_help_panel=panel)


def _data_option(name: str, *flags: str):
    return option(DATA_HELP[name], *flags, panel="Data")


ClassNames = Annotated[
    Path | None, option("File of class names in label order: one per line, or a JSON list.", panel="Data")
]

#: Options that say how to read `--data`, by the field of `DataOptions` that they set.
DATA_OPTIONS = {
    "benchmark": Annotated[str | None, _data_option("benchmark")],
    "image_column": Annotated[str, _data_option("image_column")],
    "label_column": Annotated[str, _data_option("label_column")],
    "train_split": Annotated[str, _data_option("train_split")],
    "test_split": Annotated[str, _data_option("test_split")],
    "split_column": Annotated[str | None, _data_option("split_column")],
    "where": Annotated[list[str] | None, option(DATA_HELP["where"] + " May be repeated.", "--where", panel="Data")],
    "min_images": Annotated[int, _data_option("min_images")],
    "class_names": ClassNames,
    "clean_names": Annotated[bool, _data_option("clean_names", "--clean-names/--raw-names")],
    "test_fraction": Annotated[float, _data_option("test_fraction")],
}
LOSS_NAMES = ", ".join(LOSSES)
Loss = Annotated[
    str | None, option(f"One of: {LOSS_NAMES}. Default: the model's own cross-entropy.", panel="Noisy labels")
]
Q = Annotated[float | None, option("q of the loss gce or phuber-gce.", "--q", panel="Noisy labels")]
LossOptions = Annotated[
    list[str] | None,
    option("Parameter of the loss, as NAME=VALUE. May be repeated.", "--loss-set", panel="Noisy labels"),
]
Selector = Annotated[
    str, option(f"Which images that zero-shot labelled to take: {', '.join(SELECTORS)}.", panel="No labels")
]
Model = Annotated[str | None, option("Folder or Hub id of a CLIP or ViT; default: the embedded one.")]
MethodName = Annotated[str, option(f"One of: {', '.join(METHODS)}.")]
Shots = Annotated[int, option("Training images per class; 0 for all.")]
Seed = Annotated[int, option("Seed of the shots, the prompts and the order of images.")]


def takes_data(default: str = "the embedded task", without: tuple[str, ...] = ()) -> Callable:
    """Give a command `--data` and the options that say how to read it; they arrive as one argument, `data`.

    That argument is a `DataOptions`, or None without `--data`.

    Args:
        default: what is used without `--data`, for the help.
        without: options of `DATA_OPTIONS` that the command has no use for.
    """
    names = [name for name in DATA_OPTIONS if name not in without]
    data_path = Annotated[str | None, option(f"{DATA_HELP['path']} Default: {default}.")]

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def wrapped(*, data: str | None, **values):
            how = {name: values.pop(name) for name in names}
            return command(data=read_data_options(data, **how), **values)

        def keyword(name, kind, default):
            return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)

        own = [p.replace(kind=p.KEYWORD_ONLY) for p in inspect.signature(command).parameters.values()]
        own = [keyword("data", data_path, None) if p.name == "data" else p for p in own]
        defaults = {name: getattr(DEFAULTS, name) for name in names} | {"where": None}
        shared = [keyword(name, DATA_OPTIONS[name], defaults[name]) for name in names]
        wrapped.__signature__ = inspect.Signature([*own, *shared])
        wrapped.__annotations__ = {p.name: p.annotation for p in (*own, *shared)}
        return wrapped

    return decorate


def read_data_options(
    data: str | None, where: list[str] | None, class_names: Path | None, **values
) -> DataOptions | None:
    """The data options, or None for the embedded task, which takes none."""
    values |= {"where": tuple(where or ()), "class_names": read_class_names(class_names) if class_names else None}
    changed = [name for name, value in values.items() if value != getattr(DEFAULTS, name)]
    if data is None and changed:
        raise ValueError(f"Options that say how to read data need --data. Received: {', '.join(changed)}.")
    return None if data is None else DataOptions(data, **values)


def read_data(options: DataOptions | None, unlabelled: bool = False) -> DatasetDict:
    """The images that the options name, or the embedded task; on demand without the labels of the training images."""
    if options is not None:
        return load_unlabelled(options) if unlabelled else load_images(options)
    train = demo_task("train")
    return DatasetDict(train=train.select_columns("image") if unlabelled else train, test=demo_task("test"))


def parse_values(items: list[str] | None, flag: str = "--set") -> dict:
    """Read NAME=VALUE items; values are JSON where they can be, else text."""
    config = {}
    for item in items or []:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise ValueError(f"{flag} takes NAME=VALUE. Received: {item!r}.")
        try:
            config[name] = json.loads(value)
        except json.JSONDecodeError:
            config[name] = value
    return config


def loss_options(q: float | None, items: list[str] | None) -> dict:
    """Parameters of the loss."""
    return ({} if q is None else {"q": q}) | parse_values(items, "--loss-set")


def split_list(items: str) -> list[str]:
    """The items of a list separated by commas."""
    return [item.strip() for item in items.split(",") if item.strip()]


def saved_run(adapter: str) -> dict | None:
    """What `vprompt train` wrote beside the adapter, if it did."""
    path = Path(adapter) / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def saved_data_options(saved: dict) -> DataOptions | None:
    """The data options of a saved run; JSON has turned their tuples into lists."""
    if saved["data"] is None:
        return None
    return DataOptions(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in saved["data"].items()}
    )
