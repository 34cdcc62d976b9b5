"""Prompt distillation.

Paper: Li et al., "PromptKD: Unsupervised Prompt Distillation for Vision-Language Models", CVPR 2024, section 3.
Authors' code: zhengli97/PromptKD `trainers/promptkd.py`.

As in that code, the student reads class features of the teacher, by its own scale, and the divergence is a mean over images
and classes.

Deviation: a convolution of one pixel is a linear map here.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ...backbones.text import TextView
from ...backbones.vision import VisionView
from ...losses.classification import mean_cross_entropy
from ...prompts.base import PromptModule, placed_like
from ...prompts.projected import ProjectedPrompts
from ...readouts import GivenClasses
from ..base.method import FrozenText, PromptMethod, check_depth, refuse_other_classes
from ..base.tuner import PromptTuner
from .config import PromptKDConfig


class PromptKD(PromptMethod):
    """Visual prompts, and a projector to the space of the teacher's class features."""

    has_image_layers = True

    def check(self, config: PromptKDConfig, vision: VisionView, text: TextView) -> None:
        """Refuse more prompted layers than the image tower has."""
        check_depth("prompt_depth", config.prompt_depth, vision, "vision tower")

    def vision_prompts(
        self, config: PromptKDConfig, view: VisionView, text: TextView, feature_dim: int
    ) -> PromptModule:
        """Return the prompts and the projector."""
        size = (config.prompt_depth, config.num_virtual_tokens, view.width)
        return ProjectedPrompts(*size, feature_dim, config.teacher_dim or feature_dim, **placed_like(view))

    def readout(self, config: PromptKDConfig, view: TextView, feature_dim: int) -> nn.Module:
        """Return the place of the teacher's class features."""
        return GivenClasses(len(config.own_classes), config.teacher_dim or feature_dim, **placed_like(view))

    def needs_tokenizer(self, config: PromptKDConfig) -> bool:
        """Return True where the model's own class features stand in for a teacher's."""
        return config.teacher_dim is None and not config.inference_mode

    def initialize(self, config: PromptKDConfig, readout: nn.Module, frozen_text: FrozenText) -> None:
        """Take the model's own class features, where no other teacher is expected."""
        if config.teacher_dim is None:
            readout.class_features.copy_(frozen_text.normalized())

    def own_class_features(self, readout: nn.Module) -> Tensor:
        """Return the teacher's features."""
        return readout.known_features()

    def loss(self, config: PromptKDConfig, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted divergence from the teacher's probabilities [b, c]; of class numbers the cross-entropy."""
        if not labels.is_floating_point():
            return mean_cross_entropy(logits, labels)
        student = F.log_softmax(logits / config.temperature, dim=-1)
        divergence = F.kl_div(student, labels, reduction="none").mean()
        return config.distillation_weight * config.temperature**2 * divergence

    def check_new_classes(self, config: PromptKDConfig, names: Sequence[str]) -> None:
        """Refuse classes that the teacher gave no feature of.

        Raises:
            ClassNamesError: names the adapter's classes and the remedy.
        """
        remedy = "Or distil an adapter for all classes that are to be told apart."
        refuse_other_classes(config, names, "a teacher's feature", remedy)


class PromptKDModel(PromptTuner):
    """PromptKD's tuner."""

    peft_name = "promptkd"
    prefix = "distilled_prompt_"
    method = PromptKD()
