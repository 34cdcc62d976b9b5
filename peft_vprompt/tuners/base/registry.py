"""The method table, and the only code that touches PEFT's enums and tables.

Importing the package registers every method with PEFT, once, in any order of imports.
"""

from __future__ import annotations

import enum
import re
from dataclasses import replace
from typing import Any

from peft import PeftConfig, auto, mapping
from peft.utils import PeftType, register_peft_method
from peft.utils.peft_types import TaskType

from ...backbones.supported import DUAL_ENCODERS, OPAQUE, UNSUPPORTED
from .config import BASELINE_TASK_TYPE, TASK_TYPE
from .peft_patches import OWN_PACKAGE
from .spec import MethodSpec


#: Every method by its name.
METHODS: dict[str, MethodSpec] = {}

#: Of these the prompt-learning methods, and the fine-tuning baselines, with a PEFT type of their own, by PEFT name.
PROMPT_METHODS: dict[str, MethodSpec] = {}
BASELINES: dict[str, MethodSpec] = {}


def peft_name(spec: MethodSpec) -> str:
    """Return PEFT's name of a method, in lower case: that of its tuner's prefix."""
    return spec.tuner_class.peft_name  # pyrefly: ignore[missing-attribute]  # only rows with a tuner have one


def register(spec: MethodSpec, first: bool = False) -> None:
    """Enter a row into our tables, and into PEFT's where it has a type of its own.

    Args:
        spec: the row.
        first: whether it stands before all rows that are there already.
    """
    others = {name: METHODS.pop(name) for name in list(METHODS) if first}
    METHODS[spec.name] = spec
    METHODS.update(others)
    if spec.tuner_class is not None:
        (BASELINES if spec.is_baseline else PROMPT_METHODS)[peft_name(spec)] = spec
        _tell_peft(spec, BASELINE_TASK_TYPE if spec.is_baseline else TASK_TYPE)


def get_method(name: str) -> MethodSpec:
    """Return the row of a name; mlp-k and partial-k exist for any k.

    Raises:
        ValueError: there is none of that name; the message lists them.
    """
    if name in METHODS:
        return METHODS[name]
    if match := re.fullmatch(r"(\w+)-([1-9]\d*)", name):
        for spec in METHODS.values():
            if spec.numbered and spec.name.rpartition("-")[0] == match[1]:
                number = {spec.numbered: int(match[2])}
                return replace(spec, name=name, title=name.capitalize(), defaults=lambda depth, number=number: number)
    raise ValueError(f"No method {name!r}. Choose one of: {', '.join(METHODS)}.")


def find_method(peft_type: PeftType | str) -> MethodSpec:
    """Return the row that gave PEFT one of our types."""
    name = PeftType(peft_type).value.lower()
    return PROMPT_METHODS[name] if name in PROMPT_METHODS else BASELINES[name]


def find_row(config: PeftConfig, is_classifier: bool) -> MethodSpec | None:
    """Return the row that people mean by a config: of those with its class, the one whose marks it has.

    Args:
        config: the config; of one of PEFT's own methods that is in no row, there is none.
        is_classifier: whether the base model has no text tower.
    """
    if not is_known(config.peft_type) and all(spec.config_class is not type(config) for spec in METHODS.values()):
        return None
    rows = [spec for spec in METHODS.values() if spec.config_class is type(config) and spec.trains]
    for spec in rows:
        number = getattr(config, spec.numbered) if spec.numbered else None
        if number:
            return get_method(f"{spec.name.rpartition('-')[0]}-{number}")
    fitting = [
        spec
        for spec in rows
        if not spec.numbered and all(getattr(config, name) == value for name, value in spec.marks.items())
    ]
    if not fitting:
        return find_method(config.peft_type)
    return max(fitting, key=lambda spec: (spec.is_baseline == is_classifier, len(spec.marks)))


def registering_module(config: PeftConfig) -> str:
    """Return the module that has to be imported before an adapter is loaded: this package, or that of a method outside of it."""
    module = type(config).__module__
    return OWN_PACKAGE if module.startswith(("peft.", f"{OWN_PACKAGE}.", "__main__")) else module


