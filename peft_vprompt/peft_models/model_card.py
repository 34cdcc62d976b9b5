"""The model card of a saved adapter."""

from __future__ import annotations

from importlib import resources
from typing import Any

import jinja2
from peft import PeftModel
from peft.utils import get_peft_model_state_dict

from ..backbones.supported import HEADS, class_name, dual_encoder_view
from ..tuners.base.registry import PROMPT_METHODS, find_row
from ..utils.digests import Digest


#: How the line begins by which a card is known that nobody has edited.
SEAL = "\n<!-- Written by peft_vprompt, which writes it anew while this line fits the text above: "


def seal(card: str) -> str:
    """Return the card with a last line that tells whether it was edited since."""
    return f"{card}{SEAL}{Digest().add(card.encode()).hex(16)} -->\n"


def is_untouched(card: str) -> bool:
    """Return whether a card is as `seal` left it."""
    return card == seal(card.rpartition(SEAL)[0])


def render_model_card(model: PeftModel) -> str:
    """Return the text of the README.md that is saved with the active adapter."""
    config: Any = model.active_peft_config
    base = model.get_base_model()
    # pyrefly: ignore[bad-argument-type]  # set, as this is no script
    template = resources.files(__package__).joinpath("model_card.md.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, autoescape=False, keep_trailing_newline=True
    )
    state = get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)
    num_labels = base.config.num_labels if class_name(base) in HEADS else None
    return environment.from_string(template).render(
        method=find_row(config, is_classifier=dual_encoder_view(base) is None),
        kind="prompt-learning" if config.peft_type.value.lower() in PROMPT_METHODS else "fine-tuning",
        base_class=class_name(base),
        base_model=config.base_model_name_or_path,
        # The head has other classes than the base model's own, perhaps.
        head=f", num_labels={num_labels}, ignore_mismatched_sizes=True" if num_labels else "",
        class_names=getattr(config, "class_names", None),
        trainable=sum(tensor.numel() for tensor in state.values()),
    )
