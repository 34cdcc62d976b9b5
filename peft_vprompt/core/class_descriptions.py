"""Sentences that describe classes, `{class: [sentence, ...]}`: read, checked, and found by a class's name.

Source of the form: Pratt et al., "What does a platypus look like? Generating customized prompts for zero-shot image
classification" (CuPL), ICCV 2023, sarahpratt/CuPL.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ClassNamesError
from ..utils.fields import shown
from ..utils.io import read_json
from ..utils.name_keys import folded
from ..utils.validation import shorten


#: Sentences by class.
Descriptions = dict[str, list[str]]


def read_descriptions(source: Mapping[str, Sequence[str]] | str | os.PathLike) -> Descriptions:
    """Return descriptions as a dict of lists, from a mapping or from a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON, or the content is not of the form {class: [sentence, ...]}.
    """
    where = "class_descriptions"
    content: Any = source
    if isinstance(source, (str, os.PathLike)):
        where = f"the class descriptions in {os.fspath(source)}"
        content = read_json(os.fspath(source))
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f"Expected {where} to be a dict from each class to its sentences, such as {{'cat': ['A cat has whiskers.']}}. "
            f"Received: {shown(content)}."
        )
    for name, sentences in content.items():
        if not isinstance(name, str) or not _are_sentences(sentences):
            raise ValueError(
                f"Expected {where} to have a list of at least one sentence for each class. Received: {shown(name)}: "
                f"{shown(sentences)}. Leave a class out that has none."
            )
    return {name: list(sentences) for name, sentences in content.items()}


def _are_sentences(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(x, str) and x.strip() for x in value)


def find_descriptions(names: Sequence[str], descriptions: Descriptions) -> list[list[str]]:
    """Return the sentences of each class, found by its name as it is written, else with underscores and hyphens as spaces.

    Descriptions of other classes are left alone.

    Raises:
        ClassNamesError: classes without descriptions, or with several that are written alike.
    """
    alike: dict[str, list[str]] = {}
    for key in descriptions:
        alike.setdefault(folded(key), []).append(key)
    keys = [[name] if name in descriptions else alike.get(folded(name), []) for name in names]
    if missing := [name for name, found in zip(names, keys, strict=True) if not found]:
        (nearest,) = difflib.get_close_matches(folded(missing[0]), list(alike), n=1, cutoff=0.0)
        raise ClassNamesError(
            f"Classes without a description: {shorten(missing)}. The nearest to {missing[0]!r} is {alike[nearest][0]!r}. "
            "Give each at least one sentence under its name: in the config's class_descriptions, by "
            "model.describe_classes({...}), or in the file of --class-descriptions."
        )
    if unclear := [found for found in keys if len(found) > 1]:
        raise ClassNamesError(
            f"Class descriptions that are written alike: {shorten(unclear[0])}. Join their sentences under one name."
        )
    return [descriptions[found[0]] for found in keys]
