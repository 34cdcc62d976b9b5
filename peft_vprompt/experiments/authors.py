"""What a method's authors have on published data: the text around class names, and their variations of recipe and config."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any

from peft import PeftConfig

from ..data import find_task
from ..tuners.base.config import PromptConfig
from ..tuners.base.recipe import Recipe
from ..tuners.base.registry import find_row, get_method
from .models import published_fields
from .settings import RECIPE_CHANGES, Settings
from .templates import published_template


#: The benchmark whose data sets authors vary recipes by.
VARIED = "coop-11"

_RECIPE_FIELDS = {field.name for field in fields(Recipe)}


@dataclass(frozen=True)
class Choices:
    """What the authors have on a published task that the method's own recipe and config have not.

    Attributes:
        text: fields of the config that the text around class names decides.
        changes: fields of config and recipe that they vary.
    """

    text: dict[str, Any]
    changes: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """All fields of the config."""
        return self.text | {name: value for name, value in self.changes.items() if name not in _RECIPE_FIELDS}

    @property
    def report(self) -> dict[str, Any]:
        """The same for JSON."""
        found = self.text | self.changes
        return {name: asdict(value) if is_dataclass(value) else value for name, value in found.items()}

    def vary(self, recipe: Recipe | None) -> Recipe | None:
        """Return the recipe that they train with."""
        changed = {name: value for name, value in self.changes.items() if name in _RECIPE_FIELDS}
        return replace(recipe, **changed) if recipe is not None and changed else recipe


def published_choices(settings: Settings, benchmark: str | None) -> Choices:
    """Return what the authors have on a published task in the protocol of the settings; not what the settings set themselves.

    Args:
        settings: the method, what is changed of it, and the protocol.
        benchmark: full name of the task; None for other data.

    Raises:
        ValueError: an unknown task or method.
    """
    if benchmark is None:
        return Choices({}, {})
    protocol = settings.protocol or ("base-to-novel" if settings.base_novel else "few-shot")
    found = variation_of(settings.method, benchmark, protocol)
    own = {name for name in RECIPE_CHANGES if getattr(settings, name) is not None} | settings.config.keys()
    text = {} if "template" in settings.config else published_fields(benchmark, settings.method)
    words, length = text.get("prompt_init_text", ""), settings.config.get("num_virtual_tokens")
    if isinstance(length, int) and len(words.split()) > length:
        own.add("prompt_init_text")
    return Choices(*({name: value for name, value in each.items() if name not in own} for each in (text, found)))


def variation_of(method: str, benchmark: str, protocol: str) -> dict[str, Any]:
    """Return the fields of recipe and config that a method's authors vary for a published task in a protocol.

    Raises:
        ValueError: an unknown task or method.
    """
    task = find_task(benchmark)
    variations = get_method(method).variations if task.benchmark == VARIED else ()
    fitting = [variation.changes for variation in variations if variation.fits(task.name, protocol)]
    return {name: value for changes in fitting for name, value in changes.items()}


def fields_elsewhere(config: PeftConfig, benchmark: str | None, method: str | None = None) -> dict[str, Any]:
    """Return the fields that a trained adapter's config has on another published task; none for other data.

    Args:
        config: the adapter's.
        benchmark: full name of the task.
        method: name of the method; None for the one that the config is of.

    Raises:
        ValueError: an unknown task.
    """
    template = published_template(benchmark)
    if template is None:
        return {}
    spec = get_method(method) if method else find_row(config, is_classifier=False)
    if spec is None or not isinstance(config, PromptConfig):  # one of PEFT's own
        return {"template": template}
    return spec.text(template) | spec.elsewhere(config)
