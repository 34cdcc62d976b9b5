"""Which text goes around class names: ensembles by name, the published template of a task, or what the user writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.prompt_templates import ENSEMBLES, SINGLE
from ..data import find_task
from ..training.evaluation import compares_with_text
from ..tuners.base.class_name_checks import check_templates
from ..tuners.base.config import PromptConfig


#: The name of a task's published template.
PUBLISHED = "dataset"

#: Names of templates that `read_templates` knows.
NAMES = ("single", PUBLISHED, *ENSEMBLES)


def read_templates(
    given: Sequence[str] | None, benchmark: str | None = None, described: bool = False
) -> str | list[str] | None:
    """Return the templates that are asked for, of which several are averaged; None where none is.

    Args:
        given: names in `NAMES`, or texts with `{}` in the place of the class name; several are joined to one ensemble.
        benchmark: the task whose published template is `dataset`.
        described: whether sentences describe the classes, which stand for templates.

    Raises:
        ValueError: neither a name nor a template, a task without a published one, or sentences beside them.
    """
    if not given:
        return None
    if described:
        raise ValueError(
            "Expected --template or --class-descriptions, whose sentences stand for templates. Received: both. Leave one out."
        )
    found = list(dict.fromkeys(template for each in given for template in _templates(each, benchmark)))
    return found[0] if len(found) == 1 else found


def published_template(benchmark: str | None) -> str | None:
    """Return the text that papers put the class names of a task into; None where they have none.

    Raises:
        ValueError: an unknown task.
    """
    return find_task(benchmark).template if benchmark else None


def set_templates(model: Any, templates: str | Sequence[str]) -> None:
    """Put other text around class names, for zero-shot and wherever an adapter has not learned it, for evaluation.

    Sentences that described classes are left out from then on: they stand for templates.

    Args:
        model: a PEFT model.
        templates: one, or several to average.

    Raises:
        ValueError: the model has a classification head, which reads no text, or a malformed template.
    """
    if not compares_with_text(model):
        raise ValueError(
            "Expected a model that compares images with class names, for a template around them. Received: one with a "
            "classification head, which reads no text. Leave --template out."
        )
    config = model.active_peft_config
    if not isinstance(config, PromptConfig):  # one of PEFT's own
        model.class_name_classifier.adapted.set_template(templates)
        return
    check_templates("template", templates)
    config.template = templates if isinstance(templates, str) else list(templates)
    config.class_descriptions = None


def _templates(given: str, benchmark: str | None) -> list[str]:
    if given == "single":
        return [SINGLE]
    if given == PUBLISHED:
        template = published_template(benchmark)
        if template is None:
            raise ValueError(
                f"Expected a task whose papers have a template, such as --benchmark coop-11/dtd, for --template {PUBLISHED}. "
                f"Received: {benchmark or 'no --benchmark'}. Write the template out, such as 'a photo of a {{}}.'."
            )
        return [template]
    if given in ENSEMBLES:
        return ENSEMBLES[given]
    if "{}" not in given:
        raise ValueError(
            f"Expected a template with '{{}}' for the class name, or one of {', '.join(NAMES)}. Received: {given!r}."
        )
    return [given]
