"""The model card of a saved adapter."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

import jinja2


if TYPE_CHECKING:
    from .peft_model import PeftModelForImageClassification


def render_model_card(model: PeftModelForImageClassification) -> str:
    """Text of the README.md that is saved with the active adapter."""
    from .registry import METHODS

    config = model.active_peft_config
    base = model.get_base_model()
    template = resources.files(__package__).joinpath("model_card.md.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, autoescape=False, keep_trailing_newline=True
    )
    return environment.from_string(template).render(
        method=METHODS[config.peft_type.value.lower()],
        base_class=type(getattr(base, "base_layer", base)).__name__,
        base_model=config.base_model_name_or_path,
        class_names=config.class_names,
        trainable=sum(v.numel() for v in model._adapter_state(model.active_adapter).values()),
    )
