"""Labelled images from folders, tables, archives or a data set of the Hub, always with the same two columns.

Whatever the source, `load_images` returns a `datasets.DatasetDict` with `image` (decoded to RGB when it is read) and
`label` (`ClassLabel`, all splits with the same names). Images stay encoded until they are read.
"""

from collections.abc import Mapping, Sequence

import datasets
import numpy as np
from datasets import Dataset, DatasetDict

from ..errors import ClassNamesError
from ..utils.arguments import typed
from ..utils.io import disk_errors
from ..utils.validation import shorten
from .benchmarks import TRAINVAL, load_task, with_trainval
from .class_names import class_label, find_classes
from .columns import set_column
from .feature_folders import holds_features, images_alone
from .few_shot import class_counts, stratified_split
from .folders import split_name
from .labels import check_column, checked, image_column, label_splits, tell_idle_filters, texts, where_mask
from .multi_hot import NOT_KNOWN, is_multi_label, label_matrix, with_label_matrix
from .options import DEFAULT_TEST_SPLIT, ROW_OPTIONS, DataOptions
from .readers import CACHE_REMEDY, read_rows


VALIDATION = "validation"


@typed
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
    counts = np.sum([class_counts(split) for split in splits.values()], axis=0)
    if empty := [name for name, count in zip(names, counts, strict=True) if not count]:
        raise ValueError(
            f"Classes without an image: {shorten(empty)}. Leave them out by `min_images=1` (--min-images 1)."
        )
    trained = class_counts(splits["train"])
    if missing := [name for name, count in zip(names, trained, strict=True) if not count]:
        raise ValueError(
            f"Classes without a training image: {shorten(missing)}. Add some, or leave these classes out by "
            "`where=('label!=...',)` (--where)."
        )
    if len(names) == 1:
        raise ValueError(f"Expected images of several classes. Received one class, {names[0]!r}: {_why_one(options)}")
    return DatasetDict(splits)


def _why_one(options: DataOptions) -> str:
    """Say what made one class of the data, and what to do."""
    if options.labels_from != "path":
        return f"all have the same folder where labels_from={options.labels_from!r} looks. Take another (--labels-from path)."
    left_out = {
        f"min_images={options.min_images}": options.min_images > 1,
        f"where={options.where}": bool(options.where),
        "skip_bad_images=True": options.skip_bad_images,
    }
    if by := [what for what, asked in left_out.items() if asked]:
        return f"the others are left out by {' or '.join(by)}, or there are none. Add images of other classes."
    return (
        "in a folder of images, all lie in the one folder of that name. Put each class in a folder of its own, beside each "
        "other."
    )


def _labelled_splits(options: DataOptions, validation: bool = False) -> dict[str, Dataset]:
    """Return labelled `train`, `test` and `validation`, of which the last two are cut off where they have to be."""
    rows = read_splits(options)
    splits = _choose_splits(rows, options)
    _require_training(splits, options)
    for role, part in splits.items():
        _require_labels(part, rows, options, f"`{role}_split` (--{role}-split)")
    used = [_find_split(rows, name, options) for name in (options.train_split, options.test_split)]
    if validation and VALIDATION in rows and VALIDATION not in used:
        splits[VALIDATION] = rows[VALIDATION]
    chosen = splits.values()
    splits = label_splits(splits, options)
    tell_idle_filters(chosen, options.where)
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


def _require_labels(
    chosen: Dataset, splits: Mapping[str, Dataset], options: DataOptions, choice: str = "`split` (--split)"
) -> None:
    """Refuse a split in which no row has a label, which no filter of rows mends.

    Raises:
        ValueError: so it is; says which splits have labels.
    """
    if options.multi_label or options.label_column not in chosen.column_names or _is_labelled(chosen, options):
        return
    name = next(name for name, rows in splits.items() if rows is chosen)
    labelled = [name for name, rows in splits.items() if _is_labelled(rows, options)]
    remedy = (
        f"Those that have: {', '.join(labelled)}. Name another by {choice}, or give the files of one split alone as the data, of "
        "which a test split is cut off."
        if labelled
        else "Nor has any other. Images without labels are for --unlabelled with --class-names."
    )
    raise ValueError(f"No row of the split {name!r} has a label in the column {options.label_column!r}. {remedy}")


@typed
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