def shares_model(peft_type: PeftType | str) -> bool:
    """Return whether adapters of a PEFT type live on one model with those of other methods: our own tuner puts them in."""
    spec = PROMPT_METHODS.get(PeftType(peft_type).value.lower())
    return spec is not None and getattr(spec.tuner_class, "shares_model", False)


def is_known(peft_type: PeftType | str) -> bool:
    """Return whether a PEFT type is one of ours at all, prompt learning or a baseline."""
    name = PeftType(peft_type).value.lower()
    return name in PROMPT_METHODS or name in BASELINES


def unsupported(
    peft_type: PeftType | str, model: str, config: PeftConfig | None = None, no_layers: str | None = None
) -> str | None:
    """Return why a prompt-learning method does not work on a class of base models; None where it does.

    Read by the tuners before anything is changed, by the support table and by the tests that run each of its cells.

    Args:
        peft_type: PEFT type of the method, or its name in lower case.
        model: class name of the base model. A class that is not known here but has a known image encoder inside is
            prompted like one without a text tower.
        config: the adapter's; None for the method's usual one.
        no_layers: why nothing can be put into the layers of the image encoder at hand; None where `model` tells.
    """
    spec = PROMPT_METHODS[getattr(peft_type, "value", peft_type).lower()]
    title = spec.title
    method = spec.tuner_class.method  # pyrefly: ignore[missing-attribute]  # they have a tuner
    if model in UNSUPPORTED:
        return f"Cannot put prompts into {model}: {UNSUPPORTED[model]}."
    if method.needs_text and model not in DUAL_ENCODERS:
        return f"{title} learns text prompts, and {model} has no text tower. Supported models: {', '.join(DUAL_ENCODERS)}."
    no_layers = no_layers or OPAQUE.get(model)
    if no_layers and method.needs_image_layers(config):
        remedy = "Use a method on the side of the texts or on features, such as CoOp, Tip-Adapter or CLAP"
        if method.without_image_layers:
            remedy = f"Set {method.without_image_layers}"
        return f"{title} does not work on {model}: its image encoder {no_layers}. {remedy}."
    for needed, lack in ((method.needs_class_token, "no_class_token"), (method.needs_read_only, "no_read_only")):
        if needed and (reason := getattr(DUAL_ENCODERS[model], lack)):
            able = [name for name, dual in DUAL_ENCODERS.items() if getattr(dual, lack) is None]
            return f"{title} does not work on {model}: {reason}. Supported models: {', '.join(able)}."
    return None


def extend_enum(enum_class: type[enum.Enum], name: str) -> None:
    """Add the member `name = name` to a string enum that has no place for plug-ins. Does nothing if it is there."""
    if name in enum_class.__members__:
        return
    member: Any = str.__new__(enum_class, name)  # pyrefly: ignore[no-matching-overload]  # both are strings
    member._name_ = member._value_ = name
    enum_class._member_names_.append(name)
    enum_class._member_map_[name] = enum_class._value2member_map_[name] = member
    type.__setattr__(enum_class, name, member)


def _tell_peft(spec: MethodSpec, task_type: str) -> None:
    """Register by PEFT's own function, replacing what an earlier import of us left there."""
    name = peft_name(spec)
    extend_enum(TaskType, task_type)
    extend_enum(PeftType, name.upper())
    peft_type = PeftType(name.upper())
    for table in (
        mapping.PEFT_TYPE_TO_CONFIG_MAPPING,
        mapping.PEFT_TYPE_TO_TUNER_MAPPING,
        mapping.PEFT_TYPE_TO_PREFIX_MAPPING,
    ):
        table.pop(peft_type, None)
    tuner_class: Any = spec.tuner_class
    register_peft_method(name=name, config_cls=spec.config_class, model_cls=tuner_class, prefix=tuner_class.prefix)


def register_model_class(task_type: str, model_class: type) -> None:
    """Tell PEFT which `PeftModel` class serves one of our task types."""
    auto.MODEL_TYPE_TO_PEFT_MODEL_MAPPING[task_type] = model_class
