"""Multi-modal prompts (MaPLe)."""

from ..base.recipe import Recipe
from ..base.registry import register
from ..base.shared_recipes import DASSL, DEMO, TRANSFERS
from ..base.spec import MethodSpec, Paper, Variation
from .checkpoint import read
from .config import MaPLeConfig
from .method import MaPLe, MaPLeModel


__all__ = ["MaPLe", "MaPLeConfig", "MaPLeModel"]

register(
    MethodSpec(
        name="maple",
        title="MaPLe",
        paper=Paper(
            "Khattak et al., MaPLe: Multi-modal Prompt Learning, CVPR 2023", "https://arxiv.org/abs/2210.03117"
        ),
        learns="deep prompts in both encoders, coupled or independent",
        config_class=MaPLeConfig,
        tuner_class=MaPLeModel,
        defaults=lambda depth: {"prompt_depth": min(9, depth.both)},
        recipe=Recipe(
            learning_rate=0.0035,
            batch_size=4,
            epochs=5,
            source=DASSL
            + "muzairkhattak/multimodal-prompt-learning configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml",
        ),
        variations=(Variation({"learning_rate": 0.0026, "epochs": 2, "prompt_depth": 3}, protocols=TRANSFERS),),
        checkpoints={"maple": read},
        demo=DEMO,
    )
)
