"""Labelled images from folders, tables, archives or a data set of the Hub, always with the same two columns.

Whatever the source, `load_images` returns a `datasets.DatasetDict` with `image` (decoded to RGB when it is read) and
`label` (`ClassLabel`, all splits with the same names). Images stay encoded until they are read.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Image, Value

from ..utils.validation import shorten
from .benchmarks import TRAINVAL, load_task, with_trainval
from .class_names import (
    ClassTable,
    class_label,
    find_classes,
    given_names,
    names_by_number,
    own_names,
    sorted_keys,
    warn_repeated,
)
from .few_shot import class_counts, stratified_split
from .folders import split_name
from .image_checks import unreadable
from .images import RGBImage
from .readers import is_local, read_rows


#: The one test split that is made when the data has none.
DEFAULT_TEST_SPLIT = "test"
VALIDATION = "validation"


@dataclass(frozen=True)
class DataOptions:
    """Where labelled images are and how to read them."""

    path: str = field(
        metadata={
            "help": "Image folder (or zip of one), table (.csv, .tsv, .jsonl, .parquet; or folder of them), .tar files, "
            "folder of `save_to_disk`, a pattern with wildcards, or data set id on the Hub."
        }
    )
    benchmark: str | None = field(
        default=None,
        metadata={
            "help": "Task of FGVC or VTAB-1k, such as vtab-1k/caltech101, with the published split files in the folder "
            "`--data`, read and preprocessed as published. `--train-split trainval` trains on the validation images too."
        },
    )
    image_column: str = field(default="image", metadata={"help": "Column of the images (Image, bytes or paths)."})
    label_column: str = field(default="label", metadata={"help": "Column of the classes (names or numbers)."})
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
    min_images: int = field(default=0, metadata={"help": "Leave out classes with fewer images."})
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
    split_seed: int = field(default=0, metadata={"help": "Seed of splits we make."})

    @property
    def given_names(self) -> list[str] | None:
        """Names of the classes in label order, where they were given."""
        names = self.class_names
        return None if names is None else list(names.values() if isinstance(names, Mapping) else names)


# ---- where the data are, in files ---------------------------------------------------------------------------------


def describe(options: DataOptions) -> dict:
    """Return the options as values that JSON holds, with the whole path of data that are on this machine."""
    path = options.path
    return asdict(options) | {"path": os.path.abspath(os.path.expanduser(path)) if is_local(path) else path}


def portable(description: dict | None, folder: str | Path) -> dict | None:
    """Return what `describe` gives with the path relative to a folder, to be written in a file there.

    A relative path begins with a dot, which no id on the Hub does.
    """
    if description is None or not os.path.isabs(description.get("path", "")):
        return description
    relative = os.path.relpath(os.path.realpath(description["path"]), os.path.realpath(folder))
    path = Path(relative).as_posix()
    return description | {"path": path if path.startswith(".") else f"./{path}"}


def described(description: dict, folder: str | Path) -> DataOptions:
    """Return the options that a description says, read from a file in `folder`; JSON has made lists of tuples."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in description.items()}
    if values["path"].startswith("."):
        values["path"] = os.path.normpath(os.path.join(os.path.realpath(folder), values["path"]))
    return DataOptions(**values)


# ---- reading ------------------------------------------------------------------------------------------------------


def load_images(options: DataOptions, validation: bool = False) -> DatasetDict:
    """Read labelled images to train and test on. All of them are looked at, without decoding, before any is used.

    Args:
        options: where they are.
        validation: return the data's own split `validation`, too, where it has one.

    Returns:
        A `DatasetDict` with `train`, `test` and the columns `image`, `label`. A test split that has to be made is
        the same for every number of shots and every training seed; with `test_fraction=0` there is none. With
        `val_fraction` there is `validation`.

    Raises:
        FileNotFoundError: the path does not exist and is no id on the Hub.
        ValueError: a column or split is missing, a label has no name, a class has no image, there is one class alone,
            images cannot be read, or a filter leaves nothing; the message names what is there.
    """
    if options.benchmark is not None:
        return _load_benchmark(options)
    splits = _labelled_splits(options, validation)
    names = splits["train"].features["label"].names
    counts = sum(class_counts(split) for split in splits.values())
    if empty := [name for name, count in zip(names, counts, strict=True) if not count]:
        raise ValueError(f"Classes without an image: {shorten(empty)}. Set `min_images=1` to leave them out.")
    counts = class_counts(splits["train"])
    if missing := [name for name, count in zip(names, counts, strict=True) if not count]:
        raise ValueError(
            f"Classes without a training image: {shorten(missing)}. Add some, or leave these classes out by "
            "`where=('label!=...',)` (--where)."
        )
    if len(names) == 1:
        raise ValueError(
            f"Expected images of several classes. Received one class, {names[0]!r}: in a folder of images, all lie in the "
            "one folder of that name. Put each class in a folder of its own, beside each other."
        )
    return DatasetDict(splits)


