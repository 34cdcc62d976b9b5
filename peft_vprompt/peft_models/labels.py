"""Names of the classes in the base model's config, where pipelines and others read them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn


#: Attribute of a base model that keeps its own config while labels are shown.
PLAIN = "config_without_labels"


def show_labels(
    model: nn.Module, names: Sequence[str] | Mapping[int, str] | None, problem_type: str | None = None
) -> None:
    """Let a base model's config say what its logits stand for (`id2label`, `label2id`), and what problem they answer.

    What is None is the base model's own. The model gets a config of its own for that, which all parts that held the old
    one hold now: other models may share it.
    """
    if names is None and problem_type is None:
        give_config_back(model)
        return
    if PLAIN not in vars(model):
        plain: Any = model.config
        put_config(model, plain, copy.copy(plain))
        vars(model)[PLAIN] = plain
    plain = vars(model)[PLAIN]
    labels = plain.id2label if names is None else dict(names if isinstance(names, Mapping) else enumerate(names))
    config: Any = model.config
    config.id2label = labels
    config.label2id = {name: index for index, name in labels.items()}
    config.problem_type = problem_type or getattr(plain, "problem_type", None)


def give_config_back(model: nn.Module) -> None:
    """Undo `show_labels`."""
    plain = vars(model).pop(PLAIN, None)
    if plain is not None:
        put_config(model, model.config, plain)


def plain_config(model: nn.Module) -> Any:
    """Return a base model's own config."""
    return vars(model).get(PLAIN, model.config)


def put_config(model: nn.Module, old: Any, new: Any) -> None:
    """Put another config into the place of one in all modules that hold it."""
    for module in model.modules():
        if vars(module).get("config") is old:
            module.config = new


def is_named(labels: Mapping | None) -> bool:
    """Return whether somebody has named the classes: transformers calls them LABEL_0, LABEL_1 and so on."""
    return bool(labels) and list(labels.values()) != [f"LABEL_{index}" for index in range(len(labels))]
