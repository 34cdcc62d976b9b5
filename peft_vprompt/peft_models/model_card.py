"""The model card of a saved adapter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCard
from peft import PeftModel
from peft.utils import get_peft_model_state_dict

from ..backbones.supported import HEADS, class_name, dual_encoder_view
from ..tuners.base.peft_patches import OWN_PACKAGE
from ..tuners.base.registry import METHODS, PROMPT_METHODS, find_row, is_known
from ..tuners.base.spec import MethodSpec
from ..utils.digests import Digest
from .labels import is_named
from .publishing import hub_id


#: How the line begins by which a card is known that nobody has edited.
SEAL = "\n<!-- Written by peft_vprompt, which writes it anew while this line fits the text above: "


def seal(card: str) -> str:
    """Return the card with a last line that tells whether it was edited since."""
    return f"{card}{SEAL}{Digest().add(card.encode()).hex(16)} -->\n"


def is_untouched(card: str) -> bool:
    """Return whether a card is as `seal` left it."""
    return card == seal(card.rpartition(SEAL)[0])


def is_generated(card: str) -> bool:
    """Return whether a card that is not ours was written by transformers (the Trainer, say) and has no snippet."""
    return (
        "import peft_vprompt" not in card
        and re.search("generated automatically|automatically generated", card) is not None
    )


def with_snippet(card: str, rendered: str) -> str:
    """Return a card with the section on use, the classes and the data of a rendered one behind it."""
    mine: Any = ModelCard(card, ignore_metadata_errors=True)
    ours: Any = ModelCard(rendered)
    mine.data.tags = [*(mine.data.tags or ()), *(ours.data.tags or ())]
    mine.data.pipeline_tag = ours.data.pipeline_tag
    use = ours.text[ours.text.index("## Use") : ours.text.index("## Training procedure")]
    return f"{str(mine).rstrip()}\n\n{use}"


def add_tags(path: Path, tags: Sequence[str]) -> None:
    """Add tags to a card; one that nobody has edited stays so."""
    ours = is_untouched(path.read_text(encoding="utf-8"))
    card: Any = ModelCard.load(path)
    if ours:
        card.content = card.content.rpartition(SEAL)[0]
    card.data.tags = list(dict.fromkeys([*(card.data.tags or ()), *tags]))
    path.write_text(seal(str(card)) if ours else str(card), encoding="utf-8")


def row_of(model: PeftModel) -> MethodSpec | None:
    """Return the row that people mean by the active adapter; None for one of PEFT's own that is in no row."""
    config: Any = model.active_peft_config
    if not is_known(config.peft_type) and all(spec.config_class is not type(config) for spec in METHODS.values()):
        return None
    return find_row(config, is_classifier=dual_encoder_view(model.get_base_model()) is None)


def trained_classes(model: PeftModel) -> list[str] | None:
    """Return the names of the classes that the active adapter was configured or trained with."""
    classifier: Any = getattr(model, "class_name_classifier", None)
    return None if classifier is None else classifier.adapted.config.class_names


def render_model_card(model: PeftModel, is_published: bool = False) -> str:
    """Return the text of the README.md that is saved with the active adapter.

    Args:
        model: the PEFT model.
        is_published: whether it is for another machine, on which the base model's local folder is not.
    """
    config: Any = model.active_peft_config
    base: Any = model.get_base_model()
    # pyrefly: ignore[bad-argument-type]  # set, as this is no script
    template = resources.files(__package__).joinpath("model_card.md.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, autoescape=False, keep_trailing_newline=True
    )
    state = get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)
    num_labels = base.config.num_labels if class_name(base) in HEADS else None
    labels = base.config.id2label if num_labels else {}
    names = trained_classes(model) if dual_encoder_view(base) is not None else None
    base_model = hub_id(config.base_model_name_or_path)
    # The adapter's config names a folder of this machine, from which the base model can be loaded here.
    is_local = base_model is None and config.base_model_name_or_path is not None and not is_published
    library = "peft_vprompt.models" if type(base).__module__.startswith(f"{OWN_PACKAGE}.") else "transformers"
    return environment.from_string(template).render(
        method=row_of(model),
        kind="prompt-learning" if config.peft_type.value.lower() in PROMPT_METHODS else "fine-tuning",
        base_class=class_name(base),
        base_model=base_model,
        is_local=is_local,
        # Files of open_clip are nothing that a class of transformers could load.
        by_adapter=is_local or (getattr(base, "is_open_clip", False) and base_model is not None),
        library=None if class_name(base) == "OpaqueCLIPModel" else library,
        # The head has other classes than the base model's own, perhaps.
        head=f", num_labels={num_labels}, ignore_mismatched_sizes=True" if num_labels else "",
        is_zero_shot=names is not None,
        class_names=names or (list(labels.values()) if is_named(labels) else None),
        trainable=sum(tensor.numel() for tensor in state.values()),
    )
