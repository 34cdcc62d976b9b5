"""Class names and the templates around them: what is refused, and the digest by which names are known."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

from ...errors import ClassNamesError
from ...utils.digests import digest_json
from ...utils.fields import MAX_ITEMS, MAX_TEXT, is_text, shown
from ...utils.name_keys import readable


#: Most texts of classes: ImageNet-21k's names in CLIP's 80 templates are less than two million.
MAX_CLASS_PROMPTS = 4_000_000


def check_class_names(names: Sequence[str]) -> list[str]:
    """Return `names` as a list of strings, or say what is wrong with them. Repeated names only warn.

    Raises:
        ClassNamesError: no names, an empty name, or something that is not a sequence of strings.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        remedy = f" Use [{shown(names)}]." if isinstance(names, str) else ""
        raise ClassNamesError(f"Expected a list of class names. Received: class_names={shown(names)}.{remedy}")
    if not names or len(names) > MAX_ITEMS:
        raise ClassNamesError(
            f"Expected at least one class name and at most {MAX_ITEMS:,}. Received: class_names of {len(names):,}. "
            "Leave out the classes that no image can be of."
        )
    for index, name in enumerate(names):
        if not isinstance(name, str) or not readable(name).strip() or not is_text(name):
            raise ClassNamesError(
                f"Expected every class name to be a non-empty string of at most {MAX_TEXT:,} characters. "
                f"Received: class_names[{index}]={shown(name)}."
            )
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        warnings.warn(
            f"class_names repeats {repeated[:5]}: these classes get the same text features and cannot be told apart.",
            stacklevel=2,
        )
    return list(names)


def check_templates(name: str, template: str | Sequence[str]) -> None:
    """Refuse what is no template and no list of them.

    Raises:
        ValueError: names the field and the value.
    """
    if not isinstance(template, (str, list, tuple)) or not template:
        raise ValueError(f"Expected a template or a list of them. Received: {name}={shown(template)}.")
    for each in [template] if isinstance(template, str) else template:
        if not isinstance(each, str) or each.count("{}") != 1:
            raise ValueError(
                f"Expected a template with exactly one '{{}}' for the class name. Received: {name}={shown(each)}."
            )


def check_prompts(classes: int, templates: int) -> None:
    """Refuse more class prompts, one for each name and each template or context, than fit into memory as token ids.

    Raises:
        ValueError: names both numbers.
    """
    if classes * templates > MAX_CLASS_PROMPTS:
        raise ValueError(
            f"Expected at most {MAX_CLASS_PROMPTS:,} class prompts. Received: {classes:,} class names with {templates:,} "
            "templates or contexts each. Use fewer."
        )


def digest_names(names: Sequence[str]) -> str:
    """Return a short digest of class names in their order, as they are read: underscores are spaces."""
    return digest_json([readable(name) for name in names])
