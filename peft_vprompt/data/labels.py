"""From the columns of any data to `image` and `label`: rows filtered, images looked at, classes numbered and named."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Image, Value
from datasets.features import List

from ..utils.validation import shorten
from ..utils.warning import warn_caller
from .class_names import (
    ClassTable,
    class_label,
    given_names,
    is_number,
    names_by_number,
    own_names,
    sorted_keys,
    unknown_classes,
    warn_repeated,
)
from .columns import set_column
from .feature_folders import holds_features, images_alone
from .image_checks import unreadable
from .images import RGBImage
from .multi_hot import NOT_KNOWN, with_label_matrix
from .multi_labels import label_columns, label_lists, multi_hot, multi_hot_columns
from .options import DataOptions


def as_text(value: Any, feature: Any) -> str:
    """Return a value as files write it: `true`, 2020 for a float too, and the name of a `ClassLabel`'s."""
    if isinstance(feature, ClassLabel) and value is not None and value >= 0:
        return feature.names[value]
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def asked_text(value: str, feature: Any) -> str:
    """Return a value that somebody typed as `as_text` gives it of a column: True as `true`, 2020.0 as 2020."""
    kind = str(getattr(feature, "dtype", ""))
    if kind == "bool":
        return value.lower() if value.lower() in ("true", "false") else value  # None of rows that say neither
    try:
        return as_text(float(value), feature) if kind.startswith(("float", "double")) else value
    except ValueError:
        return value


def texts(rows: Dataset, column: str) -> np.ndarray:
    """Return the values of a column as text, see `as_text`, as an array [rows]."""
    feature = rows.features[column]
    return np.asarray([as_text(value, feature) for value in rows[column][:]])


def label_splits(
    splits: dict[str, Dataset],
    options: DataOptions,
    counted: Iterable[str] | None = None,
    checked: Iterable[str] | None = None,
) -> dict[str, Dataset]:
    """Filter rows and classes and give all splits the columns `image` and `label`.

    The classes are those of the splits `counted`, of which the first says what numbers stand for, and which decide about
    `min_images` too; images of the splits `checked` are looked at. Default for both: all.
    """
    counted = list(splits if counted is None else counted)
    splits = {name: splits[name] for name in dict.fromkeys([*counted, *splits])}
    labelled = () if options.label_columns else (options.label_column,)
    for split in splits.values():
        for column in (*(() if holds_features(split) else (options.image_column,)), *labelled):
            check_column(split, column)
    masks = {name: where_mask(split, options.where) for name, split in splits.items()}
    images = {name: image_column(split, options) for name, split in splits.items()}
    for name in splits if checked is None else checked:
        masks[name] = _readable(images[name], masks[name], name, options)
    if options.multi_label:
        matrices, names = _number_multi_labels(splits, masks, options, counted)
        return {
            name: with_label_matrix(rows.select(np.flatnonzero(masks[name])), matrices[name][masks[name]], names)
            for name, rows in images.items()
        }
    labels, names = _number_labels(splits, masks, options, counted)
    feature = class_label(names)
    return {
        name: set_column(
            rows.select(np.flatnonzero(labels[name] >= 0)), "label", labels[name][labels[name] >= 0], feature
        )
        for name, rows in images.items()
    }


def _readable(images: Dataset, mask: np.ndarray, split: str, options: DataOptions) -> np.ndarray:
    """Return which rows of a mask have an image that can be read, bool [rows].

    Raises:
        ValueError: some have none, and are not to be skipped.
    """
    if holds_features(images):  # only images that could be read have features
        return mask
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


def checked(images: Dataset, split: str, options: DataOptions) -> Dataset:
    """Return the rows whose image can be read.

    Raises:
        ValueError: some cannot, and are not to be skipped.
    """
    readable = _readable(images, np.ones(len(images), dtype=bool), split, options)
    return images if readable.all() else images.select(np.flatnonzero(readable))


def check_column(dataset: Dataset, column: str) -> None:
    """Make sure that the data has a column.

    Raises:
        ValueError: it has not; the message says which it has.
    """
    if column in dataset.column_names:
        return
    if dataset.column_names == ["image"]:
        raise ValueError(
            f"No column {column!r}: the images lie in no class folders. Put those of each class in a folder of its name, or "
            "write a table of images and labels; images without labels are for --unlabelled with --class-names."
        )
    if holds_features(dataset) and "label" not in dataset.column_names:
        raise ValueError(
            f"No column {column!r}: these image features were made of images without labels. Make them anew by `vprompt "
            "features --label-column NAME`, with the column of the classes, or use them without labels (--unlabelled with "
            "--class-names)."
        )
    raise ValueError(
        f"No column {column!r}. The data has: {', '.join(dataset.column_names)}. Say which is which by image_column and "
        "label_column (--image-column, --label-column)."
    )


