"""`PromptMethod`: the choices that make a method, as one short object without state.

Everything else (injection, adapters, class names, features, loss) is shared. A method overrides the hooks in which it
differs from the frozen model with a template.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.tokenization import TokenSequence, template_sequences
from ...errors import PromptTooLongError
from ...readouts import CosineReadout


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerCallback

    from ...backbones.base import EncoderView, TextView, VisionView
    from ...losses.regularizers import Regularizer
    from ...prompts.base import PromptModule
    from .config import PromptConfig


class PromptMethod:
    """What a method says of itself.

    Attributes:
        needs_text: the method learns on the text side, so the base model must have a text tower.
        needs_read_only: its prompts read both towers and are read by nobody.
        conditional: class features depend on the image.
        trains_text_encoder: the text encoder is trained whole.
    """

    needs_text: bool = True
    needs_read_only: bool = False
    conditional: bool = False
    trains_text_encoder: bool = False

    def check(self, config: PromptConfig, vision: VisionView, text: TextView | None) -> None:
        """Refuse a config that does not fit the towers.

        Raises:
            ValueError: names the field, the value and what is allowed.
        """

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

    def vision_prompts(self, config: PromptConfig, view: VisionView, text: TextView | None) -> PromptModule | None:
        """Return new prompts for the image tower, None for none; `text` is None on models without a text tower."""
        return None

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

    def regularizers(self, config: PromptConfig) -> dict[str, tuple[float, Regularizer]]:
        """Return the further terms of the loss, by name: weight and callable."""
        return {}

    def callbacks(self, config: PromptConfig) -> list[TrainerCallback]:
        """Return what a Trainer has to do beside its steps."""
        return []

    def initialize(self, config: PromptConfig, readout: nn.Module, frozen_text: Callable[[], Tensor]) -> None:
        """Set first values that take the model to compute; `frozen_text()` gives the frozen class features [c, e]."""

    def check_new_classes(self, config: PromptConfig, names: Sequence[str]) -> None:
        """Refuse classes that learned prompts do not move to.

        Raises:
            ClassNamesError: names the adapter's own classes and the remedy.
        """


def average_features(features: Sequence[Tensor]) -> Tensor:
    """Return the mean of L2-normalised features [c, e] over templates, normalised again."""
    if len(features) == 1:
        return features[0]
    return F.normalize(torch.stack(list(features)).mean(0), dim=-1)


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
            + (" Set prompt_depth, or this field for one tower alone." if name != "prompt_depth" else "")
        )