def _labelled_splits(options: DataOptions, validation: bool = False) -> dict[str, Dataset]:
    """Return labelled `train`, `test` and `validation`, of which the last two are cut off where they have to be."""
    rows = _read(options)
    splits = _choose_splits(rows, options)
    _require_training(splits, options)
    if validation and VALIDATION in rows and VALIDATION not in (options.train_split, options.test_split):
        splits[VALIDATION] = rows[VALIDATION]
    splits = _label(splits, options)
    if "test" not in splits and options.test_fraction != 0:
        splits["train"], splits["test"] = stratified_split(splits["train"], options.test_fraction, options.split_seed)
    if options.val_fraction != 0:
        if VALIDATION in rows:
            raise ValueError(
                "The data has a split 'validation' of its own, so that none is made. Received: "
                f"val_fraction={options.val_fraction}. Leave it out."
            )
        splits["train"], splits[VALIDATION] = stratified_split(
            splits["train"], options.val_fraction, options.split_seed, fraction_name="val_fraction"
        )
    return splits


def _require_training(splits: Mapping[str, Dataset], options: DataOptions) -> None:
    if "train" not in splits:
        raise ValueError(f"No split {options.train_split!r} to train on; the data has {options.test_split!r}.")


def load_split(options: DataOptions, split: str | None = None, class_names: Sequence[str] | None = None) -> Dataset:
    """Read one split to evaluate on, with the class order that `load_images` gives; no training split is needed.

    Args:
        options: where the images are.
        split: name of the split; None for the test split, or all images where the data are not split.
        class_names: tell the images apart among these, in this order; the data's classes are found among them by name.

    Raises:
        FileNotFoundError, ValueError: as `load_images`; a class of the data is none of `class_names`.
    """
    rows = _load_split(options, split)
    return rows if class_names is None else with_class_names(rows, class_names)


def with_class_names(rows: Dataset, class_names: Sequence[str]) -> Dataset:
    """Give labelled rows the labels of a list of classes, among which the rows' own classes are found by name.

    Raises:
        ValueError: a class with images is none of them; says the nearest, and how to write a mapping.
    """
    names = rows.features["label"].names
    labels = np.asarray(rows["label"][:], dtype=int)
    here = np.flatnonzero(np.bincount(labels, minlength=len(names))).tolist()
    here = list(range(len(names))) if list(names) == list(class_names) else here
    found = find_classes([names[label] for label in here], class_names)
    new = np.zeros(len(names), dtype=int)
    new[here] = [found[position] for position in range(len(here))]
    return rows.remove_columns("label").add_column("label", new[labels], feature=class_label(class_names))


def _load_split(options: DataOptions, split: str | None) -> Dataset:
    if options.benchmark is not None:
        splits = with_trainval(load_task(options.benchmark, options.path, _listed(options)))
        return _checked(
            _split_named(splits, split or options.test_split, options), split or options.test_split, options
        )
    splits = _read(options)
    if split is None:
        split = (
            options.test_split if _find_split(splits, options.test_split, options) else _only_split(splits, options)
        )
    elif split == options.train_split or (split == VALIDATION and options.val_fraction):
        return _labelled_splits(options)[VALIDATION if split == VALIDATION else "train"]
    elif split == options.test_split == DEFAULT_TEST_SPLIT and not _find_split(splits, split, options):
        made = _labelled_splits(options)
        if "test" not in made:
            raise ValueError(
                "There are no test images: the data has no split 'test', and test_fraction=0. Name the images to evaluate "
                f"on (`--data`), or their split (`--split {options.train_split}`)."
            )
        return made["test"]
    wanted = {split: _split_named(splits, split, options)}
    # Every class has a training image; those of the test split count for `min_images` alone.
    names = [options.train_split, options.test_split] if options.min_images > 1 else [options.train_split]
    found = {name: _find_split(splits, name, options) for name in names if name != split}
    known = {
        name: splits[real] for name, real in found.items() if real is not None and _is_labelled(splits[real], options)
    }
    counted = known | wanted if split in names and known else known
    counted = counted if options.train_split in counted else wanted
    return _label(wanted | counted, options, counted, checked=[split])[split]


