"""`PromptMethod`: the choices that make a method, as one short object without state.

Everything else (injection, adapters, class names, features, loss) is shared. A method overrides the hooks in which it
differs from the frozen model with a template.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.tokenization import TokenSequence, template_sequences
from ...errors import ClassNamesError, PromptTooLongError
from ...losses.classification import mean_cross_entropy
from ...losses.regularizers import Features, ImageConsistency, LogitConsistency, Regularizer, TextConsistency
from ...readouts import CosineReadout
from ...utils.name_keys import rows_of
from ...utils.validation import shorten


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerCallback

    from ...backbones.base import EncoderView
    from ...backbones.text import TextView
    from ...backbones.vision import VisionView
    from ...prompts.base import PromptModule
    from .config import PromptConfig


#: What to do about classes that something else was learned for, one by one.
OTHER_CLASSES = "Or train an adapter that learns a context to move to new classes."


class FrozenText(NamedTuple):
    """What gives the frozen model's features of an adapter's classes.

    Attributes:
        normalized: gives them [c, e], L2-normalised.
        projected: gives the mean over templates of features [c, e] as the model projects them; underscores are kept if its
            argument is True, else they are spaces.
    """

    normalized: Callable[[], Tensor]
    projected: Callable[[bool], Tensor]


class SupportSet(NamedTuple):
    """Features of labelled images, by the frozen image encoder.

    Attributes:
        features: [v, n, e] of v views of n images, in the joint space; not L2-normalised, unless they were given so.
        labels: [n].
        scaled: makes logits of cosines, of any shape.
    """

    features: Tensor
    labels: Tensor
    scaled: Callable[[Tensor], Tensor]


class PromptMethod:
    """What a method says of itself.

    Attributes:
        needs_text: the method learns on the text side, so the base model must have a text tower.
        needs_read_only: its prompts read both towers and are read by nobody.
        needs_class_token: it reads an image tower's class token, and texts that are read from left to right.
        needs_class_features: its text prompts depend on the frozen model's class features.
        has_second_stage: rows for the classes are learned after what the encoders learn.
        conditional: class features depend on the image.
        normalizes_frozen_templates: the frozen features of several templates are L2-normalised before they are averaged.
        has_image_layers: whether it puts something into the layers of the image tower, whatever its config is.
        without_image_layers: the fields by which it leaves the layers of the image tower alone; None where it cannot.
    """

    needs_text: bool = True
    needs_read_only: bool = False
    needs_class_token: bool = False
    needs_class_features: bool = False
    has_second_stage: bool = False
    conditional: bool = False
    normalizes_frozen_templates: bool = True
    has_image_layers: bool = False
    without_image_layers: str | None = None

    def check(self, config: PromptConfig, vision: VisionView, text: TextView | None) -> None:
        """Refuse a config that does not fit the towers.

        Raises:
            ValueError: names the field, the value and what is allowed.
        """

    def needs_image_layers(self, config: PromptConfig | None) -> bool:
        """Return whether something is put into the layers of the image tower; `config` is None for the method's usual one."""
        return self.has_image_layers

    def needs_tokenizer(self, config: PromptConfig) -> bool:
        """Return whether making the prompts takes a tokenizer; not where weights follow and words set no size."""
        return getattr(config, "words", None) is not None and not config.inference_mode

    def text_prompts(
        self, config: PromptConfig, view: TextView, tokenizer: PreTrainedTokenizerBase | None, feature_dim: int
    ) -> PromptModule | None:
        """Return new prompts for the text tower, None for none.

        Args:
            config: the adapter's config.
            view: the text tower.
            tokenizer: None where words need not be read.
            feature_dim: size of the space that images and texts share.
        """
        return None

    def vision_prompts(
        self, config: PromptConfig, view: VisionView, text: TextView | None, feature_dim: int
    ) -> PromptModule | None:
        """Return new prompts for the image tower, None for none.

        Args:
            config: the adapter's config.
            view: the image tower.
            text: the text tower, None on models without one.
            feature_dim: size of the space that images and texts share; that of a token without a text tower.
        """
        return None

    def trained_modules(self, config: PromptConfig, view: EncoderView) -> Sequence[str]:
        """Return the names of the modules of a tower that are trained whole, as copies."""
        return ()

    def readout(self, config: PromptConfig, view: TextView, feature_dim: int) -> nn.Module:
        """Return the module that makes logits of image and class features."""
        return CosineReadout()

    def class_sequences(
        self, config: PromptConfig, names: Sequence[str], tokenizer: PreTrainedTokenizerBase
    ) -> list[list[TokenSequence]]:
        """Return the token sequences of all classes, one list per template."""
        return [template_sequences(tokenizer, names, template) for template in config.templates]

    def combine(self, features: list[Tensor]) -> Tensor:
        """Return one feature per class of those of each list of token sequences; templates are an ensemble."""
        return average_features(features)

    def similarities(
        self, config: PromptConfig, readout: nn.Module, image: Tensor, text: Tensor, own_classes: Callable[[], bool]
    ) -> Tensor:
        """Return the similarities [b, c] of image and class features; `own_classes()` tells whether it was trained on all of these."""
        return readout(image, text)

    def added_logits(self, config: PromptConfig, readout: Any, image: Tensor) -> Tensor | None:
        """Return what is added to the scaled similarities of image features [b, e], as [b, c] of its own classes; None for
        nothing.
        """
        return None

    def scale(self, config: PromptConfig) -> float | None:
        """Return what similarities are multiplied by, None for the model's own scale and bias."""
        return getattr(config, "logit_scale", None)

    def predictions(
        self, config: PromptConfig, features: Features, scaled: Callable[[Tensor], Tensor]
    ) -> list[tuple[float, Tensor]]:
        """Return what the classification loss is taken of: logits [b, c] and their shares, which sum to 1."""
        return [(1.0, features.logits)]

    def loss(self, config: PromptConfig, logits: Tensor, labels: Tensor) -> Tensor:
        """Return what one prediction's logits [b, c] are trained by: labels are integers [b] or probabilities [b, c]."""
        return mean_cross_entropy(logits, labels)

    def own_class_features(self, readout: nn.Module) -> Tensor | None:
        """Return the features [c, e] that the adapter holds of its own classes in the place of texts; None without any."""
        return getattr(readout, "class_features", None)

    def regularizers(self, config: PromptConfig) -> dict[str, tuple[float, Regularizer]]:
        """Return the further terms of the loss, by name: weight and callable; default: those the config has weights of."""
        distance = config.consistency_distance
        terms = {
            "text_consistency": (config.text_consistency_weight, TextConsistency(distance)),
            "image_consistency": (config.image_consistency_weight, ImageConsistency(distance)),
            "logit_consistency": (config.logit_consistency_weight, LogitConsistency()),
        }
        return {name: term for name, term in terms.items() if term[0]}

    def guide(self, config: PromptConfig, features: Features, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Return the logits to train on; a method may let their backward pass change the gradients of `parameters`."""
        return features.logits

    def callbacks(self, config: PromptConfig) -> list[TrainerCallback]:
        """Return what a Trainer has to do beside its steps."""
        return []

    def in_second_stage(self, config: PromptConfig) -> bool:
        """Return whether only rows for the classes are learned by now, and what the encoders learned is fixed."""
        return False

    def initialize(self, config: PromptConfig, readout: Any, frozen_text: FrozenText) -> None:
        """Set first values that take the model to compute; `frozen_text` gives the frozen class features [c, e]."""

    def uses_support(self, config: PromptConfig) -> bool:
        """Return whether the method learns something from the features of labelled images, without gradients."""
        return False

    def take_support(self, config: PromptConfig, readout: Any, support: SupportSet) -> None:
        """Learn it."""

    def frozen_readout(self, config: PromptConfig, frozen_text: FrozenText) -> dict[str, Tensor]:
        """Return what the tensors of the readout are in the frozen model, by their names."""
        return {}

    def check_new_classes(self, config: PromptConfig, names: Sequence[str]) -> None:
        """Refuse classes that learned prompts do not move to.

        Raises:
            ClassNamesError: names the adapter's own classes and the remedy.
        """


def refuse_other_classes(config: PromptConfig, names: Sequence[str], learned: str, remedy: str) -> None:
    """Refuse other classes than those that something was learned for, one by one; some of these, in any order, pass.

    Raises:
        ClassNamesError: names what was learned, the adapter's own classes, the others and the remedy.
    """
    own = config.own_classes
    if others := [name for name, row in zip(names, rows_of(names, own), strict=True) if row is None]:
        raise ClassNamesError(
            f"This adapter has {learned} for each of its {len(own)} classes ({', '.join(own[:3])}, ...), which means nothing "
            f"for other names. Received: {shorten(others)}. Name some of its classes, in any order. {remedy}"
        )


def average_features(features: Sequence[Tensor], normalized: bool = True) -> Tensor:
    """Return the L2-normalised mean of features [c, e] over templates; `normalized` says that the features are."""
    if len(features) == 1 and normalized:
        return features[0]
    return F.normalize(torch.stack(list(features)).mean(0), dim=-1)


def refuse_text_fields(config: PromptConfig) -> None:
    """Refuse terms that compare features in the joint space, and descriptions of classes, for a model without one.

    Raises:
        ValueError: names the fields that are set.
    """
    fields = ("text_consistency_weight", "image_consistency_weight", "logit_consistency_weight")
    if given := {name: getattr(config, name) for name in fields if getattr(config, name)}:
        raise ValueError(
            "Expected consistency with the frozen model on a model that compares images with class names. Received: "
            f"{', '.join(f'{name}={value!r}' for name, value in given.items())} on a model without a text tower. Leave "
            "them out, or use a CLIP."
        )
    if config.class_descriptions is not None:
        raise ValueError(
            "Expected class_descriptions on a model that compares images with class names. Received: descriptions of "
            f"{len(config.class_descriptions)} classes on a model without a text tower. Leave them out, or use a CLIP."
        )


def check_length(name: str, length: int, view: TextView) -> None:
    """Refuse more prompts in a text than it has positions.

    Raises:
        PromptTooLongError: names the field, the length and the positions that there are.
    """
    if length > view.max_positions:
        raise PromptTooLongError(
            f"Expected {name} <= {view.max_positions}, the positions of the text tower. Received: {name}={length}."
        )


def check_depth(name: str, depth: int, view: EncoderView, tower: str) -> None:
    """Refuse more prompted layers than a tower has.

    Raises:
        ValueError: names the field, the depth and the layers that there are.
    """
    if depth > view.num_layers:
        raise ValueError(
            f"Expected {name} <= {view.num_layers}, the layers of the {tower}. Received: {name}={depth}."
            + (" Set prompt_depth, or this field for one tower alone." if name.endswith("_prompt_depth") else "")
        )
