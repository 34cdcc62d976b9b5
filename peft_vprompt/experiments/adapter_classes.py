"""Which classes an adapter is evaluated on: all that it knows, by their names, or others that the user asks for."""

from collections.abc import Sequence

from datasets import Dataset
from peft import PeftConfig

from ..data import with_class_names
from ..data.class_names import unknown_classes
from ..tuners.base.registry import get_method
from ..utils.name_keys import readable
from ..utils.validation import shorten
from ..utils.warning import warn_caller
from .eval_sets import split_classes


def known_classes(config: PeftConfig | None, saved: dict | None) -> list[str] | None:
    """Return the classes of an adapter in label order, base before novel; None where nothing says them.

    Args:
        config: the adapter's config; None without an adapter.
        saved: what `results.json` beside it holds, if it is there.
    """
    if saved is not None:
        return [name for names in saved["classes"].values() for name in names]
    return getattr(config, "class_names", None)


def classes_to_tell_apart(
    rows: Dataset, given: Sequence[str] | None, known: Sequence[str] | None, new: bool = False
) -> Dataset:
    """Return labelled images with the labels of the classes to tell them apart among.

    These are all classes that the adapter knows, in its order. They are others where these are asked for, or where the
    user lists names of which none is the adapter's, however it is written.

    Args:
        rows: images with the data's own classes.
        given: list of names that the user gave, None for a mapping or nothing.
        known: classes of the adapter; None where nothing says them.
        new: take the data's classes.

    Raises:
        ValueError: a class of the data is none of the adapter's.
    """
    if new or known is None:
        return rows
    others = [] if given is None else unknown_classes(given, known)
    if given is not None and len(others) == len(given):
        return rows
    rows = with_class_names(rows, known)
    if others:
        warn_caller(
            f"Names given that are none of the adapter's {len(known)} classes, and of which there is no image: "
            f"{shorten(others)}. Images are told apart among the adapter's classes alone."
        )
    return rows


def require_moves(head: Sequence[str] | None, names: Sequence[str]) -> None:
    """Refuse to tell the data's classes apart, in the place of its own, for a model with a classification head.

    Args:
        head: classes of the head, None for a model that compares with class names.
        names: classes of the data.

    Raises:
        ValueError: they are others, or some of them.
    """
    if head is not None and set(map(readable, names)) != set(map(readable, head)):
        raise ValueError(
            f"A classification head tells the {len(head)} classes of its training apart ({shorten(head)}), and no others in "
            f"their place. Received: --new-classes for {shorten(names)}. Leave --new-classes out to find the data's classes "
            "among them, or train a method on class names, such as coop, with a model with a text tower."
        )


def subsets(names: Sequence[str], saved: dict | None) -> dict[str, list[str]]:
    """Return the classes by subset: `all`, and `base` and `novel` as in the training, else the halves."""
    classes = {"all": list(names)}
    trained = saved["classes"] if saved is not None else {}
    if "base" in trained and set(trained["base"]) <= set(names) and len(names) == sum(map(len, trained.values())):
        return classes | trained
    return classes | (split_classes(list(names), True) if len(names) > 1 else {})


def warn_trained(subset: str, names: Sequence[str], saved: dict | None, has_head: bool = False) -> None:
    """Say so where classes that are called novel, or a half that is called base, were all trained on, and what keeps some back.

    Args:
        subset: name of the subset.
        names: its classes.
        saved: what `results.json` beside the adapter holds; None where there is none.
        has_head: the adapter is of an image classifier, whose head has the classes of its training.
    """
    if saved is None or subset == "all" or not set(names) <= set(saved["classes"].get("all", ())):
        return
    half = {"base": "first", "novel": "second"}[subset]
    method = get_method(saved["settings"]["method"])
    if saved["settings"].get("teacher") is not None:
        remedy = "It read no label of them: the second half is as new as to its teacher, if that was trained with --base-novel."
    elif has_head:
        remedy = (
            "A classification head learns for each class alone: a method on class names, such as coop, with a model with a text "
            "tower can keep some back (--base-novel)."
        )
    elif method.new_classes:
        remedy = "Train with --base-novel to keep some back."
    else:
        remedy = (
            f"{method.title} learns for each class alone: a method such as coop can keep some back (--base-novel)."
        )
    warn_caller(
        f"This adapter was trained on all of its classes: {subset!r} is the {half} half of them, and none of them is new "
        f"to it. {remedy}"
    )
