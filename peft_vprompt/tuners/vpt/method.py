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

from ...backbones.supported import TextView, VisionView
from ...prompts.base import PromptModule
from ...prompts.pixels import PixelBorder, PixelChannels, PixelStrip
from ...prompts.tokens import TokenPrompts
from ...prompts.visual import StagedPrompts, VisualPrompts
from ..base.tuner import PromptTuner
from .config import PIXEL_LOCATIONS, VisualPromptConfig
from .support import check_tower


class VisualPromptModel(PromptTuner):
    """Prompts on the vision tower only."""

    prefix = "visual_prompt_"
    needs_text = False

    @classmethod
    def check(cls, config: VisualPromptConfig, vision: VisionView, text: TextView | None) -> None:
        """Refuse prompts that this tower has no layers, tokens or windows for."""
        check_tower(config, vision)

    @classmethod
    def vision_prompts(cls, config: VisualPromptConfig, tower: VisionView, text: TextView | None) -> PromptModule:
        """The prompts at their location."""
        if config.location in PIXEL_LOCATIONS:
            holder = pixel_prompts(config, tower)
        else:
            holder = token_prompts(config, tower, on_clip=text is not None)
        holder.first_layer, holder.read_only, holder.pooling = config.first_layer, config.read_only, config.readout
        return holder


def pixel_prompts(config: VisualPromptConfig, tower: VisionView) -> PromptModule:
    """Patches, a border or channels of pixels."""
    if config.location == "pad":
        return PixelBorder(tower, config.num_virtual_tokens)
    if config.location == "below":
        return PixelChannels(tower, config.num_virtual_tokens)
    start = config.location.removeprefix("prepend-pixel").removeprefix("-") or "uniform"
    return PixelStrip(tower, config.num_virtual_tokens, start)


def token_prompts(config: VisualPromptConfig, tower: VisionView, on_clip: bool) -> PromptModule:
    """VPT's prompts; on a CLIP without projection or dropout, plain tokens with the CLIP methods' start."""
    weight = tower.reference_weight
    factory = {"dtype": weight.dtype, "device": weight.device}
    depth = config.depth(tower.num_layers)
    plain = not (config.projection_dim or config.prompt_dropout or config.deep_shared)
    if config.location == "prepend" and len(tower.stages) > 1:
        return StagedPrompts(
            depth,
            config.num_virtual_tokens,
            tower.stages,
            first_layer=config.first_layer,
            patch_size=tower.patch_size,
            dropout=config.prompt_dropout,
            **factory,
        )
    if on_clip and plain and config.location == "prepend":
        return TokenPrompts(depth, config.num_virtual_tokens, tower.width, **factory)
    count = {"prepend": config.num_virtual_tokens, "add": tower.num_tokens, "add-1": 1}[config.location]
    return VisualPrompts(
        depth,
        count,
        tower.width,
        patch_size=tower.patch_size,
        projection_dim=config.projection_dim,
        dropout=config.prompt_dropout,
        shared=config.deep_shared,
        added=config.location != "prepend",
        **factory,
    )
