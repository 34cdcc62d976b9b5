"""What of transformers' models is changed while they carry adapters, with the reason, the undo and the end of each patch.

Here are the patches for the stock `Trainer` and for classification heads:

* `take_labels`: a dual encoder's class names `labels` and `image_features` in its `forward`;
* `declare_mean_loss`: a classifier says that it does not normalise its loss over accumulation steps;
* `ask_for_feature`: a classifier tells its tower that a head reads the output.

`restore_class` undoes all three. The others are beside the computation they belong to: `core.attention.install` (an
attention module understands patterns), `core.quick_gelu.install` (CLIP's activation in less memory) and
`backbones.beit.BeitView.attach` (position biases leave room for prompts).
"""

from __future__ import annotations

import functools
import inspect
from types import FunctionType

from torch import nn

from ...errors import UnsupportedModelError
from .mixed_class import Mixed, mixed_class


#: Classes of transformers that take `num_items_in_batch` and then return the mean over the batch all the same, so that
#: four accumulation steps of one image would make a four times larger step than one of four. Subclasses count as well.
MEAN_LOSS = (
    "BeitForImageClassification",
    "CLIPForImageClassification",
    "Data2VecVisionForImageClassification",
    "MetaClip2ForImageClassification",
    "Siglip2ForImageClassification",
    "SiglipForImageClassification",
    "Swinv2ForImageClassification",
)

#: What the classification call of the PEFT model takes beside the base model's own inputs.
CALL = ("labels", "image_features")


# ---- the class of a dual encoder --------------------------------------------------------------------------------


class TakesLabels(Mixed):
    """Mixin for the class of a dual encoder: its `forward` names `labels` and `image_features`, and refuses them.

    They belong to the PEFT model's classification call. The stock `Trainer` looks for them in the base model's class.

    Attributes:
        accepts_loss_kwargs: False, since `**kwargs` in `forward` would have the `Trainer` believe that the model
            normalises its loss over accumulation steps itself.
        added_inputs: those of `CALL` that this class does not take itself.
    """

    accepts_loss_kwargs = False
    added_inputs: tuple[str, ...] = CALL

    def forward(self, *args, **kwargs):
        """Call the base model, which takes none of `added_inputs`.

        Raises:
            ValueError: one of `added_inputs` is given.
        """
        given = [name for name in self.added_inputs if kwargs.pop(name, None) is not None]
        if given:
            raise ValueError(
                "labels and image_features belong to the classification call of the PEFT model: "
                "model(pixel_values=..., labels=...)."
            )
        return super().forward(*args, **kwargs)  # pyrefly: ignore[missing-attribute]  # the model's, see `with_labels`


@functools.cache
def with_labels(base_class: type[nn.Module]) -> type[nn.Module]:
    """Return `base_class` with the mixin `TakesLabels`; the same class for each call."""
    signature = inspect.signature(base_class.forward)
    parameters = list(signature.parameters.values())
    added = tuple(name for name in CALL if name not in signature.parameters)
    end = len(parameters) - any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    parameters[end:end] = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in added]
    plain = TakesLabels.forward
    forward = FunctionType(plain.__code__, plain.__globals__, "forward", closure=plain.__closure__)
    # pyrefly: ignore[missing-attribute]  # functions take any attribute; `inspect` reads this one
    forward.__signature__ = signature.replace(parameters=parameters)
    forward.__doc__ = base_class.forward.__doc__
    return mixed_class(
        TakesLabels, base_class, added_inputs=added, forward=forward, mixed_by=staticmethod(with_labels)
    )


def take_labels(model: nn.Module) -> None:
    """Give a dual encoder the class whose `forward` names `labels` and `image_features`.

    * Reason: without `labels` in the signature of the base model's `forward` the stock `Trainer` drops the column and
      reports no `eval_loss`.
    * Undo: `restore_class` gives the model its own class back.
    * Goes when the `Trainer` reads the signature of a PEFT model, not that of the model inside.
    """
    if not isinstance(model, TakesLabels):
        model.__class__ = with_labels(type(model))


# ---- classifiers ------------------------------------------------------------------------------------------------


def has_mean_loss(module: nn.Module) -> bool:
    """Tell whether the class of `module`, or one that it extends, is in `MEAN_LOSS`."""
    return any(base.__name__ in MEAN_LOSS for base in type(module).__mro__)


def declare_mean_loss(classifier: nn.Module) -> None:
    """Tell the `Trainer` that it has to divide this classifier's loss by the accumulation steps.

    * Reason: see `MEAN_LOSS`.
    * Undo: `restore_class` takes the attribute away.
    * Goes, class by class, when its loss in transformers takes `num_items_in_batch` as ViT's does.
    """
    if has_mean_loss(classifier):
        classifier.accepts_loss_kwargs = False


def is_stock(classifier: nn.Module) -> bool:
    """Tell whether a classifier makes transformers' own call, of which is known what its head reads."""
    return type(classifier).forward.__module__.startswith("transformers.")


def ask_for_feature(classifier: nn.Module) -> None:
    """Let a classifier tell its prompted tower, by the keyword `for_head`, that a head reads the output.

    * Reason: a tower gives its head the rows it reads, and others all of them; transformers' classifiers hand unknown
      keywords on to the tower, but name none for this.
    * Undo: `restore_class` removes the hook.
    * Goes when no classifier's head reads `last_hidden_state` in the place of `pooler_output`.

    Raises:
        UnsupportedModelError: a call of a user's own that hands no keywords on.
    """
    parameters = inspect.signature(type(classifier).forward).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        raise UnsupportedModelError(
            "Expected a classifier whose forward hands further keywords on to its encoder, which are told there that a head "
            f"reads what the adapter pools. Received: {type(classifier).__name__}.forward without **kwargs. Let it take "
            "**kwargs and call the encoder with them, or leave pooling and read_only out."
        )
    if "for_head_hook" not in vars(classifier):
        classifier.for_head_hook = classifier.register_forward_pre_hook(add_for_head, with_kwargs=True)


def add_for_head(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Add `for_head` to the keywords of a call; a forward pre-hook."""
    return args, kwargs | {"for_head": True}


# ---- undo -------------------------------------------------------------------------------------------------------


def restore_class(model: nn.Module) -> None:
    """Undo `take_labels`, `declare_mean_loss` and `ask_for_feature` in the model and all modules inside."""
    for module in model.modules():
        if (hook := vars(module).pop("for_head_hook", None)) is not None:
            hook.remove()
        if isinstance(module, TakesLabels):
            module.__class__ = module.plain_class
        elif has_mean_loss(module):
            vars(module).pop("accepts_loss_kwargs", None)
