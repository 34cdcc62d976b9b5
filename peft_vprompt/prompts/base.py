"""`PromptModule`: the trainable tensors of one adapter on one tower, and the prompt vectors they stand for.

Shapes: b = batch, s = tokens, n = prompts of one layer, j = prompted layers, d = width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..core.class_prompts import ClassPrompts
from ..core.insertion import InsertionRule, InsertRows
from ..core.offloading import computing_device


if TYPE_CHECKING:
    from ..backbones.base import EncoderView
    from ..backbones.vision import VisionView


class PromptModule(nn.Module, ABC):
    """Base of all prompt modules.

    Attributes:
        has_feature: on an image tower, what the prompts have become is an image feature beside the tower's own.

    Args:
        first_layer: layer in front of which the prompts come in.
        read_only: the prompts read the plain tokens and nobody reads them.
        text_placement: how a call with `input_ids` shows the prompts on the text tower: "insert" (after the start
            token), "replace" (in place of the first tokens after it), or None where the place of the class name
            would have to be known.
        pooling: which rows of an image encoder become the feature, see `core.pooling.pool`; "original" is the
            encoder's own way.
    """

    has_feature: bool = False

    def __init__(
        self,
        *,
        first_layer: int = 0,
        read_only: bool = False,
        text_placement: str | None = None,
        pooling: str = "original",
    ):
        super().__init__()
        self.first_layer = first_layer
        self.read_only = read_only
        self.text_placement = text_placement
        self.pooling = pooling

    @abstractmethod
    def forward(
        self,
        *,
        image_features: Tensor | None = None,
        class_features: Tensor | None = None,
        text_prompts: Tensor | None = None,
        view: VisionView | None = None,
        batch_size: int | None = None,
    ) -> Tensor | Sequence[Tensor] | None:
        """Return the prompts of each layer, [j, n, d] or, where each image has its own, [j, b, n, d].

        A module names the arguments that it depends on and takes no notice of the others.

        Args:
            image_features: L2-normalised features [b, e], on a text tower whose prompts depend on the image.
            class_features: the frozen model's features [c, e] of all classes, on a text tower whose prompts depend on them.
            text_prompts: prompts of the text tower [j, n, text width], on an image tower.
            view: view of the image tower.
            batch_size: number of images, on an image tower.

        Returns:
            None where images alone are changed and no token is added.
        """

    @property
    def among_words(self) -> bool:
        """Whether, on a text tower, the vectors of the first layer stand among those of the words."""
        return self.first_layer == 0

    def for_images(self) -> Tensor:
        """Return what the image tower's prompts are made of, where they are made of this module of the text tower."""
        return self()  # pyrefly: ignore[not-callable]  # nn.Module is

    def embed(self, view: VisionView, pixel_values: Tensor, **options) -> Tensor:
        """Return the image tokens [b, s, d] that the prompts are inserted into; `options` as `VisionView.embed`."""
        return view.embed(pixel_values, **options)

    def image_feature(self, pooled: Tensor, project: Callable[..., Tensor]) -> Tensor:
        """Return the L2-normalised feature of images, by the pooled output [b, d] and the projection to the joint space."""
        return project(pooled)

    def text_rule(self, class_prompts: ClassPrompts) -> InsertionRule:
        """Return how the prompts of later layers come into class prompts: behind their start tokens."""
        return InsertRows(class_prompts.start)

    def insertion_rule(self, view: VisionView, length: int) -> InsertionRule:
        """Return how the prompts are inserted into `length` image tokens."""
        return InsertRows(view.num_prefix_tokens if view.prompts_first else length)


def placed_like(view: EncoderView) -> dict:
    """Return the keyword arguments that give new parameters the dtype and the device of a tower."""
    weight = view.reference_weight
    return {"dtype": weight.dtype, "device": computing_device(view.module, weight)}