@typed
def with_class_names(rows: Dataset, class_names: Sequence[str]) -> Dataset:
    """Give labelled rows the labels of a list of classes, among which the rows' own classes are found by name.

    Images with several labels have the label -100, which does not count, of those classes that the rows do not have.

    Raises:
        ValueError: a class with images is none of them; says the nearest, and how to write a mapping.
    """
    names = rows.features["label"].names
    if is_multi_label(rows):
        found = find_classes(names, class_names)
        known = np.full((len(rows), len(class_names)), NOT_KNOWN)  # of classes that the data know nothing of
        known[:, [found[position] for position in range(len(names))]] = label_matrix(rows)
        return with_label_matrix(rows, known, class_names)
    labels = np.asarray(rows["label"][:], dtype=int)
    here = np.flatnonzero(np.bincount(labels, minlength=len(names))).tolist()
    here = list(range(len(names))) if list(names) == list(class_names) else here
    found = find_classes([names[label] for label in here], class_names)
    new = np.zeros(len(names), dtype=int)
    new[here] = [found[position] for position in range(len(here))]
    return set_column(rows, "label", new[labels], class_label(class_names))


def _load_split(options: DataOptions, split: str | None) -> Dataset:
    if options.benchmark is not None:
        splits = with_trainval(load_task(options.benchmark, options.path, _listed(options)))
        return checked(split_named(splits, split or options.test_split, options), split or options.test_split, options)
    splits = read_splits(options)
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
    wanted = {split: split_named(splits, split, options)}
    _require_labels(wanted[split], splits, options)
    # Every class has a training image; those of the test split count for `min_images` alone.
    names = [options.train_split, options.test_split] if options.min_images > 1 else [options.train_split]
    found = {name: _find_split(splits, name, options) for name in names if name != split}
    known = {
        name: splits[real] for name, real in found.items() if real is not None and _is_labelled(splits[real], options)
    }
    counted = known | wanted if split in names and known else known
    counted = counted if options.train_split in counted else wanted
    labelled = label_splits(wanted | counted, options, counted, checked=[split])[split]
    tell_idle_filters((wanted | counted).values(), options.where)
    return labelled


@typed
def require_same_split(options: DataOptions, split: str | None, trained: DataOptions) -> None:
    """Refuse other rows or classes than a training's where its test or validation images were cut off by us.

    Args:
        options: images of that training, as `as_trained` gives them.
        split: name of the split to read; None for the test split.
        trained: the options of the training.

    Raises:
        ValueError: they would be cut off among others, and images that were trained on would be among them.
    """
    differ = [name for name in ROW_OPTIONS if getattr(options, name) != getattr(trained, name)]
    if not differ or options.benchmark is not None or split == options.train_split:
        return
    if _find_split(read_splits(options), split or options.test_split, options) is None:
        raise ValueError(
            f"The data has no split {split or options.test_split!r}: the training cut these images off, and with other options "
            f"than its own they would be others, some of them trained on. Received: {', '.join(differ)}. Leave that out, or "
            "evaluate on other data."
        )


def _only_split(splits: Mapping[str, Dataset], options: DataOptions) -> str:
    train = _find_split(splits, options.train_split, options)
    if train is None or len(splits) > 1:
        raise ValueError(f"No split {options.test_split!r}. The data has: {', '.join(splits)}. Name one (`--split`).")
    return train


def _is_labelled(rows: Dataset, options: DataOptions) -> bool:
    column = options.label_column
    if options.label_columns:
        return True
    return column in rows.column_names and any(label not in (None, -1) for label in rows[column][:])


def _find_split(splits: Mapping[str, Dataset], name: str, options: DataOptions) -> str | None:
    """Return what the data calls a split, None if it has none: folders `val` and `dev` are read as `validation`."""
    if name in splits:
        return name
    named_by_user = options.split_column is not None or options.benchmark is not None
    usual = None if named_by_user else split_name(name)
    return next((other for other in splits if usual is not None and split_name(other) == usual), None)


def split_named(splits: Mapping[str, Dataset], name: str, options: DataOptions) -> Dataset:
    """Return the split of a name; folders `val` and `dev` are read as `validation`.

    Raises:
        ValueError: there is none; names those that there are.
    """
    found = _find_split(splits, name, options)
    if found is None:
        raise ValueError(f"No split {name!r}. The data has: {', '.join(splits)}.")
    return splits[found]


