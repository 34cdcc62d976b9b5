"""`Layout`: an authors' checkpoint as we understand it. Each method's folder has the reader of its own.

A reader takes the checkpoint's tensors by name and gives the config values that can be read off them, and the tensors of
our modules by the place ("text", "vision", "head", "readout") and their name there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import AdapterMismatchError
from .config import PromptConfig


if TYPE_CHECKING:
    from ...backbones.vision import VisionView


#: Tensors of a checkpoint by name.
State = Mapping[str, Tensor]


@dataclass
class Layout:
    """A checkpoint as we understand it.

    Attributes:
        config_class: class of the adapter's config.
        values: config values read off the tensors.
        tensors: the adapter's tensors, by (place, name).
        fallbacks: config values that tensors make likely, unless they are given.
        choices: config values that tensors leave open, and what they may be.
        architecture: what the checkpoint belongs to: "clip", "vit" or "swin".
        complete: makes the tensors that also depend on the config, or on the view of the base model's image encoder
            (None without a base model).
        needs_teacher: the adapter also holds class features of another model, which are in no checkpoint of its own.
    """

    config_class: type[PromptConfig]
    values: dict = field(default_factory=dict)
    tensors: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    fallbacks: dict = field(default_factory=dict)
    choices: dict[str, tuple] = field(default_factory=dict)
    architecture: str = "clip"
    complete: Callable[[PromptConfig, VisionView | None], dict[tuple[str, str], Tensor]] | None = None
    needs_teacher: bool = False


def require(state: State, key: str, method: str, *ranks: int) -> Tensor:
    """Return the tensor `key`, of one of the numbers of dimensions `ranks`.

    Raises:
        AdapterMismatchError: it is not there, and the message lists what is; or it has other dimensions.
    """
    if key not in state:
        held = ", ".join(sorted(state)[:8]) or "nothing"
        raise AdapterMismatchError(
            f"Expected {key!r} in a checkpoint of method {method!r}. Received one with {held}"
            f"{', ...' if len(state) > 8 else ''}. Name the method it was trained with."
        )
    tensor = state[key]
    if tensor.ndim not in ranks:
        raise AdapterMismatchError(
            f"Expected {key!r} of method {method!r} to have {' or '.join(map(str, ranks))} dimensions. "
            f"Received: shape {tuple(tensor.shape)}. Name the method it was trained with."
        )
    return tensor


def context(state: State, method: str) -> tuple[dict, Tensor]:
    """Return the context [1, n, d], or [classes, n, d] where class-specific (CSC), behind the config values that it tells."""
    tokens = require(state, "ctx", method, 2, 3)
    values = {"num_virtual_tokens": tokens.shape[-2], "class_specific": tokens.ndim == 3}
    return values, tokens if tokens.ndim == 3 else tokens.unsqueeze(0)


def numbered(state: State, pattern: str, method: str, rank: int, start: int = 0) -> list[Tensor]:
    """Return the tensors `pattern` with {} = start, start + 1, ... as far as they go without a gap.

    Raises:
        AdapterMismatchError: there are more tensors of that name, after a gap; or one has other dimensions than `rank`.
    """
    found = []
    while (key := pattern.format(start + len(found))) in state:
        found.append(require(state, key, method, rank))
    present = sum(bool(re.fullmatch(re.escape(pattern).replace(r"\{\}", r"\d+"), key)) for key in state)
    if present != len(found):
        raise AdapterMismatchError(
            f"Expected {pattern!r} to count up from {start} without gaps. Received {present} tensors of that name, "
            f"{len(found)} of them in a row."
        )
    return found


def refuse(state: State, keys: tuple[str, ...], method: str, right_method: str) -> None:
    """Refuse a checkpoint of which a tensor shows that it is of another method.

    Raises:
        AdapterMismatchError: names the tensor and the method.
    """
    found = [key for key in keys if key in state]
    if found:
        raise AdapterMismatchError(
            f"A checkpoint of method {method!r} has no {found[0]!r}, and this one has. Use method={right_method!r}."
        )


def free_visual_prompts(state: State, method: str) -> list[Tensor]:
    """Return the free visual prompts of each layer in muzairkhattak/multimodal-prompt-learning, none without."""
    if "image_encoder.VPT" not in state:
        return []
    deep = numbered(state, "image_encoder.transformer.resblocks.{}.VPT_shallow", method, 2, start=1)
    return [require(state, "image_encoder.VPT", method, 2), *deep]


def of_all_layers(tensors: list[Tensor], what: str) -> Tensor:
    """Return the tensors of one layer each as one, with a dimension for the layers in front.

    Raises:
        AdapterMismatchError: they differ in shape.
    """
    shapes = list(dict.fromkeys(tuple(tensor.shape) for tensor in tensors))
    if len(shapes) > 1:
        raise AdapterMismatchError(
            f"Expected the {what} of all layers to have one shape. Received: {shapes[0]} and {shapes[1]}. "
            "The checkpoint is damaged, or put together of several."
        )
    return torch.stack(tensors)
