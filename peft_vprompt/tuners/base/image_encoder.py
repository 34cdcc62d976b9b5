"""`ImageEncoder`: features of images, with the active adapter and of the frozen model.

Shapes: b = images, e = size of the joint space.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor
from torch.nn import functional as F

from ...errors import UnsupportedModelError
from .adapted_model import AdaptedModel
from .input_checks import check_inputs, check_options
from .module_state import is_traced
from .switching import adapter_layers, adapter_parameters


if TYPE_CHECKING:
    from .prompted_vision_encoder import PromptedVisionEncoder


class ImageEncoder:
    """Encodes images with the active adapter of a PEFT model, into the joint space where there is one.

    Args:
        adapted: the model with its adapters.
    """

    def __init__(self, adapted: AdaptedModel):
        self.adapted = adapted

    @property
    def vision(self) -> PromptedVisionEncoder:
        """The image encoder."""
        return self.adapted.vision

    def check(self, pixel_values: Tensor | None, options: dict) -> None:
        """Refuse images, and options of the image encoder, that it does not take.

        Raises:
            ValueError: images of another shape than the encoder takes, or none.
            TypeError: options that it does not know.
        """
        view = self.vision.view
        check_options(options, ("interpolate_pos_encoding", *view.embed_options))
        view.check_images(pixel_values, options.get("interpolate_pos_encoding"))

    def encode(self, pixel_values: Tensor, **options) -> Tensor:
        """Return the L2-normalised features of images [b, channels, h, w]: [b, e], or [b, k, e] for read-only prompts.

        Raises:
            ValueError: images of another shape than the encoder takes, or none.
            TypeError: options that it does not know.
        """
        with self.adapted.lock.call():
            self.check(pixel_values, options)
            if not is_traced():
                check_inputs(pixel_values)
            vision = self.vision
            if vision.has_second_feature:
                return self.two_features(pixel_values, options)
            if self.adapted.backbone.dual is not None:
                return self.feature(pixel_values, options)
            output = vision(pixel_values, **options)
            pooled = getattr(output, "pooler_output", None)
            return F.normalize(vision.view.summarize(output.last_hidden_state) if pooled is None else pooled, dim=-1)

    def project(self, pixel_values: Tensor, **options) -> Tensor:
        """Return image features [b, e] in the joint space, not L2-normalised, with an adapter that leaves them alone."""
        with self.adapted.lock.call():
            self.check(pixel_values, options)
            return self.adapted.dual.project_image(self.vision.pooled(pixel_values, **options), normalize=False)

    def feature(self, pixel_values: Tensor, options: dict) -> Tensor:
        """Return the L2-normalised features [b, e] of images that were checked."""
        vision = self.vision
        pooled = vision.pooled(pixel_values, **options)
        prompts = vision.active_prompts
        project = self.adapted.dual.project_image
        return project(pooled) if prompts is None else prompts.image_feature(pooled, project)

    def two_features(self, pixel_values: Tensor, options: dict, details: dict | None = None) -> Tensor:
        """Return the L2-normalised features [b, 2, e] of the image tower itself and of its prompts.

        `details` gets what further terms of the loss read of them.
        """
        vision = self.vision
        states: list[Tensor] | None = None if details is None else []
        pooled, rows = vision.pooled_and_prompts(pixel_values, states, **options)
        project = functools.partial(self.adapted.dual.project_image, normalize=False)
        prompts: Any = vision.active_prompts
        projected = torch.stack([project(pooled), prompts.project(rows, project)], dim=1)
        if details is not None:
            details.update(projected=projected, states=states)
        return F.normalize(projected, dim=-1)

    @property
    def is_fixed(self) -> bool:
        """Whether nothing that is trained changes the image features."""
        try:
            self.require_fixed()
        except UnsupportedModelError:
            return False
        return True

    def require_fixed(self) -> None:
        """Make sure that nothing that is trained changes the image features.

        Raises:
            UnsupportedModelError: the active adapter has visual prompts, or the image encoder or its projection is
                trained.
        """
        own_copy = any(isinstance(layer, AuxiliaryTrainingWrapper) for layer in self.adapted.image_layers())
        vision = self.vision
        disabled = (layer for layer in adapter_layers(self.adapted.tuner) if layer.disable_adapters)
        off = {id(parameter) for parameter in adapter_parameters(disabled)}
        trained = any(p.requires_grad and id(p) not in off for p in vision.base_layer.parameters())
        if vision.active_prompts is not None or trained or own_copy:
            peft_type: Any = self.adapted.model.peft_config[self.adapted.adapter_name].peft_type
            raise UnsupportedModelError(
                "Expected image features that do not change in training. Received an adapter "
                f"({peft_type.value}) that learns visual prompts, or an image "
                "encoder that is trained, be it its projection alone. Pass pixel_values, and do not cache features."
            )

    def frozen(self, pixel_values: Tensor, **options) -> Tensor:
        """Return what the frozen model makes of the images, L2-normalised [b, e], without gradients."""
        with torch.no_grad(), self.adapted.without_adapters():
            return self.adapted.dual.project_image(self.vision.pooled(pixel_values, **options))
