"""Classes and test images of the data: what a run is evaluated on."""

from collections.abc import Callable, Sequence

from datasets import Dataset, DatasetDict

from ..data import EvalTransform, base_novel_split, select_classes
from ..data.feature_folders import holds_features
from ..training.cached_features import feature_rows
from ..training.evaluation import EvalSet


def class_names_of(data: DatasetDict, given: Sequence[str] | None = None) -> list[str]:
    """Return the class names of the data; unlabelled training images have those of the test images.

    Args:
        data: images by split.
        given: names of the classes, where no image has a label.

    Raises:
        ValueError: no image has a label, and no names or one alone are given.
    """
    for rows in data.values():
        if "label" in rows.column_names:
            return rows.features["label"].names
    if not given:
        raise ValueError("Expected class names for images without labels. Give --class-names (class_names).")
    if len(given) < 2:
        raise ValueError(
            f"Expected several class names for images without labels. Received: {list(given)}. Write one name per line, or a "
            "JSON list."
        )
    return list(given)


def require_test_images(data: DatasetDict, what: str) -> None:
    """Refuse data without test images where these decide.

    Raises:
        ValueError: there are none; names what needs them.
    """
    if "test" not in data:
        raise ValueError(f"{what} compares accuracies on test images. Received none: use a test_fraction above 0.")


def split_classes(names: list[str], base_novel: bool) -> dict[str, list[str]]:
    """Return class names by the name of the split they are evaluated in; the first split is the one to train on.

    Raises:
        ValueError: fewer than two classes to make base and novel of.
    """
    return dict(zip(("base", "novel"), base_novel_split(names), strict=True)) if base_novel else {"all": names}


def eval_sets(
    test: Dataset, classes: dict[str, list[str]], image_processor, keep: Callable | None = None
) -> dict[str, EvalSet]:
    """Return the test images of every split, preprocessed as the model wants them.

    Args:
        test: labelled images.
        classes: class names by the name of the split.
        image_processor: the model's.
        keep: applies the transform to images of one split; default: when they are read, of features not at all.

    Raises:
        ValueError: a name is not a class of the images, or a split has no image.
    """
    transform = EvalTransform(image_processor)
    keep = keep or _as_read
    return {name: EvalSet(keep(select_classes(test, names), transform), names) for name, names in classes.items()}


def _as_read(images: Dataset, transform: EvalTransform) -> Dataset:
    return feature_rows(images) if holds_features(images) else images.with_transform(transform)
