"""Context optimisation (CoOp)."""

from ..base.registry import Method, register
from .config import ContextOptConfig
from .method import ContextOptModel


__all__ = ["ContextOptConfig", "ContextOptModel"]

register(
    Method(
        name="context_opt",
        title="CoOp",
        paper="Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022",
        learns="context vectors around the class name",
        config_class=ContextOptConfig,
        model_class=ContextOptModel,
    )
)
