"""Conditional context optimisation (CoCoOp)."""

from ..base.registry import Method, register
from .config import CoCoOpConfig
from .method import CoCoOpModel


__all__ = ["CoCoOpConfig", "CoCoOpModel"]

register(
    Method(
        name="cocoop",
        title="CoCoOp",
        paper="Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022",
        learns="a context, and a small network that shifts it by the image",
        config_class=CoCoOpConfig,
        model_class=CoCoOpModel,
    )
)
