"""Visual prompt tuning.

Paper: Jia et al., "Visual Prompt Tuning", ECCV 2022, section 3.2 (shallow: equations 4-6, deep: 7-8).
Authors' code: KMnP/vpt `src/models/vit_prompt/vit.py`; on CLIP: muzairkhattak/multimodal-prompt-learning
`trainers/vpt.py`.

Deviation: a classification head starts from the base model's own (the authors start it anew).
"""

from __future__ import annotations

from ...prompts import PromptHolder, TokenPrompts, VisualPrompts
from ...towers import TextTower, VisionTower
from ..tuner import PromptTuner
from .config import VisualPromptConfig


class VisualPromptModel(PromptTuner):
    """Prompts on the vision tower only."""

    prefix = "visual_prompt_"
    needs_text = False

    @classmethod
    def check(cls, config: VisualPromptConfig, vision: VisionTower, text: TextTower | None) -> None:
        """Refuse more prompted layers than there are."""
        if config.depth(vision.num_layers) > vision.num_layers:
            raise ValueError(
                f"Expected num_deep_layers <= {vision.num_layers}, the layers of the vision tower. "
                f"Received: num_deep_layers={config.num_deep_layers}."
            )

    @classmethod
    def vision_prompts(cls, config: VisualPromptConfig, tower: VisionTower, text: TextTower | None) -> PromptHolder:
        """VPT's prompts; on a CLIP without projection or dropout, plain tokens with the CLIP methods' start."""
        weight = tower.reference_weight
        factory = {"dtype": weight.dtype, "device": weight.device}
        depth, plain = (
            config.depth(tower.num_layers),
            not (config.projection_dim or config.prompt_dropout or config.deep_shared),
        )
        if text is not None and plain:
            return TokenPrompts(depth, config.num_virtual_tokens, tower.width, **factory)
        return VisualPrompts(
            depth,
            config.num_virtual_tokens,
            tower.width,
            patch_size=tower.patch_size,
            projection_dim=config.projection_dim,
            dropout=config.prompt_dropout,
            shared=config.deep_shared,
            **factory,
        )
