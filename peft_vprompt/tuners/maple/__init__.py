"""Multi-modal prompts: MaPLe (coupled) and IVLP (independent)."""

from ..base.registry import Method, register
from .config import MaPLeConfig
from .method import MaPLeModel


__all__ = ["MaPLeConfig", "MaPLeModel"]

register(
    Method(
        name="maple",
        title="MaPLe, IVLP",
        paper="Khattak et al., MaPLe: Multi-modal Prompt Learning, CVPR 2023",
        learns="deep prompts in both encoders, coupled or independent",
        config_class=MaPLeConfig,
        model_class=MaPLeModel,
    )
)
