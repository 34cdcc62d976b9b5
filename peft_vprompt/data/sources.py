"""Labelled images from an image folder, parquet files or a data set of the Hub, always with the same two columns.

Whatever the source, `load_images` returns a `datasets.DatasetDict` with `image` (decoded to RGB when it is read) and
`label` (`ClassLabel`, all splits with the same names). Images stay encoded until they are read.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Image, Value, load_dataset

from ..utils.validation import shorten
from .benchmarks import TRAINVAL, load_task, with_trainval
from .few_shot import class_counts, stratified_split
from .images import RGBImage


#: The one test split that is made when the data has none.
DEFAULT_TEST_SPLIT = "test"


@dataclass(frozen=True)
class DataOptions:
    """Where labelled images are and how to read them."""

    path: str = field(metadata={"help": "Image folder, parquet file or folder, or data set id on the Hub."})
    benchmark: str | None = field(
        default=None,
        metadata={
            "help": "Task of FGVC or VTAB-1k, such as vtab-1k/caltech101, with the published split files in the folder "
            "`--data`, read and preprocessed as published. `--train-split trainval` trains on the validation images too."
        },
    )
    image_column: str = field(default="image", metadata={"help": "Column of the images (Image, bytes or paths)."})
    label_column: str = field(default="label", metadata={"help": "Column of the classes (names or numbers)."})
    train_split: str = field(default="train", metadata={"help": "Split to learn from."})
    test_split: str = field(
        default=DEFAULT_TEST_SPLIT,
        metadata={"help": "Split to test on; without a split `test`, cut off the training split."},
    )
    split_column: str | None = field(default=None, metadata={"help": "Column that says which split a row is in."})
    where: tuple[str, ...] = field(default=(), metadata={"help": "Keep the rows with COLUMN=VALUE or COLUMN!=VALUE."})
    min_images: int = field(default=0, metadata={"help": "Leave out classes with fewer images."})
    class_names: tuple[str, ...] | None = field(default=None, metadata={"help": "Names in label order."})
    clean_names: bool = field(
        default=True,
        metadata={
            "help": "Write hyphens and underscores of names as spaces (not where class names are given for numbers)."
        },
    )
    background: str = field(default="white", metadata={"help": "Colour behind transparent images: a name or #rrggbb."})
    test_fraction: float = field(default=0.3, metadata={"help": "Share of each class in a test split we make."})
    split_seed: int = field(default=0, metadata={"help": "Seed of a test split we make."})


def load_images(options: DataOptions) -> DatasetDict:
    """Read labelled images to train and test on.

    Returns:
        A `DatasetDict` with `train`, `test` and the columns `image`, `label`. A test split that has to be made is
        the same for every number of shots and every training seed.

    Raises:
        FileNotFoundError: the path does not exist and is no id on the Hub.
        ValueError: a column or split is missing, a label has no name, a class has no image, or a filter leaves
            nothing; the message names what is there.
    """
    if options.benchmark is not None:
        return _load_benchmark(options)
    splits = _choose_splits(_read(options), options)
    if "train" not in splits:
        raise ValueError(f"No split {options.train_split!r} to train on; the data has {options.test_split!r}.")
    splits = _label(splits, options)
    if "test" not in splits:
        splits["train"], splits["test"] = stratified_split(splits["train"], options.test_fraction, options.split_seed)
    names = splits["train"].features["label"].names
    counts = class_counts(splits["train"])
    if missing := [name for name, count in zip(names, counts, strict=True) if not count]:
        raise ValueError(f"Classes without a training image: {shorten(missing)}.")
    return DatasetDict(splits)


def load_split(options: DataOptions, split: str) -> Dataset:
    """Read one split to evaluate on, with the class order that `load_images` gives; no training split is needed.

    Raises:
        FileNotFoundError, ValueError: as `load_images`.
    """
    if options.benchmark is not None:
        splits = with_trainval(load_task(options.benchmark, options.path, options.class_names))
        return _split_named(splits, split)
    if split == options.train_split:
        return load_images(options)["train"]
    splits = _read(options)
    if split not in splits and split == options.test_split == DEFAULT_TEST_SPLIT:
        return load_images(options)["test"]
    wanted = {"wanted": _split_named(splits, split)}
    # Every class has a training image; those of the test split count for `min_images` alone.
    names = [options.train_split, options.test_split] if options.min_images > 1 else [options.train_split]
    known = {name: splits[name] for name in names if name in splits and _is_labelled(splits[name], options)}
    counted = known if options.train_split in known else wanted
    return _label(wanted | counted, options, counted)["wanted"]


def _is_labelled(rows: Dataset, options: DataOptions) -> bool:
    column = options.label_column
    return column in rows.column_names and any(label not in (None, -1) for label in rows[column][:])


def _split_named(splits: dict[str, Dataset], name: str) -> Dataset:
    if name not in splits:
        raise ValueError(f"No split {name!r}. The data has: {', '.join(splits)}.")
    return splits[name]


def load_unlabelled(options: DataOptions) -> DatasetDict:
    """Read images to train on without their labels, and labelled images to test on, if there are any.

    The label column of the training split is not read, and need not be there, if there is a test split; without one
    it serves to cut a test split off and is dropped. Images without any label come alone.

    Raises:
        FileNotFoundError, ValueError: as `load_images`.
    """
    if options.benchmark is not None:
        labelled = load_images(options)
        return DatasetDict(train=labelled["train"].select_columns("image"), test=labelled["test"])
    splits = _choose_splits(_read(options), options)
    if "train" not in splits:
        raise ValueError(f"No split {options.train_split!r} to train on; the data has {options.test_split!r}.")
    train = splits["train"]
    if "test" in splits and options.min_images > 1:
        raise ValueError(
            f"`min_images={options.min_images}` counts the images of a class in all splits, and the labels of the "
            "training images are not read here. Leave it out, and name the classes by `class_names`."
        )
    if "test" not in splits and options.label_column in train.column_names:
        labelled = load_images(options)
        return DatasetDict(train=labelled["train"].select_columns("image"), test=labelled["test"])
    tests = _label({"test": splits["test"]}, options) if "test" in splits else {}
    _check_column(train, options.image_column)
    train = _image_column(train.select(np.flatnonzero(_where_mask(train, options.where))), options)
    _require_images(options.train_split, train)
    return DatasetDict(train=train, **tests)


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Read class names in label order from a text file (one per line) or a JSON list of strings.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, or is JSON but not a list of strings.
    """
    text = Path(path).read_text(encoding="utf-8-sig")
    if Path(path).suffix == ".json":
        names = json.loads(text)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path} must hold a JSON list of strings. Received: {type(names).__name__}.")
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{path} holds no class name.")
    return tuple(names)


