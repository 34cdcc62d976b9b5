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

from ...errors import UnsupportedModelError
from ...pixel_prompts import PixelBorder, PixelChannels, PixelStrip
from ...prompts import PromptHolder, StagedPrompts, TokenPrompts, VisualPrompts
from ...towers import TextTower, VisionTower
from ..tuner import PromptTuner
from .config import PIXEL_LOCATIONS, STRIP_LOCATIONS, VisualPromptConfig


class VisualPromptModel(PromptTuner):
    """Prompts on the vision tower only."""

    prefix = "visual_prompt_"
    needs_text = False

    @classmethod
    def check(cls, config: VisualPromptConfig, vision: VisionTower, text: TextTower | None) -> None:
        """Refuse prompted layers that are not there, and pixels where the tower's patches cannot be made anew."""
        last = config.first_layer + config.depth(vision.num_layers)
        if config.first_layer >= vision.num_layers or last > vision.num_layers:
            raise ValueError(
                f"Expected first_layer + num_deep_layers <= {vision.num_layers}, the layers of the vision tower. "
                f"Received: first_layer={config.first_layer}, num_deep_layers={config.num_deep_layers}."
            )
        if config.location in PIXEL_LOCATIONS and vision.patch_embedding is None:
            raise UnsupportedModelError(
                f"Prompts at location={config.location!r} are pixels, and {type(vision.module).__name__} does not embed "
                "its patches by one convolution with position embeddings after it. Use location='prepend'."
            )
        if vision.num_tokens is None and (
            config.location == "add" or config.pooling in ("img_pool", "imgprompt_pool")
        ):
            raise UnsupportedModelError(
                f"{type(vision.module).__name__} takes images of different numbers of tokens, padded: there is no prompt "
                "for each of them, and no plain mean over them. Use location='prepend' or 'add-1', and "
                "pooling='original' or 'prompt_pool'."
            )
        if config.read_only and vision.no_readers:
            raise UnsupportedModelError(
                f"{type(vision.module).__name__} takes no read-only prompts: {vision.no_readers}. Use read_only=False."
            )
        if len(vision.stages) > 1:
            check_stages(config, type(vision.module).__name__)

    @classmethod
    def vision_prompts(cls, config: VisualPromptConfig, tower: VisionTower, text: TextTower | None) -> PromptHolder:
        """The prompts at their location."""
        build = pixel_prompts if config.location in PIXEL_LOCATIONS else token_prompts
        holder = build(config, tower, text is not None)
        holder.first_layer, holder.reads_only, holder.pooling = config.first_layer, config.read_only, config.readout
        return holder


def check_stages(config: VisualPromptConfig, model_name: str) -> None:
    """Refuse what has no meaning on a tower of several stages with windows."""
    one_width = "its width grows from stage to stage, and this takes prompts of one width"
    reasons = {
        "projection_dim": (config.projection_dim, one_width),
        "deep_shared": (config.deep_shared, one_width),
        "location": (
            config.location if config.location in STRIP_LOCATIONS else None,
            "its tokens stay a grid, to which a strip of patches cannot be added",
        ),
    }
    if config.location != "prepend":
        reasons |= {"deep": (config.deep, one_width), "first_layer": (config.first_layer, one_width)}
    for name, (value, reason) in reasons.items():
        if value:
            raise UnsupportedModelError(
                f"{model_name} cannot take {name}={value!r} with location={config.location!r}: {reason}. Use the prompts without it."
            )


def pixel_prompts(config: VisualPromptConfig, tower: VisionTower, on_clip: bool) -> PromptHolder:
    """Patches, a border or channels of pixels."""
    if config.location == "pad":
        return PixelBorder(tower, config.num_virtual_tokens)
    if config.location == "below":
        return PixelChannels(tower, config.num_virtual_tokens)
    start = config.location.removeprefix("prepend-pixel").removeprefix("-") or "uniform"
    return PixelStrip(tower, config.num_virtual_tokens, start)


def token_prompts(config: VisualPromptConfig, tower: VisionTower, on_clip: bool) -> PromptHolder:
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
