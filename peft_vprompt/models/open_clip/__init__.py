"""CLIPs in the files of openai/CLIP and open_clip, as models of transformers. Nothing in a file is run."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from transformers import PreTrainedModel

from ...errors import UnsupportedModelError
from ...utils.checkpoint_state import CheckpointState
from ...utils.warning import warn_caller
from .bridge import load_bridged
from .files import check_config, find_weights, is_open_clip, open_clip_image_processor, read_config
from .layout import from_state_dict


def load_open_clip(name_or_path: str | os.PathLike, convert_only: bool = False, **hub: Any) -> PreTrainedModel:
    """Load a CLIP from open_clip's folder or repository, or from a single file of openai/CLIP or open_clip.

    What is of CLIP's build becomes a `CLIPModel` or a `ResNetCLIPModel`. Other image encoders (timm's, say) beside CLIP's
    text encoder run by open_clip itself, where it is installed, see `load_bridged`.

    Args:
        name_or_path: the folder, the Hub id or the file. Without `open_clip_config.json` a file is taken for one of
            openai/CLIP: heads of 64 numbers, and its approximate GELU.
        convert_only: do not ask open_clip.
        hub: options of `transformers.utils.cached_file`, such as `revision`.

    Returns:
        The model in evaluation mode and float32.

    Raises:
        UnsupportedModelError: a part that these models do not have; names it.
        AdapterMismatchError: the file cannot be read.
        FileNotFoundError: there is no such file or folder, or there are no weights in it.
    """
    said = read_config(name_or_path, hub)
    state = CheckpointState(find_weights(name_or_path, hub))
    if not said and "input_resolution" not in state:  # which the files of openai/CLIP hold
        warn_caller(
            f"Nothing says how {os.fspath(name_or_path)!r} is built. It is taken for one of openai/CLIP (QuickGELU, heads of 64 "
            "numbers). If it is of open_clip, put its open_clip_config.json beside it."
        )
    try:
        model = from_state_dict(state, **_options(said))
    except UnsupportedModelError:
        if convert_only or not said or find_spec("open_clip") is None:
            raise
        model = load_bridged(said.get("model_cfg", said), state)
    model.is_open_clip = True  # its class in transformers cannot load these files
    model.config._name_or_path = model.name_or_path = os.fspath(name_or_path)
    return model


def _options(said: dict[str, Any]) -> dict[str, Any]:
    """Return the options of `from_state_dict` that open_clip's configuration says; nothing without one.

    Raises:
        UnsupportedModelError: it says something that neither model has.
    """
    if not said:
        return {}
    model = said.get("model_cfg", said)
    check_config(model)
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    size = vision.get("image_size")
    return {
        "quick_gelu": bool(model.get("quick_gelu", False)),
        "text_head_size": max(1, text.get("width", 512) // text.get("heads", 8)),
        "vision_head_size": vision.get("head_width", 64),
        "image_size": size if isinstance(size, int) and not isinstance(vision.get("layers"), list) else None,
    }


__all__ = ["from_state_dict", "is_open_clip", "load_bridged", "load_open_clip", "open_clip_image_processor"]