def _only_split(splits: Mapping[str, Dataset], options: DataOptions) -> str:
    train = _find_split(splits, options.train_split, options)
    if train is None or len(splits) > 1:
        raise ValueError(f"No split {options.test_split!r}. The data has: {', '.join(splits)}. Name one (`--split`).")
    return train


def _is_labelled(rows: Dataset, options: DataOptions) -> bool:
    column = options.label_column
    return column in rows.column_names and any(label not in (None, -1) for label in rows[column][:])


def _find_split(splits: Mapping[str, Dataset], name: str, options: DataOptions) -> str | None:
    """Return what the data calls a split, None if it has none: folders `val` and `dev` are read as `validation`."""
    if name in splits:
        return name
    named_by_user = options.split_column is not None or options.benchmark is not None
    usual = None if named_by_user else split_name(name)
    return next((other for other in splits if usual is not None and split_name(other) == usual), None)


def _split_named(splits: Mapping[str, Dataset], name: str, options: DataOptions) -> Dataset:
    found = _find_split(splits, name, options)
    if found is None:
        raise ValueError(f"No split {name!r}. The data has: {', '.join(splits)}.")
    return splits[found]


def load_unlabelled(options: DataOptions) -> DatasetDict:
    """Read images to train on without their labels, and labelled images to test on, if there are any.

    The label column of the training split is not read, and need not be there, if there is a test split or
    `test_fraction=0`; else it serves to cut a test split off and is dropped. Images without any label come alone.

    Raises:
        FileNotFoundError, ValueError: as `load_images`.
    """
    if options.benchmark is not None:
        return _without_labels(load_images(options))
    splits = _choose_splits(_read(options, keep_loose=True), options)
    _require_training(splits, options)
    train = splits["train"]
    if "test" in splits and options.min_images > 1:
        raise ValueError(
            f"`min_images={options.min_images}` counts the images of a class in all splits, and the labels of the "
            "training images are not read here. Leave it out, and name the classes by `class_names`."
        )
    if "test" not in splits and options.test_fraction != 0 and _is_labelled(train, options):
        return _without_labels(load_images(options))
    tests = _label({"test": splits["test"]}, options) if "test" in splits else {}
    _check_column(train, options.image_column)
    train = _image_column(train.select(np.flatnonzero(_where_mask(train, options.where))), options)
    train = _checked(train, options.train_split, options)
    return DatasetDict(train=train, **tests)


def _without_labels(labelled: DatasetDict) -> DatasetDict:
    tests = {name: rows for name, rows in labelled.items() if name == "test"}
    return DatasetDict(train=labelled["train"].select_columns("image"), **tests)


def _load_benchmark(options: DataOptions) -> DatasetDict:
    """Return the splits of a task: `train`, `test` and, where it is not trained on, `validation`."""
    # pyrefly: ignore[bad-argument-type]  # called where there is a benchmark
    splits = with_trainval(load_task(options.benchmark, options.path, _listed(options)))
    chosen = _choose_splits(splits, options)
    left = {"validation": splits["validation"]} if options.train_split != TRAINVAL else {}
    return DatasetDict({name: _checked(rows, name, options) for name, rows in (chosen | left).items()})


def _listed(options: DataOptions) -> list[str] | None:
    """Return class names for the numbers of a benchmark, which count from 0."""
    if isinstance(options.class_names, Mapping):
        raise ValueError("Class names of a benchmark are a list in label order. Received: a mapping.")
    return options.given_names


def _read(options: DataOptions, keep_loose: bool = False) -> dict[str, Dataset]:
    """Read all splits at a local path or of a data set on the Hub."""
    splits = read_rows(
        options.path,
        image_column=options.image_column,
        label_column=options.label_column,
        labels_from=options.labels_from,
        keep_loose=keep_loose,
    )
    return _split_by_column(splits, options.split_column) if options.split_column else splits


def _split_by_column(splits: dict[str, Dataset], column: str) -> dict[str, Dataset]:
    if len(splits) != 1:
        raise ValueError(f"`split_column` needs data in one split. Received the splits: {', '.join(splits)}.")
    (rows,) = splits.values()
    _check_column(rows, column)
    values = _texts(rows, column)
    return {str(value): rows.select(np.flatnonzero(values == value)) for value in np.unique(values)}


def _texts(rows: Dataset, column: str) -> np.ndarray:
    """Return the values of a column as text, those of a `ClassLabel` by their names, as an array [rows]."""
    feature = rows.features[column]
    values = rows[column][:]
    if isinstance(feature, ClassLabel):
        values = [feature.names[value] if value is not None and value >= 0 else value for value in values]
    return np.asarray([str(value) for value in values])


