"""Knowledge-guided context optimisation (KgCoOp)."""

from ..base.recipe import Recipe
from ..base.registry import register
from ..base.shared_recipes import DASSL, DEMO
from ..base.spec import MethodSpec, Paper
from .checkpoint import read
from .config import KgCoOpConfig
from .method import KgCoOpModel


__all__ = ["KgCoOpConfig", "KgCoOpModel"]

register(
    MethodSpec(
        name="kgcoop",
        title="KgCoOp",
        paper=Paper(
            "Yao et al., Visual-Language Prompt Tuning with Knowledge-guided Context Optimization, CVPR 2023",
            "https://arxiv.org/abs/2303.13283",
        ),
        learns="a context whose class features stay near the frozen ones",
        config_class=KgCoOpConfig,
        tuner_class=KgCoOpModel,
        recipe=Recipe(
            learning_rate=0.002,
            batch_size=128,
            epochs=100,
            source=DASSL + "htyao89/KgCoOp configs/trainers/KgCoOp/vit_b16_ep100_ctxv1.yaml",
        ),
        checkpoints={"kgcoop": read},
        demo=DEMO,
    )
)
