"""Models that run by open_clip itself: its image encoder as it is, CLIP's text encoder or a BERT as transformers has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from ...errors import UnsupportedModelError
from ...utils.validation import shorten
from ..opaque_clip import OpaqueCLIPConfig, OpaqueCLIPModel
from .files import CONFIG_FILE, check_config
from .hf_text import hf_text
from .layout import text_config, text_tensors


#: A text encoder that open_clip makes beside the image encoder, and that is thrown away.
SMALLEST_TEXT = {"width": 8, "heads": 1, "layers": 1, "vocab_size": 8, "context_length": 4}


def load_bridged(said: Mapping[str, Any], state: Mapping[str, Tensor]) -> OpaqueCLIPModel:
    """Make a model whose image encoder is open_clip's own, opaque to prompts.

    Class prompts are packed where the text encoder is CLIP's, and padded where it is a BERT.

    Args:
        said: what `open_clip_config.json` says as `model_cfg`.
        state: the tensors, by open_clip's names.

    Returns:
        The model in evaluation mode and float32.

    Raises:
        ImportError: open_clip is not installed.
        UnsupportedModelError: the text encoder is another, logits have a bias, or tensors are missing or left.
    """
    try:
        import open_clip  # pyrefly: ignore[missing-import]  # an extra
    except ImportError as error:
        raise ImportError(
            "Expected open_clip to run this model's image encoder: pip install 'open_clip_torch>=2.30'"
        ) from error
    _require_known_build(said)
    if "logit_bias" in state:
        raise UnsupportedModelError(
            "Expected a model that was trained by the softmax over texts. Received one with a logit_bias. Use SiglipModel."
        )
    if "logit_scale" not in state:
        raise UnsupportedModelError(
            "Expected the tensors of open_clip's model. Missing: logit_scale. Use the whole checkpoint."
        )
    fields, parts, weights, taken = _text(said, state)
    theirs: Any = open_clip.CustomTextCLIP(
        embed_dim=said["embed_dim"],
        vision_cfg={**said["vision_cfg"], "timm_model_pretrained": False},  # the weights are here: none are fetched
        text_cfg=SMALLEST_TEXT,
        quick_gelu=bool(said.get("quick_gelu")),
    )
    visual = {
        name.removeprefix("visual."): state[name]
        for name in state
        if name.startswith("visual.") and _floats(theirs, name)
    }
    try:
        found = theirs.visual.load_state_dict(visual, strict=False)
    except RuntimeError as error:
        raise UnsupportedModelError(f"The tensors are of other shapes than {CONFIG_FILE} says: {error}.") from error
    missing = [name for name in found.missing_keys if not _counts(name)]
    left = [name for name in state if not name.startswith("visual.") and name not in taken]
    if missing or left:
        raise UnsupportedModelError(
            f"Expected the tensors of open_clip's model. Missing: {shorten(missing, 4) or 'none'}; left: {shorten(left, 4) or 'none'}."
        )
    size = said["vision_cfg"].get("image_size", 224)
    config = OpaqueCLIPConfig(fields, projection_dim=said["embed_dim"])
    model = OpaqueCLIPModel(config, theirs.visual, size if isinstance(size, int) else None, **parts)
    model.load_state_dict(weights, strict=False)
    return model.eval()


def _require_known_build(said: Mapping[str, Any]) -> None:
    """Refuse a configuration without sizes, or whose image encoder is named by a place that timm would fetch it from."""
    if missing := {"embed_dim", "vision_cfg"} - said.keys():
        raise UnsupportedModelError(f"Expected {' and '.join(sorted(missing))} in {CONFIG_FILE}. Download it again.")
    name = said["vision_cfg"].get("timm_model_name") or ""
    if ":" in name:
        raise UnsupportedModelError(
            f"Expected vision_cfg.timm_model_name to be a build that timm has itself. Received: {name!r}, which is fetched "
            "from elsewhere. Load the model by open_clip yourself."
        )


def _text(
    said: Mapping[str, Any], state: Mapping[str, Tensor]
) -> tuple[dict | PretrainedConfig, dict[str, nn.Module], dict[str, Tensor], set[str]]:
    """Return the text side: its configuration, modules that are made already, tensors to load, names that were read."""
    text = said.get("text_cfg", {})
    if text.get("hf_model_name"):
        encoder, projection, taken = hf_text(text, said["embed_dim"], state)
        parts = {"text_encoder": encoder, "text_projection": projection}
        return encoder.config, parts, {"logit_scale": state["logit_scale"].detach().float()}, {*taken, "logit_scale"}
    check_config(said, towers=("text_cfg",))
    tensors, weights = text_tensors(state)
    width, heads = text.get("width", 512), text.get("heads", 8)
    activation = "quick_gelu" if said.get("quick_gelu") else "gelu"
    return text_config(tensors, activation, max(1, width // heads)), {}, weights, tensors.taken


def _counts(name: str) -> bool:
    """Tell whether a tensor counts batches, which nothing depends on."""
    return name.endswith("num_batches_tracked")


def _floats(theirs: Any, name: str) -> bool:
    """Tell whether a tensor of the image encoder is one of floating-point numbers, not a count or an index."""
    own = theirs.visual.state_dict().get(name.removeprefix("visual."))
    return own is None or own.is_floating_point()