def _choose_splits(splits: dict[str, Dataset], options: DataOptions) -> dict[str, Dataset]:
    """Return the splits asked for under the names `train` and `test`, as far as they are there."""
    wanted = {"train": options.train_split, "test": options.test_split}
    if options.train_split == options.test_split:
        raise ValueError(f"The split to train on and to test on must differ. Received: {options.train_split!r} twice.")
    found = {role: _find_split(splits, name, options) for role, name in wanted.items()}
    chosen = {role: splits[name] for role, name in found.items() if name is not None}
    if not chosen or ("test" not in chosen and options.test_split != DEFAULT_TEST_SPLIT):
        raise ValueError(f"No split {options.test_split!r}. The data has: {', '.join(splits)}.")
    return chosen


def _label(
    splits: dict[str, Dataset],
    options: DataOptions,
    counted: Iterable[str] | None = None,
    checked: Iterable[str] | None = None,
) -> dict[str, Dataset]:
    """Filter rows and classes and give all splits the columns `image` and `label`.

    The classes are those of the splits `counted`, which decide about `min_images` too; images of the splits `checked` are
    looked at. Default for both: all.
    """
    for split in splits.values():
        for column in (options.image_column, options.label_column):
            _check_column(split, column)
    masks = {name: _where_mask(split, options.where) for name, split in splits.items()}
    images = {name: _image_column(split, options) for name, split in splits.items()}
    for name in splits if checked is None else checked:
        masks[name] = _readable(images[name], masks[name], name, options)
    labels, names = _number_labels(splits, masks, options, list(splits if counted is None else counted))
    feature = class_label(names)
    return {
        name: rows.select(np.flatnonzero(labels[name] >= 0)).add_column(
            "label", labels[name][labels[name] >= 0], feature=feature
        )
        for name, rows in images.items()
    }


def _readable(images: Dataset, mask: np.ndarray, split: str, options: DataOptions) -> np.ndarray:
    """Return which rows of a mask have an image that can be read, bool [rows].

    Raises:
        ValueError: some have none, and are not to be skipped.
    """
    rows = np.flatnonzero(mask)
    chosen = images if mask.all() else images.select(rows)
    if not options.skip_bad_images:
        _require_images(split, chosen)
    bad = unreadable(chosen, split, options.skip_bad_images, options.follow_urls)
    if bad.all():
        raise ValueError(f"No image of the split {split!r} can be read.")
    readable = mask.copy()
    readable[rows[bad]] = False
    return readable


def _checked(images: Dataset, split: str, options: DataOptions) -> Dataset:
    """Return the rows whose image can be read.

    Raises:
        ValueError: some cannot, and are not to be skipped.
    """
    readable = _readable(images, np.ones(len(images), dtype=bool), split, options)
    return images if readable.all() else images.select(np.flatnonzero(readable))


def _check_column(dataset: Dataset, column: str) -> None:
    if column in dataset.column_names:
        return
    if dataset.column_names == ["image"]:
        raise ValueError(
            f"No column {column!r}: the images lie in no class folders. Put those of each class in a folder of its name, or "
            "write a table of images and labels; images without labels are for --unlabelled with --class-names."
        )
    raise ValueError(f"No column {column!r}. The data has: {', '.join(dataset.column_names)}.")


def _where_mask(dataset: Dataset, where: Sequence[str]) -> np.ndarray:
    """Return which rows meet every condition, bool [rows]."""
    mask = np.ones(len(dataset), dtype=bool)
    for condition in where:
        column, equals, value = condition.partition("=")
        if not equals:
            raise ValueError(f"A row filter reads COLUMN=VALUE or COLUMN!=VALUE. Received: {condition!r}.")
        negated = column.endswith("!")
        column = column.removesuffix("!").strip()
        _check_column(dataset, column)
        values = _texts(dataset, column)
        mask &= (values == value.strip()) != negated
        if not mask.any():
            raise ValueError(
                f"No row is left after the filter {condition!r}. Values of {column!r}: "
                f"{shorten(sorted(set(values.tolist())))}."
            )
    return mask