@typed
def load_unlabelled(options: DataOptions) -> DatasetDict:
    """Read images to train on without their labels, and labelled images to test on, if there are any.

    The label column of the training split is not read, and need not be there, if there is a test split or
    `test_fraction=0`; else it serves to cut a test split off and is dropped. Images without any label come alone.

    Raises:
        FileNotFoundError, ValueError: as `load_images`.
    """
    if options.multi_label:
        raise ValueError(
            "Labels that are not read are given one for each image by the model. Received: multi_label=True without labels. "
            "Leave one of both out (--multi-label or --unlabelled)."
        )
    if options.benchmark is not None:
        return _without_labels(load_images(options), options)
    rows = read_splits(options, keep_loose=True)
    splits = _choose_splits(rows, options)
    _require_training(splits, options)
    train = splits["train"]
    if "test" in splits and options.min_images > 1:
        raise ValueError(
            f"`min_images={options.min_images}` counts the images of a class in all splits, and the labels of the "
            "training images are not read here. Leave it out, and name the classes by `class_names`."
        )
    if "test" not in splits and options.test_fraction != 0 and _is_labelled(train, options):
        try:
            return _without_labels(load_images(options), options)
        except ClassNamesError as error:
            raise ClassNamesError(
                f"{error} Labels serve to cut test images off here; test_fraction=0 (--test-fraction 0) reads none of them."
            ) from error
    if options.val_fraction:
        raise ValueError(
            f"`val_fraction={options.val_fraction}` holds images of every class out, and the labels of the training images are "
            "not read here. Leave it out (--val-fraction)."
        )
    tests = {}
    if "test" in splits:
        _require_labels(splits["test"], rows, options, "`test_split` (--test-split)")
        tests = label_splits({"test": splits["test"]}, options)
    if not holds_features(train):
        check_column(train, options.image_column)
    chosen = np.flatnonzero(where_mask(train, options.where))
    tell_idle_filters(splits.values(), options.where)
    train = image_column(train.select(chosen), options)
    train = checked(train, options.train_split, options)
    return DatasetDict(train=train, **tests)


def _without_labels(labelled: DatasetDict, options: DataOptions) -> DatasetDict:
    kept = ("test", *([VALIDATION] if options.val_fraction else []))
    held_out = {name: rows for name, rows in labelled.items() if name in kept}
    return DatasetDict(train=images_alone(labelled["train"]), **held_out)


def _load_benchmark(options: DataOptions) -> DatasetDict:
    """Return the splits of a task: `train`, `test` and, where it is not trained on, `validation`."""
    # pyrefly: ignore[bad-argument-type]  # called where there is a benchmark
    splits = with_trainval(load_task(options.benchmark, options.path, _listed(options)))
    chosen = _choose_splits(splits, options)
    _require_training(chosen, options)
    left = {"validation": splits["validation"]} if options.train_split != TRAINVAL and "validation" in splits else {}
    return DatasetDict({name: checked(rows, name, options) for name, rows in (chosen | left).items()})


def _listed(options: DataOptions) -> list[str] | None:
    """Return class names for the numbers of a benchmark, which count from 0."""
    if isinstance(options.class_names, Mapping):
        raise ValueError("Class names of a benchmark are a list in label order. Received: a mapping.")
    return options.listed_names


def read_splits(options: DataOptions, keep_loose: bool = False, labelled: bool = True) -> dict[str, Dataset]:
    """Read all splits at a local path or of a data set on the Hub; not `labelled`, folders say nothing of their images.

    Raises:
        CannotWriteError: the cache of data sets cannot be written.
    """
    with disk_errors(datasets.config.HF_DATASETS_CACHE, CACHE_REMEDY):
        splits = read_rows(
            options.path,
            image_column=options.image_column,
            label_column=options.label_column if labelled and not options.label_columns else None,
            labels_from=options.labels_from if labelled else None,
            keep_loose=keep_loose,
        )
    return _split_by_column(splits, options.split_column) if options.split_column else splits


def _split_by_column(splits: dict[str, Dataset], column: str) -> dict[str, Dataset]:
    if len(splits) != 1:
        raise ValueError(f"`split_column` needs data in one split. Received the splits: {', '.join(splits)}.")
    (rows,) = splits.values()
    check_column(rows, column)
    values = texts(rows, column)
    return {str(value): rows.select(np.flatnonzero(values == value)) for value in np.unique(values)}


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
