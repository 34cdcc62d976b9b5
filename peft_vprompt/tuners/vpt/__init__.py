"""Visual prompt tuning (VPT)."""

from ..base.registry import Method, register
from .config import VisualPromptConfig
from .method import VisualPromptModel


__all__ = ["VisualPromptConfig", "VisualPromptModel"]

register(
    Method(
        name="visual_prompt",
        title="VPT",
        paper="Jia et al., Visual Prompt Tuning, ECCV 2022",
        learns="tokens or pixels at the image encoder (and the head)",
        config_class=VisualPromptConfig,
        model_class=VisualPromptModel,
    )
)
