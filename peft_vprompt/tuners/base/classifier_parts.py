"""`ClassifierParts`: where an image classifier of transformers keeps its encoder, layers, final norm and head."""

from __future__ import annotations

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ...errors import UnsupportedModelError


HEAD = "classifier"
"""What transformers calls the head of an image classifier."""


class ClassifierParts:
    """Names of the parts of an image classifier: a linear head named `classifier` beside one encoder.

    Works for ViT, DeiT, BEiT, DINOv2, Swin, CLIP, SigLIP and their relatives, which need no view of their own here.

    Raises:
        UnsupportedModelError: the model has no such head or more than one encoder.
    """

    def __init__(self, model: nn.Module):
        children = dict(model.named_children())
        if not isinstance(plain(children.pop(HEAD, None)), nn.Linear) or len(children) != 1:
            raise UnsupportedModelError(
                f"Expected an image classifier with a linear head named {HEAD!r} and one encoder, such as "
                f"ViTForImageClassification. Received: {type(model).__name__}. Load the model with "
                "AutoModelForImageClassification."
            )
        self.model = model
        self.head = HEAD
        (self.encoder,) = children

    @property
    def own_modules(self) -> dict[str, nn.Module]:
        """The model's modules by name, without what adapters have put into them."""
        return own_modules(self.model)

    @property
    def layers(self) -> list[str]:
        """Names of the transformer layers in order: those of the outermost list, or of all stages of a Swin.

        Raises:
            UnsupportedModelError: the encoder has no list of layers with attention.
        """
        lists = {
            name: module
            for name, module in self.own_modules.items()
            if isinstance(module, nn.ModuleList) and _has_attention(module)
        }
        inner = [n for n in lists if not any(other.startswith(f"{n}.") for other in lists)]
        if not inner and isinstance(self.own_modules[self.encoder], BaseTunerLayer):
            raise UnsupportedModelError(
                f"Expected an encoder whose layers can be reached. Received: {type(self.model).__name__}, of which another "
                "adapter replaces the whole encoder. Put the adapters on models of their own."
            )
        if not inner:
            raise UnsupportedModelError(
                f"Expected an encoder with a list of transformer layers. Received: {type(self.model).__name__}. "
                "Choose a method that does not go by layers (linear, mlp-3, bias, full)."
            )
        return [f"{name}.{index}" for name in inner for index in range(len(lists[name]))]

    @property
    def final_norms(self) -> list[str]:
        """Names of the norms after the last layer: children of an ancestor of the layers that come after them."""
        first = self.layers[0]
        norms = []
        for name, module in self.own_modules.items():
            if name and first.startswith(f"{name}."):
                children = list(module.named_children())
                position = next(
                    i for i, (child, _) in enumerate(children) if f"{first}.".startswith(f"{name}.{child}.")
                )
                norms += [
                    f"{name}.{child}" for child, m in children[position + 1 :] if isinstance(plain(m), nn.LayerNorm)
                ]
        return norms

    def last_linear(self, layer: str) -> str:
        """Return the name of the last linear map of a layer, which ends its feed-forward part."""
        names = [name for name in self.own_modules if name.startswith(f"{layer}.")]
        return [name for name in names if isinstance(plain(self.own_modules[name]), nn.Linear)][-1]

    def queries_and_values(self) -> list[str]:
        """Return the names of the query and value projections of all layers, where LoRA goes by default."""
        endings = ("q_proj", "v_proj", "query", "value")
        return [
            name
            for name, module in self.own_modules.items()
            if name.rpartition(".")[2] in endings and isinstance(plain(module), nn.Linear)
        ]


def own_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a model by name, without what adapters have put into them."""
    modules, inside = {}, ()
    for name, module in model.named_modules():
        if not name.startswith(inside):
            modules[name] = module
            if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
                inside += (f"{name}.",)
    return modules


def plain(module: nn.Module | None) -> nn.Module | None:
    """Return the module inside PEFT's wrappers."""
    while True:
        inner = getattr(module, "base_layer", None) or getattr(module, "original_module", None)
        if inner is None:
            return module
        module = inner


def _has_attention(layers: nn.ModuleList) -> bool:
    return any("attention" in type(module).__name__.lower() for module in layers.modules())
