"""What a module is called with, without a hook on it: layers with hooks take another way."""

from __future__ import annotations

from torch import Tensor
from torch.overrides import TorchFunctionMode


class InputsOf(TorchFunctionMode):
    """Collect, while the block runs, what goes into the functions of torch that read one weight: `seen`, and `outputs`."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = weight
        self.seen: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if len(args) > 1 and any(value is self.weight for value in (*args[1:], *(kwargs or {}).values())):
            self.seen.append(args[0])
            self.outputs.append(output)
        return output
