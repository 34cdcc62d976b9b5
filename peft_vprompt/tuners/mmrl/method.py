"""Multi-modal representation learning: MMRL, MMRL++ and AlignedNorm.

Papers: Guo and Gu, "MMRL: Multi-Modal Representation Learning for Vision-Language Models", CVPR 2025, section 3; "MMRL++:
Parameter-Efficient and Interaction-Aware Representation Learning", 2025; AlignedNorm.
Authors' code: yunncheng/MMRL `trainers/mmrl.py`, `trainers/mmrlpp.py`, commit 27d8821; QByteM/AlignedNorm, commit 2204197.

As in that code, predictions are fused as logits, the tokens' features are not held near the frozen ones, and of AlignedNorm's
four terms two are in the loss.

Deviation: one readout for all classes by default (AlignedNorm's; MMRL's own is `readout="decoupled"`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...backbones.text import TextView
from ...backbones.vision import VisionView
from ...losses.regularizers import FeatureNorm, Features, Regularizer, SequenceNorm
from ...prompts.base import PromptModule, placed_like
from ...prompts.representations import ImageRepresentations, LayerMaps, TextRepresentations
from ..base.method import PromptMethod, check_depth
from ..base.tuner import PromptTuner
from .config import MMRLConfig


class MMRL(PromptMethod):
    """Shared tokens in late layers, a second image feature that reads them, both near the frozen model."""

    needs_class_token = True
    has_image_layers = True

    def check(self, config: MMRLConfig, vision: VisionView, text: TextView) -> None:
        """Refuse layers that a tower does not have."""
        check_depth("representation_layers", config.representation_layers[-1], text, "text tower")
        check_depth("representation_layers", config.representation_layers[-1], vision, "vision tower")

    def text_prompts(
        self, config: MMRLConfig, view: TextView, tokenizer: PreTrainedTokenizerBase | None, feature_dim: int
    ) -> PromptModule:
        """Return the shared tokens and their maps to the text tower."""
        size = (config.num_virtual_tokens, config.representation_dim)
        return TextRepresentations(*size, *self._maps(config, view), **placed_like(view))

    def vision_prompts(self, config: MMRLConfig, view: VisionView, text: TextView, feature_dim: int) -> PromptModule:
        """Return the tokens' maps to the image tower, and their projection."""
        rank = None if config.low_rank is None else config.readout_rank
        return ImageRepresentations(view.width, feature_dim, rank, *self._maps(config, view), **placed_like(view))

    def _maps(self, config: MMRLConfig, view: TextView | VisionView) -> tuple[list[int], float, LayerMaps]:
        size = (len(config.layers), config.representation_dim, view.width)
        return config.layers, config.share, LayerMaps(*size, config.low_rank, **placed_like(view))

    def similarities(
        self, config: MMRLConfig, readout: nn.Module, image: Tensor, text: Tensor, own_classes: Callable[[], bool]
    ) -> Tensor:
        """Return the cosines [b, c] of the class token's feature and the tokens', [b, 2, e], mixed."""
        fused = config.readout == "fused" or (config.readout == "decoupled" and own_classes())
        alpha = config.alpha if fused else 1.0
        return (alpha * image[:, 0] + (1 - alpha) * image[:, 1]) @ text.t()

    def predictions(self, config: MMRLConfig, features: Features, scaled: Callable[[Tensor], Tensor]) -> list[tuple]:
        """Return what the loss is taken of: each feature's logits by itself."""
        shares = (config.alpha, 1 - config.alpha)
        return [(s, scaled(features.image[:, i] @ features.text.t())) for i, s in enumerate(shares)]

    def regularizers(self, config: MMRLConfig) -> dict[str, tuple[float, Regularizer]]:
        """Return the distances to the frozen features, and the differences of norms."""
        terms = super().regularizers(config)
        if "image_consistency" in terms:
            weight, term = terms["image_consistency"]
            terms["image_consistency"] = weight, lambda features: term(replace(features, image=features.image[:, 0]))
        norms = {
            "feature_norm": (config.feature_norm_weight, FeatureNorm()),
            "sequence_norm": (config.sequence_norm_weight, SequenceNorm(config.layers, config.num_virtual_tokens)),
        }
        return terms | {name: term for name, term in norms.items() if term[0]}


class MMRLModel(PromptTuner):
    """MMRL's tuner."""

    peft_name = "mmrl"
    prefix = "representation_prompt_"
    method = MMRL()