def parse_condition(condition: str) -> tuple[str, str, bool]:
    """Return column and value of a row filter, and whether rows of that value are left out.

    Raises:
        ValueError: the condition cannot be read.
    """
    column, equals, value = condition.partition("=")
    if not equals:
        raise ValueError(f"A row filter reads COLUMN=VALUE or COLUMN!=VALUE. Received: {condition!r}.")
    return column.removesuffix("!").strip(), value.strip(), column.endswith("!")


def where_mask(dataset: Dataset, where: Sequence[str]) -> np.ndarray:
    """Return which rows meet every condition, bool [rows].

    Raises:
        ValueError: a condition cannot be read, names no column, or is met by no row.
    """
    mask = np.ones(len(dataset), dtype=bool)
    for condition in where:
        column, value, negated = parse_condition(condition)
        check_column(dataset, column)
        values = texts(dataset, column)
        mask &= (values == asked_text(value, dataset.features[column])) != negated
        if not mask.any():
            raise ValueError(
                f"No row is left after the filter {condition!r}. Values of {column!r}: "
                f"{shorten(sorted(set(values.tolist())))}."
            )
    return mask


def tell_idle_filters(splits: Iterable[Dataset], where: Sequence[str]) -> None:
    """Warn of conditions by which rows of some value are left out, where no row has it."""
    splits = list(splits)
    for condition in where:
        column, value, negated = parse_condition(condition)
        held = {text for rows in splits for text in np.unique(texts(rows, column)).tolist()} if negated else set()
        if negated and not any(asked_text(value, rows.features[column]) in held for rows in splits):
            warn_caller(
                f"The filter {condition!r} leaves no row out. Values of {column!r}: {shorten(sorted(held))}. Check the spelling, or "
                "leave it out."
            )


