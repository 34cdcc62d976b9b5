"""The model card of a saved adapter."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCard, ModelCardData
from peft import PeftModel
from peft.utils import get_peft_model_state_dict

from ..backbones.supported import HEADS, class_name, dual_encoder_view
from ..tuners.base.peft_patches import OWN_PACKAGE
from ..tuners.base.registry import PROMPT_METHODS, find_row, registering_module
from ..tuners.base.spec import MethodSpec
from ..utils.digests import Digest
from ..version import __version__
from .card_details import CardDetails
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
    take_results(mine, ours)
    use = ours.text[ours.text.index("## Use") : ours.text.index("## Training procedure")]
    return f"{str(mine).rstrip()}\n\n{use}"


def take_results(mine: Any, ours: Any) -> None:
    """Give a card the results and the relation to the base model that a rendered one has; its text stays."""
    if ours.data.eval_results:
        mine.data.model_name = mine.data.model_name or ours.data.model_name
        mine.data.eval_results = ours.data.eval_results
    for name in ("base_model_relation", "datasets", "language", "license"):
        if ours.data.get(name) is not None and mine.data.get(name) is None:
            mine.data[name] = ours.data[name]


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
    return find_row(config, is_classifier=dual_encoder_view(model.get_base_model()) is None)


def trained_classes(model: PeftModel) -> list[str] | None:
    """Return the names of the classes that the active adapter was configured or trained with."""
    classifier: Any = getattr(model, "class_name_classifier", None)
    return None if classifier is None else classifier.adapted.config.class_names


def render_model_card(
    model: PeftModel,
    is_published: bool = False,
    details: CardDetails | None = None,
    *,
    repo_id: str | None = None,
    revision: str | None = None,
) -> str:
    """Return the text of the README.md that is saved with the active adapter.

    Args:
        model: the PEFT model.
        is_published: whether it is for another machine, on which the base model's local folder is not.
        details: what is known of its training; None for nothing.
        repo_id: where it will lie on the Hub, None where nobody knows.
        revision: likewise the branch; None for the main one.
    """
    config: Any = model.active_peft_config
    base: Any = model.get_base_model()
    details = details or CardDetails()
    is_zero_shot = dual_encoder_view(base) is not None
    method: Any = row_of(model)
    base_model = hub_id(config.base_model_name_or_path)
    task = "zero-shot-image-classification" if is_zero_shot else "image-classification"
    kind = "prompt-learning" if config.peft_type.value.lower() in PROMPT_METHODS else "fine-tuning"
    metadata = ModelCardData(
        library_name="peft",
        tags=["peft_vprompt", kind],
        pipeline_tag=task,
        base_model_relation="adapter" if base_model else None,
        datasets=[details.data_set] if details.data_set else None,
        language=details.language,
        license=details.license,
        model_name=f"{method.title} adapter for {class_name(base)}" if details.scores else None,
        eval_results=details.results(task) or None,
    )
    # pyrefly: ignore[bad-argument-type]  # set, as this is no script
    template = resources.files(__package__).joinpath("model_card.md.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, autoescape=False, keep_trailing_newline=True
    )
    state = get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)
    return environment.from_string(template).render(
        metadata=metadata.to_yaml(),
        method=method,
        details=details,
        has_zero_shot=any(score.zero_shot is not None for score in details.scores),
        has_chance=any(score.chance is not None for score in details.scores),
        number=lambda value: "\N{EN DASH}" if value is None else f"{value:.2f}",
        version=__version__,
        is_zero_shot=is_zero_shot,
        class_names=_class_names(model, is_zero_shot),
        several=getattr(config, "is_multi_label", False),
        adapter=repo_id or "path/or/hub-id-of-this-adapter",
        at_revision=f', revision="{revision}"' if repo_id and revision else "",
        trainable=sum(tensor.numel() for tensor in state.values()),
        base_model=base_model,
        **_base_options(base, config, base_model, is_published),
    )


def _class_names(model: PeftModel, is_zero_shot: bool) -> list[str] | None:
    """Return the names of the classes that a card lists; None where nobody has named them."""
    if is_zero_shot:
        return trained_classes(model)
    base: Any = model.get_base_model()
    labels = base.config.id2label if class_name(base) in HEADS else {}
    return list(labels.values()) if is_named(labels) else None


def _base_options(base: Any, config: Any, base_model: str | None, is_published: bool) -> dict[str, Any]:
    """Return what the card's snippet says to load the base model, see the template."""
    named = config.base_model_name_or_path
    is_embedded = _is_embedded(base.name_or_path)
    # The adapter's config names a folder of this machine, from which the base model can be loaded here.
    is_local = base_model is None and bool(named) and not is_published and not is_embedded
    # Files of open_clip are nothing that a class of transformers could load.
    is_open_clip = getattr(base, "is_open_clip", False)
    own = "peft_vprompt.models" if type(base).__module__.startswith(f"{OWN_PACKAGE}.") else "transformers"
    library = None if class_name(base) == "OpaqueCLIPModel" else own
    num_labels = base.config.num_labels if class_name(base) in HEADS else None
    return {
        "base_class": class_name(base),
        "is_local": is_local,
        "is_embedded": is_embedded,
        "registered_by": registering_module(config),
        "by_adapter": is_local or (is_open_clip and base_model is not None),
        "library": library,
        "has_processor": library is not None and not is_open_clip,
        "base_name": "demo_model_path()" if is_embedded else f'"{base_model or "path/to/base-model"}"',
        # The head has other classes than the base model's own, perhaps.
        "head": f", num_labels={num_labels}, ignore_mismatched_sizes=True" if num_labels else "",
    }


def _is_embedded(name: str) -> bool:
    """Return whether a base model is the one that comes with this package."""
    embedded = str(resources.files(OWN_PACKAGE) / "demo" / "clip")
    return bool(name) and os.path.realpath(name) == os.path.realpath(embedded)
