"""What number type the weights of a frozen model are held in, and its products are computed in."""

from __future__ import annotations

import functools
import os
import time
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


Precision = Literal["float32", "bf16", "fp16"]
#: Names on the command line and their number types.
PRECISIONS: dict[Precision, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: Environment variable that says what "auto" means, so that every machine of a cluster computes alike.
AUTO = "VPROMPT_PRECISION"
#: What `torch.cpu.get_capabilities` calls instructions that multiply in bfloat16.
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


#: How many times faster than in float32 a product in bfloat16 has to be for "auto" to take it, and the sizes that are tried:
#: about those of a layer of the smaller CLIPs. Processors that have the instructions are three times faster, or two
#: times slower.
_WORTH_IT = 1.3
_TRIED = (512, 768, 768)


def computes_bf16(device: torch.device) -> bool:
    """Return whether a device is clearly faster in bfloat16: a processor that has the instructions is tried."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.12
        return any(capabilities.get(name) for name in _BF16_INSTRUCTIONS) and bf16_speed_up() >= _WORTH_IT
    return False


@functools.cache
@torch.no_grad()
def bf16_speed_up(rounds: int = 5) -> float:
    """Return how many times faster this processor multiplies matrices in bfloat16 than in float32; takes some milliseconds.

    Args:
        rounds: how often both take turns, of which the fastest counts.
    """
    rows, inner, outer = _TRIED
    sides = [
        (torch.ones(rows, inner, dtype=d), torch.ones(inner, outer, dtype=d)) for d in (torch.float32, torch.bfloat16)
    ]
    fastest = [float("inf")] * 2
    for _ in range(rounds):
        for side, (one, other) in enumerate(sides):
            start = time.perf_counter()
            one @ other
            fastest[side] = min(fastest[side], time.perf_counter() - start)
    return fastest[0] / fastest[1]


def find_precision(name: str, device: torch.device) -> Precision:
    """Return the precision of a name; of "auto" bf16 where the device is faster in it, else float32.

    The environment variable `VPROMPT_PRECISION` says what "auto" means instead.

    Raises:
        ValueError: an unknown name, or fp16 on a CPU, where it is slow and small gradients vanish.
    """
    name = os.environ.get(AUTO, name) if name == "auto" else name
    if name == "auto":
        return "bf16" if computes_bf16(device) else "float32"
    if name not in PRECISIONS:
        raise ValueError(f"Expected a precision: auto, {', '.join(PRECISIONS)}. Received: {name!r}.")
    if name == "fp16" and device.type == "cpu":
        raise ValueError("fp16 is for graphics cards. Received: precision='fp16' on a CPU. Take bf16 or float32.")
    return name


def find_precisions(name: str, device: torch.device) -> list[Precision]:
    """Return the precisions of a name that are worth comparing: of "auto" float32, and what `find_precision` finds beside it.

    Raises:
        ValueError: as `find_precision`.
    """
    found = find_precision(name, device)
    return ["float32", found] if name == "auto" and found != "float32" else [found]


def autocast(model: nn.Module, precision: Precision, device: torch.device) -> nn.Module:
    """Let a model whose own weights may be trained compute in a precision, in place: its weights stay in float32.

    Args:
        model: the model, before it gets an adapter.
        precision: a name in `PRECISIONS`.
        device: where it will compute.
    """
    if precision != "float32":
        model.forward = torch.autocast(device.type, PRECISIONS[precision])(model.forward)
    return model


def hold(model: nn.Module, precision: Precision) -> nn.Module:
    """Hold the weights of a frozen model in a precision, in place.

    Numbers of their own, such as the scale of the logits, and batch norms stay in float32: rounding moves all logits by
    them, and they take no memory.

    Args:
        model: the model, in float32, before it gets an adapter; the adapter's weights stay in float32.
        precision: a name in `PRECISIONS`.
    """
    for module in model.modules():
        if not isinstance(module, _BatchNorm):
            for parameter in module.parameters(recurse=False):
                if parameter.is_floating_point() and parameter.numel() > 1:
                    parameter.data = parameter.data.to(PRECISIONS[precision])
    return model
