"""`TunedModule`: what a fine-tuning baseline trains beside, or in the place of, one module of the model.

It is called with that module and with its arguments. New modules are in float32 also beside a model in half precision, to
which they give their results in its own. Shapes: b = batch, s = tokens, d = width, c = classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from ...core.offloading import computing_device
from ...errors import UnsupportedModelError


class TunedModule(nn.Module):
    """A trained module. `forward(base_layer, *args, **kwargs)` answers in the place of `base_layer(*args, **kwargs)`."""

    def merged(self, base_layer: nn.Module) -> nn.Module:
        """Return a module without PEFT that computes the same.

        Raises:
            ValueError: there is none among the model's own modules.
        """
        raise ValueError(
            f"{type(self).__name__} is a module of its own and cannot be merged into the base model's weights. Use "
            "unload() for the base model without it, or keep the adapter and call save_pretrained()."
        )


class CopyBeside(ModulesToSaveWrapper):
    """PEFT's wrapper around a trained copy that is in float32 beside a model in half precision."""

    def _forward_wrapped(self, *args, **kwargs):
        """Call the copy in its own dtype, and answer in that of a tensor that it is given first."""
        given = next(iter(args), None)
        copies = [self.modules_to_save[name] for name in self.active_adapters]
        weight = next((parameter for copy in copies for parameter in copy.parameters()), None)
        if weight is None or not isinstance(given, Tensor) or not given.is_floating_point():
            return super()._forward_wrapped(*args, **kwargs)
        output: Any = super()._forward_wrapped(given.to(weight.dtype), *args[1:], **kwargs)
        return output.to(given.dtype) if isinstance(output, Tensor) else output


def full_precision(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precisions, in which batch normalisation would keep its running statistics too."""
    return torch.promote_types(dtype, torch.float32)


def take_dtypes(copy: nn.Module, original: nn.Module) -> None:
    """Give the tensors of a copy the dtypes that the original's have."""
    tensors = zip((*copy.parameters(), *copy.buffers()), (*original.parameters(), *original.buffers()), strict=True)
    for tensor, counterpart in tensors:
        tensor.data = tensor.data.to(counterpart.dtype)


def require_floats(model: nn.Module, modules: Iterable[str] = ("",)) -> None:
    """Refuse modules of which no copy can learn; `modules` are the ends of their names, by default all there are.

    Raises:
        UnsupportedModelError: weights are whole numbers.
    """
    ends = tuple(modules)
    for path, module in model.named_modules():
        if not path.endswith(ends):
            continue
        for name, parameter in module.named_parameters(prefix=path):
            if not parameter.is_floating_point():
                raise UnsupportedModelError(
                    f"Expected weights in floating point, of which a copy is trained. Received {name} in "
                    f"{parameter.dtype}, of a quantised model. Load the model without quantization_config, or with the "
                    "module's name in its llm_int8_skip_modules; or learn beside its weights: prompts, bottlenecks, a LoRA."
                )


def placed_beside(linear: nn.Linear) -> dict:
    """Return dtype and device of new modules beside a linear layer: its own; float32 where its weight is quantised."""
    weight = linear.weight
    dtype = weight.dtype if weight.dtype.is_floating_point else torch.float32
    return {"dtype": dtype, "device": computing_device(linear, weight)}