def _load_benchmark(options: DataOptions) -> DatasetDict:
    """Return the splits of a task: `train`, `test` and, where it is not trained on, `validation`."""
    # pyrefly: ignore[bad-argument-type]  # called where there is a benchmark
    splits = with_trainval(load_task(options.benchmark, options.path, options.class_names))
    chosen = _choose_splits(splits, options)
    left = {"validation": splits["validation"]} if options.train_split != TRAINVAL else {}
    return DatasetDict(chosen | left)


def _read(options: DataOptions) -> dict[str, Dataset]:
    """Read all splits at a local path or of a data set on the Hub."""
    path = options.path
    local = Path(path).expanduser()
    if local.is_file():
        if local.suffix != ".parquet":
            raise ValueError(f"A data file must be parquet. Received: {path}.")
        splits = load_dataset("parquet", data_files=str(local))
    elif local.is_dir():
        kind = "parquet" if any(local.rglob("*.parquet")) else "imagefolder"
        splits = load_dataset(kind, data_dir=str(local))
    elif local.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
        raise FileNotFoundError(f"No file or folder {path}.")
    else:
        splits = load_dataset(path)
    return _split_by_column(dict(splits), options.split_column) if options.split_column else dict(splits)


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
    chosen = {role: splits[name] for role, name in wanted.items() if name in splits}
    if not chosen or ("test" not in chosen and options.test_split != DEFAULT_TEST_SPLIT):
        raise ValueError(f"No split {options.test_split!r}. The data has: {', '.join(splits)}.")
    return chosen


