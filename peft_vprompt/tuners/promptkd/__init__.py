"""Prompt distillation from a larger model (PromptKD)."""

from ..base.recipe import Recipe
from ..base.registry import register
from ..base.shared_recipes import DASSL
from ..base.spec import MethodSpec, Paper
from .checkpoint import read
from .config import PromptKDConfig
from .method import PromptKD, PromptKDModel


__all__ = ["PromptKD", "PromptKDConfig", "PromptKDModel"]

register(
    MethodSpec(
        name="promptkd",
        title="PromptKD",
        paper=Paper(
            "Li et al., PromptKD: Unsupervised Prompt Distillation for Vision-Language Models, CVPR 2024",
            "https://arxiv.org/abs/2403.02781",
        ),
        learns="deep visual prompts and a projector, from a larger model's predictions",
        config_class=PromptKDConfig,
        tuner_class=PromptKDModel,
        defaults=lambda depth: {"prompt_depth": min(9, depth.vision or 9)},
        recipe=Recipe(
            learning_rate=0.005,
            batch_size=8,
            epochs=20,
            source=DASSL + "zhengli97/PromptKD configs/trainers/PromptKD/vit_b16_c2_ep20_batch8_4+4ctx.yaml",
        ),
        new_classes=False,
        checkpoints={"promptkd": read},
    )
)
