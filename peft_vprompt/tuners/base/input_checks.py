"""What the classification call refuses. Values are looked at where that costs no synchronisation with a device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...losses.label_checks import IGNORED, check_multi_hot, check_shares, is_whole, one_class_each
from ...utils.tensors import require_dense


#: Inputs and flags of a dual encoder's own call. Absent or off, they ask the classification call for nothing.
OWN_CALL = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "return_loss",
    "output_attentions",
    "output_hidden_states",
)


def drop_idle(options: dict) -> dict:
    """Return the keyword arguments of a call without those of `OWN_CALL` that are None or False."""
    return {name: v for name, v in options.items() if not (name in OWN_CALL and (v is None or v is False))}


def check_options(given: Iterable[str], allowed: Sequence[str]) -> None:
    """Refuse keyword arguments that would be ignored.

    Raises:
        TypeError: names them and those that are allowed.
    """
    if unknown := [name for name in given if name not in allowed]:
        raise TypeError(
            f"Got unexpected keyword arguments: {', '.join(unknown)}. Beside the images and labels the classification "
            f"call takes {', '.join(allowed)}. For anything else of the base model make its own call, with input_ids, "
            "or that of get_base_model().vision_model."
        )


def as_labels(labels: Tensor | Sequence[int] | None, device: torch.device | None) -> Tensor | None:
    """Return labels as a tensor, also where a list or an array is given.

    Class numbers of any type of integer come in the one that torch's losses take.

    Raises:
        TypeError: something that is not numbers, such as names.
    """
    if labels is None:
        return None
    if isinstance(labels, Tensor):
        require_dense(labels, "labels")
    try:
        labels = labels if isinstance(labels, Tensor) else torch.as_tensor(labels, device=device)
        return labels.long() if labels.ndim == 1 and is_whole(labels) else labels
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"Expected labels as a tensor or list of integers, each the place of its class in class_names. "
            f"Received: labels={labels!r}."
        ) from error


def check_features(features: Any, size: int) -> None:
    """Refuse what is no batch of image features [b, e].

    Raises:
        TypeError: no tensor of floating-point numbers.
        ValueError: another shape.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        received = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"Expected image_features as a tensor, as encode_images gives. Received: {received}.")
    require_dense(features, "image_features")
    if features.ndim != 2 or features.shape[1] != size:
        raise ValueError(
            f"Expected image_features [batch, {size}], as encode_images gives. Received: image_features of shape "
            f"{list(features.shape)}."
        )


def check_inputs(
    inputs: Tensor,
    labels: Tensor | None = None,
    num_classes: int = 0,
    name: str = "pixel_values",
    multi_label: bool = False,
) -> None:
    """Refuse NaN inputs and impossible labels.

    Labels are integers [batch] or, for a soft target, probabilities [batch, classes]; with `multi_label` they say yes or
    no of each class [batch, classes].

    Raises:
        ValueError: names the value and what is allowed.
    """
    if torch.compiler.is_compiling():
        return
    if not len(inputs):
        raise ValueError(f"Expected at least one image. Received: {name} of shape {list(inputs.shape)}.")
    if inputs.device.type == "cpu" and not bool(torch.isfinite(inputs).all()):
        raise ValueError(f"Expected finite {name}. Received NaN or infinity; check the image preprocessing.")
    if labels is not None and multi_label:
        check_multi_hot(labels, len(inputs), num_classes)
    elif labels is not None:
        _check_labels(labels, len(inputs), num_classes)


def _check_labels(labels: Tensor, num_images: int, num_classes: int) -> None:
    received = f"labels of shape {list(labels.shape)} and dtype {labels.dtype}"
    if labels.ndim == 2 and not labels.is_floating_point() and labels.shape[1] == num_classes > 1:
        raise ValueError(f"{one_class_each(num_images, num_classes)} Received: {received}.")
    if labels.ndim == 1 and labels.is_floating_point():
        raise ValueError(
            f"Expected one integer label per image, [{num_images}], or probabilities [{num_images}, {num_classes}]. "
            f"Received: {received}. Make class numbers whole with labels.long()."
        )
    whole = (num_images,), is_whole(labels)
    shares = (num_images, num_classes), labels.is_floating_point()
    if not any(tuple(labels.shape) == shape and fits for shape, fits in (whole, shares)):
        raise ValueError(
            f"Expected one integer label per image, [{num_images}], or probabilities [{num_images}, {num_classes}]. "
            f"Received: {received}."
        )
    if labels.is_floating_point():
        check_shares(labels)
        return
    if labels.device.type != "cpu":
        return
    valid = labels[labels != IGNORED]
    low, high = (int(valid.min()), int(valid.max())) if valid.numel() else (0, 0)
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"Expected labels from 0 to {num_classes - 1}, one per class name. Received labels from {low} to {high}."
        )


def check_unit_length(features: Tensor) -> None:
    """Refuse features that were not L2-normalised.

    Raises:
        ValueError: says of which lengths they are.
    """
    if torch.compiler.is_compiling() or features.device.type != "cpu":
        return
    lengths = features.float().norm(dim=-1)
    if not torch.allclose(lengths, torch.ones_like(lengths), atol=1e-2):
        raise ValueError(
            "Expected L2-normalised image_features, as encode_images gives. "
            f"Received lengths from {float(lengths.min()):.3g} to {float(lengths.max()):.3g}."
        )