def _label(
    splits: dict[str, Dataset], options: DataOptions, counted: Iterable[str] | None = None
) -> dict[str, Dataset]:
    """Filter rows and classes and give all splits the columns `image` and `label`.

    The classes are those of the splits `counted`, which decide about `min_images` too; default: of all.
    """
    for split in splits.values():
        for column in (options.image_column, options.label_column):
            _check_column(split, column)
    masks = {name: _where_mask(split, options.where) for name, split in splits.items()}
    labels, names = _number_labels(splits, masks, options, list(splits if counted is None else counted))
    labelled = {name: _two_columns(split, labels[name], names, options) for name, split in splits.items()}
    chosen = {name: split.select(np.flatnonzero(labels[name] >= 0)) for name, split in labelled.items()}
    for name, split in chosen.items():
        _require_images(name, split)
    return chosen


def _check_column(dataset: Dataset, column: str) -> None:
    if column not in dataset.column_names:
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
    raw = {name: _raw_names(split, masks[name], options) for name, split in splits.items()}
    counts = Counter(value for name in counted for value in raw[name][masks[name]])
    order = _class_order(next(iter(splits.values())), counts, options)
    if unknown := sorted({value for name in splits for value in raw[name][masks[name]]} - set(order)):
        known = "class names given" if options.class_names is not None else f"classes of {' and '.join(counted)}"
        raise ValueError(f"Classes of the data that are not among the {known}: {shorten(unknown)}.")
    kept = [name for name in order if counts[name] >= options.min_images]
    if empty := [name for name in kept if not counts[name]]:
        raise ValueError(f"Classes without an image: {shorten(empty)}. Set `min_images=1` to leave them out.")
    if not kept:
        raise ValueError(f"No class has {options.min_images} images. The largest has {max(counts.values())}.")
    number = {name: label for label, name in enumerate(kept)}
    labels = {
        name: np.where(masks[name], np.asarray([number.get(value, -1) for value in raw[name]]), -1) for name in splits
    }
    numbered = not _holds_names(next(iter(splits.values())).features[options.label_column])
    clean = options.clean_names and not (numbered and options.class_names is not None)
    names = [_clean(name) for name in kept] if clean else kept
    if len(set(names)) < len(names):
        repeated = [name for name, count in Counter(names).items() if count > 1]
        raise ValueError(f"Class names occur twice: {shorten(repeated)}. Give each class a name of its own.")
    return labels, names


def _raw_names(dataset: Dataset, mask: np.ndarray, options: DataOptions) -> np.ndarray:
    """Return the class name of every row, as an object array [rows]."""
    feature = dataset.features[options.label_column]
    values = np.asarray(dataset[options.label_column][:], dtype=object)
    if _holds_names(feature):
        if any(value is None for value in values[mask]):
            raise ValueError(f"Rows without a label in the column {options.label_column!r}.")
        return values
    if not isinstance(feature, ClassLabel) and not (isinstance(feature, Value) and "int" in feature.dtype):
        raise ValueError(f"Labels must be names or whole numbers. Received: {options.label_column!r} is {feature}.")
    names = options.class_names or (feature.names if isinstance(feature, ClassLabel) else None)
    if names is None:
        raise ValueError(
            f"The column {options.label_column!r} holds numbers: give the class names (a file with one name per "
            f"line), or use a column of names. The data has: {', '.join(dataset.column_names)}."
        )
    if bad := sorted({value for value in values[mask] if value is None or not 0 <= value < len(names)}, key=str):
        raise ValueError(f"Labels out of range for {len(names)} class names: {shorten(bad)}.")
    named = np.full(len(values), None, dtype=object)
    named[mask] = [names[value] for value in values[mask]]
    return named


def _holds_names(feature) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _class_order(dataset: Dataset, counts: Counter, options: DataOptions) -> list[str]:
    """Return class names in label order: as given, as the data set has them, or sorted."""
    feature = dataset.features[options.label_column]
    if options.class_names is not None:
        return list(options.class_names)
    return feature.names if isinstance(feature, ClassLabel) else sorted(counts)


def _clean(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").split())


def _two_columns(dataset: Dataset, labels: np.ndarray, names: list[str], options: DataOptions) -> Dataset:
    return _image_column(dataset, options).add_column("label", labels, feature=ClassLabel(names=names))


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
