"""Several adapters for one batch: PEFT's `adapter_names=[...]`, one name for each image, for all methods alike.

The images of each adapter run together, one adapter after another, so the numbers are those of calls of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers.utils import ModelOutput

from ..tuners.base.adapter_names import check_names
from ..tuners.base.switching import BASE, answering_for, merged_adapters


def call_with_adapters(
    model: PeftModel, call: Callable, adapter_names: Sequence[str], args: tuple, kwargs: dict
) -> Any:
    """Return what `call(*args, **kwargs)` gives for a batch in which each image has its adapter.

    Args:
        model: the PEFT model.
        call: the model's own call, for one adapter.
        adapter_names: one name for each image; `"__base__"` for the base model.
        args: positional arguments of the call.
        kwargs: its keyword arguments.

    Raises:
        TypeError: `adapter_names` is no list of names.
        ValueError: in training, with labels or a merged adapter, names that this model does not have or that are not as
            many as images, adapters whose outputs differ in shape.
    """
    names = check_names(adapter_names)
    check_batch(model, names, [*args, *kwargs.values()])
    if model.training or kwargs.get("labels") is not None:
        raise ValueError(
            "Batches of several adapters are for inference. Received adapter_names "
            f"{'in training mode' if model.training else 'with labels'}. Use model.eval() and leave the labels out, or train "
            "one adapter at a time with set_adapter."
        )
    rows = {name: [i for i, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}
    outputs = []
    with answering_for(model.base_model) as answer_for:
        for name, mine in rows.items():
            answer_for(name)
            some = [pick(value, mine) for value in args], {key: pick(value, mine) for key, value in kwargs.items()}
            outputs.append(call(*some[0], **some[1]))
    order = torch.tensor([i for mine in rows.values() for i in mine]).argsort()
    return join(outputs, order)


def check_batch(model: PeftModel, names: list[str], values: list) -> None:
    """Refuse names that do not go with the model or the batch.

    Raises:
        ValueError: says which.
    """
    unknown = [name for name in dict.fromkeys(names) if name != BASE and name not in model.peft_config]
    if unknown:
        raise ValueError(
            f"Expected adapter_names from {[*model.peft_config, BASE]}. Received: {unknown}. Load them with load_adapter."
        )
    sizes = {len(value) for value in values if isinstance(value, Tensor) and value.ndim}
    if sizes != {len(names)}:
        raise ValueError(
            f"Expected one adapter name for each image. Received: {len(names)} adapter_names and inputs with "
            f"{sorted(sizes)} rows. Give each image a name."
        )
    if merged := merged_adapters(model):
        raise ValueError(
            f"Expected no merged adapters with adapter_names. Merged: {sorted(merged)}. Unmerge them first."
        )


def pick(value: Any, rows: list[int]) -> Any:
    """Return some rows of a tensor, anything else as it is."""
    return value[rows] if isinstance(value, Tensor) and value.ndim else value


def join(outputs: list[Any], order: Tensor) -> Any:
    """Put the rows of several outputs of the same kind together, in `order`.

    Raises:
        ValueError: their shapes differ.
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        shapes = [list(tensor.shape[1:]) for tensor in outputs]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError(
                f"Expected adapters whose outputs have the same shape in one batch. Received rows of shape {shapes}: they "
                "tell different numbers of classes apart, or their prompts stay in the output. Call them one by one."
            )
        return torch.cat(outputs)[order.to(first.device)]
    if isinstance(first, ModelOutput):
        return type(first)(**{key: join([output[key] for output in outputs], order) for key in first})
    if isinstance(first, (tuple, list)):
        return type(first)(join(list(items), order) for items in zip(*outputs, strict=True))
    return first