def _number_labels(
    splits: dict[str, Dataset], masks: dict[str, np.ndarray], options: DataOptions, counted: list[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return labels 0..classes-1 of every row (-1: left out) and the class names."""
    raw = {name: _keys(split, masks[name], options) for name, split in splits.items()}
    counts = Counter(key for name in counted for key in raw[name][masks[name]])
    present = {key for name in splits for key in raw[name][masks[name]]}
    table = _class_table(next(iter(splits.values())), counts, present, options)
    if unknown := sorted(present - set(table.labels)):
        raise ValueError(
            f"Classes of the data that are not among the classes of {' and '.join(counted)}: {shorten(unknown)}."
        )
    images = Counter()
    for key, count in counts.items():
        images[table.labels[key]] += count
    kept = [label for label in range(len(table.names)) if images[label] >= options.min_images]
    if not kept:
        raise ValueError(f"No class has {options.min_images} images. The largest has {max(counts.values())}.")
    new = {label: position for position, label in enumerate(kept)}
    number = {key: new.get(label, -1) for key, label in table.labels.items()}
    names = [table.names[label] for label in kept]
    warn_repeated(names)
    labels = {
        name: np.where(masks[name], np.asarray([number.get(key, -1) for key in raw[name]], dtype=int), -1)
        for name in splits
    }
    return labels, names


def _keys(dataset: Dataset, mask: np.ndarray, options: DataOptions) -> np.ndarray:
    """Return what the data calls the class of every row, as text, object [rows].

    Raises:
        ValueError: labels are missing, or are neither names nor whole numbers.
    """
    feature = dataset.features[options.label_column]
    values = np.asarray(dataset[options.label_column][:], dtype=object)
    names = feature.names if isinstance(feature, ClassLabel) else None
    if names is None and not _holds_names(feature) and not _holds_numbers(feature):
        raise ValueError(f"Labels must be names or whole numbers. Received: {options.label_column!r} is {feature}.")
    if missing := sum(1 for value in values[mask] if value is None or (names is not None and value < 0)):
        raise ValueError(f"Rows without a label in the column {options.label_column!r}: {missing} of {mask.sum()}.")
    if names is not None and len(set(names)) == len(names):
        return np.asarray([names[v] if v is not None and v >= 0 else None for v in values], dtype=object)
    return np.asarray([None if value is None else str(value) for value in values], dtype=object)


def _holds_names(feature) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _holds_numbers(feature) -> bool:
    return isinstance(feature, Value) and "int" in feature.dtype


def _class_table(dataset: Dataset, counts: Counter, present: set[str], options: DataOptions) -> ClassTable:
    """Return the classes in label order: as given, as the data set has them, or sorted."""
    feature = dataset.features[options.label_column]
    given = options.class_names
    if _holds_numbers(feature):
        if given is None:
            raise ValueError(
                f"The column {options.label_column!r} holds numbers: give the class names (a file with one name per "
                f"line), or use a column of names. The data has: {', '.join(dataset.column_names)}."
            )
        return names_by_number(sorted_keys(present), given)
    if isinstance(feature, ClassLabel):
        numbers = [str(label) for label in range(len(feature.names))]
        table = own_names(feature.names, options.clean_names)
        if len(table.labels) < len(numbers):  # of several classes with one name the number is the key
            table = ClassTable(table.names, {number: label for label, number in enumerate(numbers)})
            return table if given is None else names_by_number(sorted_keys(present), given)
        if given is None:
            return table
        used = [(name, number) for name, number in zip(feature.names, numbers, strict=True) if name in present]
        return given_names([name for name, _ in used], given, options.clean_names, [number for _, number in used])
    if given is None:
        return own_names(sorted_keys(counts), options.clean_names)
    return given_names(sorted_keys(present), given, options.clean_names)


def _require_images(name: str, rows: Dataset) -> None:
    """Refuse rows whose image is null, before a training meets them in its midst."""
    if rows.data.column("image").null_count:
        missing = np.flatnonzero(rows.with_format("arrow")["image"][:].is_null().to_numpy())
        if len(missing):
            raise ValueError(
                f"{len(missing)} of {len(rows)} rows of the split {name!r} have no image, the first is number "
                f"{missing[0]}. Leave such rows out of the data."
            )


def _image_column(dataset: Dataset, options: DataOptions) -> Dataset:
    feature = dataset.features[options.image_column]
    encoded = isinstance(feature, Value) and feature.dtype in ("binary", "large_binary", "string", "large_string")
    if not (encoded or isinstance(feature, Image)):
        raise ValueError(f"The column {options.image_column!r} does not hold images, bytes or paths: it is {feature}.")
    images = dataset.select_columns(options.image_column)
    if options.image_column != "image":
        images = images.rename_column(options.image_column, "image")
    return images.cast_column("image", RGBImage(background=options.background))