def _number_labels(
    splits: dict[str, Dataset], masks: dict[str, np.ndarray], options: DataOptions, counted: list[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return labels 0..classes-1 of every row (-1: left out) and the class names."""
    raw = {name: _keys(split, masks[name], options) for name, split in splits.items()}
    counts = Counter(key for name in counted for key in raw[name][masks[name]])
    present = {key for name in splits for key in raw[name][masks[name]]}
    first = next(iter(splits.values()))
    table = _class_table(first.features[options.label_column], first.column_names, counts, present, options)
    number, names = _kept_classes(table, counts, present, options, counted)
    labels = {
        name: np.where(masks[name], np.asarray([number.get(key, -1) for key in raw[name]], dtype=int), -1)
        for name in splits
    }
    return labels, names


def _kept_classes(
    table: ClassTable, counts: Counter, present: set[str], options: DataOptions, counted: list[str]
) -> tuple[dict[str, int], list[str]]:
    """Return the number of each key of the data (-1: left out), and the names of the classes that are numbered."""
    if unknown := sorted(present - set(table.labels)):
        alike = [name for name in unknown if not unknown_classes([name], list(table.labels))]
        hint = f" Nearly so are {shorten(alike)} (capitals, hyphens, accents in NFC or NFD): write them the same."
        raise ValueError(
            f"Classes of the data that are not among the classes of {' and '.join(counted)}: {shorten(unknown)}."
            f"{hint if alike else ''}"
        )
    images = Counter()
    for key, count in counts.items():
        images[table.labels[key]] += count
    kept = [label for label in range(len(table.names)) if images[label] >= options.min_images]
    if not kept:
        largest = max(counts.values(), default=0)
        raise ValueError(f"No class has {options.min_images} images. The largest has {largest}.")
    new = {label: position for position, label in enumerate(kept)}
    names = [table.names[label] for label in kept]
    warn_repeated(names)
    return {key: new.get(label, -1) for key, label in table.labels.items()}, names


def _number_multi_labels(
    splits: dict[str, Dataset], masks: dict[str, np.ndarray], options: DataOptions, counted: list[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return multi-hot labels [rows, classes] of every split, and the class names."""
    found = {name: _multi_hot(split, options) for name, split in splits.items()}
    feature, first = next(iter(found.values()))[0], next(iter(splits.values()))
    counts: Counter = Counter()
    present: dict[str, None] = {}
    for name, (_, keys, matrix) in found.items():
        images = (matrix[masks[name]] == 1).sum(0).tolist()
        seen = {key: count for key, count in zip(keys, images, strict=True) if count or options.label_columns}
        counts.update(seen if name in counted else {})
        present |= dict.fromkeys(seen)
    if options.label_columns and options.class_names is None:
        table = own_names(list(present), options.clean_names)  # in the order of the columns
    else:
        table = _class_table(feature, first.column_names, counts, set(present), options)
    number, names = _kept_classes(table, counts, set(present), options, counted)
    labels = {}
    for name, (_, keys, matrix) in found.items():
        labels[name] = np.full((len(matrix), len(names)), NOT_KNOWN if options.label_columns else 0)
        for column, key in enumerate(keys):
            if (label := number.get(key, -1)) >= 0:
                labels[name][:, label] = np.maximum(labels[name][:, label], matrix[:, column])
    return labels, names


def _multi_hot(dataset: Dataset, options: DataOptions) -> tuple[Any, list[str], np.ndarray]:
    """Return what the labels are, what the data call the classes, and int8 [rows, classes]."""
    if options.label_columns:
        columns = label_columns(dataset, options)
        return Value("string"), columns, multi_hot_columns(dataset, columns)
    feature, lists = label_lists(dataset, options)
    _require_names_or_numbers(feature, options)
    named = isinstance(feature, ClassLabel) and len(set(feature.names)) == len(feature.names)
    keys, matrix = multi_hot([[feature.names[x] if named else str(x) for x in row] for row in lists])
    if options.class_names is None and keys and _holds_names(feature) and all(map(is_number, keys)):
        feature = Value("int64")  # numbers with separators between them are numbers all the same
    return feature, keys, matrix


def _keys(dataset: Dataset, mask: np.ndarray, options: DataOptions) -> np.ndarray:
    """Return what the data calls the class of every row, as text, object [rows].

    Raises:
        ValueError: labels are missing, or are neither names nor whole numbers.
    """
    feature = dataset.features[options.label_column]
    values = np.asarray(dataset[options.label_column][:], dtype=object)
    names = feature.names if isinstance(feature, ClassLabel) else None
    _require_names_or_numbers(feature, options)
    if missing := [value for value in values[mask] if value is None or (names is not None and value < 0)]:
        unequal = f"{options.label_column}!={missing[0]}"
        raise ValueError(
            f"Rows without a label in the column {options.label_column!r}: {len(missing)} of {mask.sum()}. Leave them out by "
            f"where=({unequal!r},) (--where {unequal!r}), or, where images are of several classes or none, pass "
            "multi_label=True (--multi-label)."
        )
    if names is not None and len(set(names)) == len(names):
        return np.asarray([names[v] if v is not None and v >= 0 else None for v in values], dtype=object)
    return np.asarray([None if value is None else str(value) for value in values], dtype=object)


def _require_names_or_numbers(feature, options: DataOptions) -> None:
    if isinstance(feature, ClassLabel) or _holds_names(feature) or _holds_numbers(feature):
        return
    remedy = " For several classes of an image pass multi_label=True (--multi-label)." * isinstance(feature, List)
    raise ValueError(
        f"Labels must be names or whole numbers. Received: {options.label_column!r} is {feature}.{remedy}"
    )


def _holds_names(feature) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _holds_numbers(feature) -> bool:
    return isinstance(feature, Value) and "int" in feature.dtype


def _class_table(
    feature: Any, columns: Sequence[str], counts: Counter, present: set[str], options: DataOptions
) -> ClassTable:
    """Return the classes in label order: as given, as the data set has them, or sorted."""
    given = options.class_names
    if _holds_numbers(feature):
        if given is None:
            raise ValueError(
                f"The column {options.label_column!r} holds numbers: give the class names (a file with one name per "
                f"line), or use a column of names. The data has: {', '.join(columns)}."
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


def image_column(dataset: Dataset, options: DataOptions) -> Dataset:
    """Return the images alone, in a column `image`, decoded to RGB when they are asked for; or their features.

    Raises:
        ValueError: the column holds no images.
    """
    if holds_features(dataset):
        return images_alone(dataset)
    feature = dataset.features[options.image_column]
    encoded = isinstance(feature, Value) and feature.dtype in ("binary", "large_binary", "string", "large_string")
    if not (encoded or isinstance(feature, Image)):
        raise ValueError(f"The column {options.image_column!r} does not hold images, bytes or paths: it is {feature}.")
    images = dataset.select_columns(options.image_column)
    if options.image_column != "image":
        images = images.rename_column(options.image_column, "image")
    return images.cast_column("image", RGBImage(background=options.background))
