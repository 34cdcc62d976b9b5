"""Read-only prompts (RPO)."""

from ..base.recipe import Recipe
from ..base.registry import register
from ..base.shared_recipes import DASSL, DEMO
from ..base.spec import MethodSpec, Paper, Variation
from .checkpoint import read
from .config import ReadOnlyPromptConfig, RPOConfig
from .method import RPO, ReadOnlyPromptModel


__all__ = ["RPO", "RPOConfig", "ReadOnlyPromptConfig", "ReadOnlyPromptModel"]

register(
    MethodSpec(
        name="rpo",
        title="RPO",
        paper=Paper(
            "Lee et al., Read-only Prompt Optimization for Vision-Language Few-shot Learning, ICCV 2023",
            "https://arxiv.org/abs/2308.14960",
        ),
        learns="prompts that read both encoders and are read by nobody",
        config_class=ReadOnlyPromptConfig,
        tuner_class=ReadOnlyPromptModel,
        recipe=Recipe(
            learning_rate=0.01,
            batch_size=4,
            epochs=15,
            source=DASSL + "mlvlab/RPO configs/trainers/RPO/main_K24.yaml",
        ),
        variations=(Variation({"learning_rate": 0.005}, protocols=("domain-generalization",)),),
        checkpoints={"rpo": read},
        demo=DEMO,
    )
)
