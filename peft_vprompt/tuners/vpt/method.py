"""Visual prompt tuning.

Paper: Jia et al., "Visual Prompt Tuning", ECCV 2022, section 3.2 (shallow: equations 4-6, deep: 7-8).
Authors' code: KMnP/vpt `src/models/vit_prompt/vit.py`; on CLIP: muzairkhattak/multimodal-prompt-learning
`trainers/vpt.py`.

Locations: section 4.3 and the appendix; `src/models/vit_prompt/vit_ablations.py`.

Deviations: a classification head starts from the base model's own (the authors start it anew), and so do the channels
of the image in the patch embedding of 'below'. 'img_pool' is the mean over the patches at every location. On a CLIP,
pixels are normalised with CLIP's mean and standard deviation. `first_layer` and `read_only` are not in the paper.
"""

from __future__ import annotations

from ...backbones.text import TextView
from ...backbones.vision import VisionView
from ...prompts.base import PromptModule, placed_like
from ...prompts.pixels import PixelBorder, PixelChannels, PixelStrip
from ...prompts.tokens import CLIP_PROMPT_STD
from ...prompts.visual import StagedPrompts, VisualPrompts
from ..base.method import PromptMethod, refuse_text_fields
from ..base.tuner import PromptTuner
from .config import IMAGE_LOCATIONS, PIXEL_LOCATIONS, VisualPromptConfig
from .support import check_tower


class VPT(PromptMethod):
    """Prompts on the vision tower only."""

    needs_text = False
    without_image_layers = "location='pad' or location='below', prompts that are pixels"

    def needs_image_layers(self, config: VisualPromptConfig | None) -> bool:
        """Return whether prompts are tokens: those in a border or in further channels are not."""
        return config is None or config.location not in IMAGE_LOCATIONS

    def check(self, config: VisualPromptConfig, vision: VisionView, text: TextView | None) -> None:
        """Refuse prompts that this tower has no layers, tokens or windows for, and terms that need class names."""
        check_tower(config, vision)
        if text is None:
            refuse_text_fields(config)

    def vision_prompts(
        self, config: VisualPromptConfig, view: VisionView, text: TextView | None, feature_dim: int
    ) -> PromptModule:
        """Return the prompts at their location."""
        options = {
            "first_layer": config.first_layer,
            "read_only": config.read_only,
            "pooling": config.pooling_rows,
        }
        if config.location in PIXEL_LOCATIONS:
            return pixel_prompts(config, view, options)
        return token_prompts(config, view, options, on_clip=text is not None)


class VisualPromptModel(PromptTuner):
    """VPT's tuner."""

    peft_name = "visual_prompt"
    prefix = "visual_prompt_"
    method = VPT()


def pixel_prompts(config: VisualPromptConfig, view: VisionView, options: dict) -> PromptModule:
    """Return patches, a border or channels of pixels."""
    if config.location == "pad":
        return PixelBorder(view, config.num_virtual_tokens, **options)
    if config.location == "below":
        return PixelChannels(view, config.num_virtual_tokens, **options)
    start = config.location.removeprefix("prepend-pixel").removeprefix("-") or "uniform"
    return PixelStrip(view, config.num_virtual_tokens, start, **options)


def token_prompts(config: VisualPromptConfig, view: VisionView, options: dict, on_clip: bool) -> PromptModule:
    """Return VPT's prompts; beside a CLIP's tokens and without projection they start as the CLIP methods' do."""
    depth = config.depth(view.num_layers)
    options = options | placed_like(view)
    if config.location == "prepend" and len(view.stages) > 1:
        return StagedPrompts(
            depth,
            config.num_virtual_tokens,
            view.stages,
            patch_size=view.patch_size,
            dropout=config.prompt_dropout,
            **options,
        )
    as_clip_methods = on_clip and config.location == "prepend" and not config.projection_dim
    count = {"prepend": config.num_virtual_tokens, "add": view.num_tokens, "add-1": 1}[config.location]
    return VisualPrompts(
        depth,
        count,  # pyrefly: ignore[bad-argument-type]  # `check` refuses "add" where images differ in shape
        view.width,
        patch_size=view.patch_size,
        projection_dim=config.projection_dim,
        dropout=config.prompt_dropout,
        shared=config.deep_shared,
        added=config.location != "prepend",
        std=CLIP_PROMPT_STD if as_clip_methods else None,
        **options,
    )
