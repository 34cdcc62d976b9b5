"""`DataOptions`: where labelled images are and how to read them, and how results say so."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from PIL import ImageColor

from ..utils.fields import check_fields
from ..utils.validation import MAX_SEED
from .class_names import in_label_order
from .readers import is_local


#: The one test split that is made when the data has none.
DEFAULT_TEST_SPLIT = "test"


@dataclass(frozen=True)
class DataOptions:
    """Where labelled images are and how to read them.

    Raises:
        ValueError: a value of another type than its field's, or options that contradict each other; names the field.
    """

    path: str = field(
        metadata={
            "help": "Image folder (or zip of one), table (.csv, .tsv, .jsonl, .parquet; or folder of them), .tar files, "
            "folder of `save_to_disk` or of `vprompt features`, a pattern with wildcards, or data set id on the Hub.",
            "form": "filled",
        }
    )
    benchmark: str | None = field(
        default=None,
        metadata={
            "help": "Task of coop-11, imagenet-shifts, fgvc or vtab-1k, such as coop-11/caltech101, with the published files "
            "in the folder `--data`, read and preprocessed as published. `--train-split trainval` trains on the validation "
            "images too."
        },
    )
    image_column: str = field(default="image", metadata={"help": "Column of the images (Image, bytes or paths)."})
    label_column: str = field(default="label", metadata={"help": "Column of the classes (names or numbers)."})
    multi_label: bool = field(
        default=False,
        metadata={
            "help": "Images are of several classes or none: the column of classes holds lists, or names with separators; or "
            "`label_columns` name a column for each class."
        },
    )
    label_separator: str = field(
        default=";", metadata={"help": "What stands between the names of several classes in one cell."}
    )
    label_columns: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Columns of 1, 0 and empty cells (not known), one for each class; with wildcards."},
    )
    labels_from: str = field(
        default="path",
        metadata={
            "help": "Which folders are the class where class folders nest: path (the whole path below the root), first or last."
        },
    )
    train_split: str = field(default="train", metadata={"help": "Split to learn from."})
    test_split: str = field(
        default=DEFAULT_TEST_SPLIT,
        metadata={"help": "Split to test on; without a split `test`, cut off the training split."},
    )
    split_column: str | None = field(default=None, metadata={"help": "Column that says which split a row is in."})
    where: tuple[str, ...] = field(default=(), metadata={"help": "Keep the rows with COLUMN=VALUE or COLUMN!=VALUE."})
    min_images: int = field(default=0, metadata={"help": "Leave out classes with fewer images.", "min": 0})
    class_names: tuple[str, ...] | dict[str, str] | None = field(
        default=None, metadata={"help": "Names in label order, or by folder or number."}
    )
    clean_names: bool = field(
        default=True,
        metadata={
            "help": "Write hyphens and underscores of names as spaces (not where class names are given for numbers)."
        },
    )
    background: str = field(default="white", metadata={"help": "Colour behind transparent images: a name or #rrggbb."})
    skip_bad_images: bool = field(
        default=False,
        metadata={"help": "Go on without images that cannot be read, and list them; decodes all images."},
    )
    follow_urls: bool = field(
        default=False, metadata={"help": "Read images from addresses (https://...) in the column of images."}
    )
    test_fraction: float = field(
        default=0.3, metadata={"help": "Share of each class in a test split we make; 0 to train on all images."}
    )
    val_fraction: float = field(
        default=0.0,
        metadata={"help": "Share of each class of the training images to hold out as the split validation."},
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of splits we make.", "min": 0, "max": MAX_SEED})

    def __post_init__(self):
        if isinstance(self.path, os.PathLike):
            object.__setattr__(self, "path", os.fspath(self.path))
        check_fields(self)
        try:
            ImageColor.getrgb(self.background)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Expected background as the name of a colour, such as white, or #rrggbb. Received: {self.background!r}."
            ) from error
        if self.benchmark is not None and self.val_fraction:
            raise ValueError(
                "The tasks of a benchmark have their published validation images, and none are held out. Received: "
                f"val_fraction={self.val_fraction}. Leave it out (--val-fraction)."
            )
        if not self.label_separator.strip() and self.label_separator != " ":
            raise ValueError(f"Expected a label_separator such as ';'. Received: {self.label_separator!r}.")
        if self.multi_label:
            if self.benchmark is not None:
                raise ValueError("The tasks of a benchmark have one class for each image. Leave multi_label out.")
            return
        if self.label_columns or self.label_separator != ";":
            raise ValueError(
                "Expected multi_label=True (--multi-label) with label_columns or label_separator, which are for images of "
                "several classes. Received one of them without it."
            )

    @property
    def listed_names(self) -> list[str] | None:
        """Names of the classes in label order, where they were given."""
        return None if self.class_names is None else in_label_order(self.class_names)


def require_outside(options: DataOptions | None, *outputs: str | Path | None) -> None:
    """Refuse to write to the folder of the data, where plots would be read as images and results as tables.

    Args:
        options: where the data are; None for the embedded task.
        outputs: files or folders that a command writes; None for one that was not asked for.

    Raises:
        ValueError: one of them lies there; says which.
    """
    if options is None or not is_local(options.path):
        return
    data = Path(os.path.realpath(os.path.expanduser(options.path)))
    for output in filter(None, outputs):
        place = Path(os.path.realpath(output))
        written = [place, *place.parents, place / "plot.png", place / "run" / "plot.png"]
        if data in written if data.exists() else any(fnmatch(str(path), str(data)) for path in written):
            root = next(path for path in (data, *data.parents) if path.exists())
            raise ValueError(
                f"Expected an output outside of the data, where its files would be read as more of them. Received: {output}, "
                f"which lies in {options.path}. Take a place beside it, such as {root.parent / f'{root.name}-{place.name}'}."
            )


# ---- where the data are, in files ---------------------------------------------------------------------------------


def describe(options: DataOptions) -> dict:
    """Return the options as values that JSON holds, with the whole path of data that are on this machine."""
    path = options.path
    return asdict(options) | {"path": os.path.abspath(os.path.expanduser(path)) if is_local(path) else path}


def portable(description: dict | None, folder: str | Path) -> dict | None:
    """Return what `describe` gives with the path relative to a folder, to be written in a file there.

    A relative path begins with a dot, which no id on the Hub does. Links are followed but for that of a file, whose name
    says what it is: in the cache of the Hub the file itself has no ending.
    """
    if description is None or not os.path.isabs(description.get("path", "")):
        return description
    place = description["path"]
    is_file = os.path.isfile(place)
    real = os.path.join(os.path.realpath(Path(place).parent), Path(place).name) if is_file else os.path.realpath(place)
    path = Path(os.path.relpath(real, os.path.realpath(folder))).as_posix()
    return description | {"path": path if path.startswith(".") else f"./{path}"}


def same_images(one: DataOptions, other: DataOptions) -> bool:
    """Tell whether two options name the same place, through links too, and the same task or none."""
    places = {os.path.realpath(describe(options)["path"]) for options in (one, other)}
    return len(places) == 1 and one.benchmark in (None, other.benchmark)


#: Options by which a split that we make is another one: the first say how it is made, the others of which rows.
SPLIT_OPTIONS = ("test_split", "split_column", "test_fraction", "val_fraction", "split_seed")
ROW_OPTIONS = ("label_column", "multi_label", "label_columns", "labels_from", "where", "min_images", "class_names")


def as_trained(options: DataOptions, trained: DataOptions, said: Collection[str]) -> DataOptions:
    """Return options for the images of a training that take over from it what is not said.

    Args:
        options: where the images are, and what is said of them.
        trained: options of the training.
        said: names of the options that were given, be it with the value that they have by default.

    Raises:
        ValueError: they say that the images are split in another way than in the training.
    """
    for name in SPLIT_OPTIONS:
        if name in said and getattr(options, name) != getattr(trained, name):
            raise ValueError(
                f"Expected the images of the training to be split as in the training, with {name}={getattr(trained, name)!r}. "
                f"Received: {name}={getattr(options, name)!r}, by which images that were trained on would be test images. Leave "
                "it out, or evaluate on other data."
            )
    return replace(trained, path=options.path, **{name: getattr(options, name) for name in said})


def described(description: dict, folder: str | Path) -> DataOptions:
    """Return the options that a description says, read from a file in `folder`; JSON has made lists of tuples."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in description.items()
    }
    if values["path"].startswith("."):
        values["path"] = os.path.normpath(os.path.join(os.path.realpath(folder), values["path"]))
    return DataOptions(**values)
