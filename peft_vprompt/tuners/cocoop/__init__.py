"""Conditional context optimisation (CoCoOp)."""

from ..base.recipe import Recipe
from ..base.registry import register
from ..base.shared_recipes import DASSL, DEMO
from ..base.spec import MethodSpec, Paper
from .checkpoint import read
from .config import CoCoOpConfig
from .method import CoCoOp, CoCoOpModel


__all__ = ["CoCoOp", "CoCoOpConfig", "CoCoOpModel"]

register(
    MethodSpec(
        name="cocoop",
        title="CoCoOp",
        paper=Paper(
            "Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022",
            "https://arxiv.org/abs/2203.05557",
        ),
        learns="a context, and a small network that shifts it by the image",
        config_class=CoCoOpConfig,
        tuner_class=CoCoOpModel,
        recipe=Recipe(
            learning_rate=0.002,
            batch_size=1,
            epochs=10,
            source=DASSL + "KaiyangZhou/CoOp configs/trainers/CoCoOp/vit_b16_c4_ep10_batch1_ctxv1.yaml",
        ),
        checkpoints={"cocoop": read},
        demo=DEMO,
    )
)
