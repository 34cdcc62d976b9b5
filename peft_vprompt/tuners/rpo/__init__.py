"""Read-only prompts: RPO and MRPO."""

from ..base.registry import Method, register
from .config import MRPOConfig, ReadOnlyPromptConfig
from .method import MRPOModel, ReadOnlyPromptModel


__all__ = ["MRPOConfig", "MRPOModel", "ReadOnlyPromptConfig", "ReadOnlyPromptModel"]

register(
    Method(
        name="read_only_prompt",
        title="RPO",
        paper="Lee et al., Read-only Prompt Optimization for Vision-Language Few-shot Learning, ICCV 2023",
        learns="prompts that read both encoders and are read by nobody",
        config_class=ReadOnlyPromptConfig,
        model_class=ReadOnlyPromptModel,
    )
)
register(
    Method(
        name="mrpo",
        title="MRPO",
        paper="Seo and Lee, Multi-modal Read-only Prompt Optimization, Kookmin University",
        learns="deep read-only text prompts and their map to visual ones",
        config_class=MRPOConfig,
        model_class=MRPOModel,
    )
)
