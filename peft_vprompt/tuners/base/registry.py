"""The methods, and the only code that touches PEFT's enums and tables.

Importing the package registers every method with PEFT, once, in any order of imports.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peft import auto, mapping
from peft.utils import PeftType, register_peft_method
from peft.utils.peft_types import TaskType

from ...backbones.supported import DUAL_ENCODERS, UNSUPPORTED
from .config import TASK_TYPE, TRANSFER_TASK_TYPE


if TYPE_CHECKING:
    from peft import PeftConfig
    from peft.tuners.tuners_utils import BaseTuner


@dataclass(frozen=True)
class Method:
    """One row of the method table.

    Attributes:
        name: PEFT's name for it, in lower case.
        title: the name people know.
        paper: authors, short title, venue.
        learns: what is trained, in a few words.
        config_class: its configuration.
        model_class: its tuner.
    """

    name: str
    title: str
    paper: str
    learns: str
    config_class: type[PeftConfig]
    model_class: type[BaseTuner]


#: Every registered method by its PEFT name. Tests and tables run over this.
METHODS: dict[str, Method] = {}


def unsupported(method: str, model: str) -> str | None:
    """Why a method does not work on a class of base models; None where it does.

    Read by the tuners before anything is changed, by the support table and by the tests that run each of its cells.

    Args:
        method: a name in `METHODS`.
        model: class name of the base model. A class that is not known here but has a known image encoder inside is
            prompted like one without a text tower.
    """
    title, tuner = METHODS[method].title, METHODS[method].model_class
    if model in UNSUPPORTED:
        return f"Cannot put prompts into {model}: {UNSUPPORTED[model]}."
    if tuner.needs_text and model not in DUAL_ENCODERS:
        return f"{title} learns text prompts, and {model} has no text tower. Supported models: {', '.join(DUAL_ENCODERS)}."
    if tuner.needs_read_only and (reason := DUAL_ENCODERS[model].no_read_only):
        able = [name for name, dual in DUAL_ENCODERS.items() if dual.no_read_only is None]
        return f"{title} does not work on {model}: {reason}. Supported models: {', '.join(able)}."
    return None


def extend_enum(enum_class: type[enum.Enum], name: str) -> None:
    """Add the member `name = name` to a string enum that has no place for plug-ins. Does nothing if it is there."""
    if name in enum_class.__members__:
        return
    member = str.__new__(enum_class, name)
    member._name_ = member._value_ = name
    enum_class._member_names_.append(name)
    enum_class._member_map_[name] = enum_class._value2member_map_[name] = member
    type.__setattr__(enum_class, name, member)


def register(method: Method) -> None:
    """Enter a method into PEFT's tables and ours."""
    _tell_peft(method, TASK_TYPE)
    METHODS[method.name] = method


#: What prompts are compared with: methods of ours that are no prompt learning, by their PEFT name.
TRANSFER: dict[str, Method] = {}


def register_transfer(method: Method) -> None:
    """Enter a method that is no prompt learning into PEFT's tables and ours."""
    _tell_peft(method, TRANSFER_TASK_TYPE)
    TRANSFER[method.name] = method


def find_method(peft_type: PeftType | str) -> Method:
    """The method, prompt learning or not, of one of our PEFT types."""
    return (METHODS | TRANSFER)[PeftType(peft_type).value.lower()]


def _tell_peft(method: Method, task_type: str) -> None:
    """Register by PEFT's own function, replacing what an earlier import of us left there."""
    extend_enum(TaskType, task_type)
    extend_enum(PeftType, method.name.upper())
    peft_type = PeftType(method.name.upper())
    for table in (
        mapping.PEFT_TYPE_TO_CONFIG_MAPPING,
        mapping.PEFT_TYPE_TO_TUNER_MAPPING,
        mapping.PEFT_TYPE_TO_PREFIX_MAPPING,
    ):
        table.pop(peft_type, None)
    register_peft_method(
        name=method.name,
        config_cls=method.config_class,
        model_cls=method.model_class,
        prefix=method.model_class.prefix,
    )


def register_model_class(task_type: str, model_class: type) -> None:
    """Tell PEFT which `PeftModel` class serves one of our task types."""
    auto.MODEL_TYPE_TO_PEFT_MODEL_MAPPING[task_type] = model_class


def is_ours(peft_type: PeftType | str) -> bool:
    """Whether a PEFT type is one of our methods."""
    return PeftType(peft_type).value.lower() in METHODS
