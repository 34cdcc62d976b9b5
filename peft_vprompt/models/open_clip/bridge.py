"""Models that run by open_clip itself: its image encoder as it is, CLIP's text encoder as transformers has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...errors import UnsupportedModelError
from ...utils.validation import shorten
from ..opaque_clip import OpaqueCLIPConfig, OpaqueCLIPModel
from .files import check_config
from .layout import text_config, text_tensors


def load_bridged(said: Mapping[str, Any], state: Mapping[str, Tensor]) -> OpaqueCLIPModel:
    """Make a model whose image encoder is open_clip's own, opaque to prompts; its class prompts are packed as CLIP's are.

    Args:
        said: what `open_clip_config.json` says as `model_cfg`.
        state: the tensors, by open_clip's names.

    Returns:
        The model in evaluation mode and float32.

    Raises:
        ImportError: open_clip is not installed.
        UnsupportedModelError: the text encoder is not CLIP's, logits have a bias, or tensors are missing or left.
    """
    try:
        import open_clip  # pyrefly: ignore[missing-import]  # an extra
    except ImportError as error:
        raise ImportError(
            "Expected open_clip to run this model's image encoder. Install open_clip_torch, the extra [open_clip]."
        ) from error
    check_config(said, towers=("text_cfg",))
    if "logit_bias" in state:
        raise UnsupportedModelError(
            "Expected a model that was trained by the softmax over texts. Received one with a logit_bias. Use SiglipModel."
        )
    text = said.get("text_cfg", {})
    tensors, weights = text_tensors(state)
    width, heads = text.get("width", 512), text.get("heads", 8)
    activation = "quick_gelu" if said.get("quick_gelu") else "gelu"
    fields = text_config(tensors, activation, width // heads)
    towers = {"vision_cfg": dict(said["vision_cfg"]), "text_cfg": dict(text)}
    theirs: Any = open_clip.CustomTextCLIP(
        embed_dim=said["embed_dim"], quick_gelu=bool(said.get("quick_gelu")), **towers
    )
    visual = {
        name.removeprefix("visual."): state[name]
        for name in state
        if name.startswith("visual.") and _floats(theirs, name)
    }
    missing = [name for name in theirs.visual.load_state_dict(visual, strict=False).missing_keys if not _counts(name)]
    left = [name for name in state if not name.startswith("visual.") and name not in tensors.taken]
    if missing or left:
        raise UnsupportedModelError(
            f"Expected the tensors of open_clip's model. Missing: {shorten(missing, 4) or 'none'}; left: {shorten(left, 4) or 'none'}."
        )
    size = said["vision_cfg"].get("image_size", 224)
    config = OpaqueCLIPConfig(fields, projection_dim=fields["projection_dim"])
    model = OpaqueCLIPModel(config, theirs.visual, image_size=size if isinstance(size, int) else None)
    model.load_state_dict(weights, strict=False)
    return model.eval()


def _counts(name: str) -> bool:
    """Tell whether a tensor counts batches, which nothing depends on."""
    return name.endswith("num_batches_tracked")


def _floats(theirs: Any, name: str) -> bool:
    """Tell whether a tensor of the image encoder is one of floating-point numbers, not a count or an index."""
    own = theirs.visual.state_dict().get(name.removeprefix("visual."))
    return own is None or own.is_floating_point()
