"""What the stock `Trainer` needs to see of a base model: that it takes `labels` and `image_features`, and who normalises the loss.

A wrapped dual encoder gets transformers' own class with `labels` in the signature of `forward`.

The stock `Trainer` looks at the base model's class: without `labels` there it drops the column and reports no
`eval_loss`, and `**kwargs` makes it believe that the model normalises its loss over accumulation steps itself.
"""

from __future__ import annotations

import functools
import inspect

import transformers
from packaging.version import Version
from torch import Tensor, nn


#: Classes of transformers that take `num_items_in_batch` and then return the mean over the batch all the same, so that
#: four accumulation steps of one image would make a four times larger step than one of four.
MEAN_LOSS = (
    "BeitForImageClassification",
    "CLIPForImageClassification",
    "Data2VecVisionForImageClassification",
    "MetaClip2ForImageClassification",
    "Siglip2ForImageClassification",
    "SiglipForImageClassification",
    "Swinv2ForImageClassification",
) + (("SwinForImageClassification",) if Version(transformers.__version__) < Version("5.9") else ())


#: What the classification call of the PEFT model takes beside the base model's own inputs.
CALL = ("labels", "image_features")


@functools.cache
def with_labels(base_class: type[nn.Module]) -> type[nn.Module]:
    """A subclass of `base_class` of the same name whose `forward` names what `CALL` does."""

    class Labelled(base_class):
        """`base_class` as the stock `Trainer` is to see it; it gets that class's own name and docstring below."""

        accepts_loss_kwargs = False
        unlabelled_class = base_class

        def forward(self, *args, labels: Tensor | None = None, image_features: Tensor | None = None, **kwargs):
            """The base model's own call, which takes neither.

            Raises:
                ValueError: `labels` or `image_features`.
            """
            if labels is not None or image_features is not None:
                raise ValueError(
                    "labels and image_features belong to the classification call of the PEFT model: "
                    "model(pixel_values=..., labels=...)."
                )
            return super().forward(*args, **kwargs)

        def __reduce_ex__(self, protocol):
            # The class is made at run time: pickle and deepcopy rebuild it from the class it extends.
            _, _, *state = super().__reduce_ex__(protocol)
            return (new_labelled, (base_class,), *state)

    signature = inspect.signature(base_class.forward)
    own = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in CALL]
    *parameters, keywords = signature.parameters.values()  # transformers' models end with **kwargs
    Labelled.forward.__signature__ = signature.replace(parameters=[*parameters, *own, keywords])
    Labelled.__name__, Labelled.__qualname__ = base_class.__name__, base_class.__qualname__
    Labelled.__doc__ = base_class.__doc__
    return Labelled


def new_labelled(base_class: type[nn.Module]) -> nn.Module:
    """An empty instance for pickle to fill."""
    cls = with_labels(base_class)
    return cls.__new__(cls)


def take_labels(model: nn.Module) -> None:
    """Give a dual encoder the class whose `forward` names `labels`."""
    if not hasattr(type(model), "unlabelled_class"):
        model.__class__ = with_labels(type(model))


def declare_mean_loss(classifier: nn.Module) -> None:
    """Tell the Trainer that it has to divide this classifier's loss by the accumulation steps."""
    if type(classifier).__name__ in MEAN_LOSS:
        classifier.accepts_loss_kwargs = False


def ask_for_feature(classifier: nn.Module) -> None:
    """Let a classifier tell its prompted tower, by the keyword `for_head`, that a head reads the output.

    transformers' classifiers hand unknown keywords on to the tower.
    """
    if add_for_head not in classifier._forward_pre_hooks.values():
        classifier.register_forward_pre_hook(add_for_head, with_kwargs=True)


def add_for_head(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The forward pre-hook of `ask_for_feature`."""
    return args, kwargs | {"for_head": True}


def remove_hooks(module: nn.Module) -> None:
    """Undo `ask_for_feature`."""
    for key in [key for key, hook in module._forward_pre_hooks.items() if hook is add_for_head]:
        del module._forward_pre_hooks[key], module._forward_pre_hooks_with_kwargs[key]


def restore_class(model: nn.Module) -> None:
    """Give the model, or the dual encoder inside it, its own class back, and classifiers their own loss handling."""
    for module in model.modules():
        remove_hooks(module)
        if hasattr(type(module), "unlabelled_class"):
            module.__class__ = type(module).unlabelled_class
        elif type(module).__name__ in MEAN_LOSS:
            vars(module).pop("accepts_loss_kwargs", None)
