"""Independent vision-language prompts (IVLP): MaPLe's config and method without the coupling."""

from ..base.recipe import Recipe
from ..base.registry import register
from ..base.shared_recipes import DASSL, DEMO
from ..base.spec import MethodSpec, Paper
from ..maple.config import MaPLeConfig
from .checkpoint import read


register(
    MethodSpec(
        name="ivlp",
        title="IVLP",
        paper=Paper(
            "Khattak et al., MaPLe: Multi-modal Prompt Learning, CVPR 2023 (the baseline without coupling)",
            "https://arxiv.org/abs/2210.03117",
        ),
        learns="deep prompts in both encoders, independent of each other",
        config_class=MaPLeConfig,
        marks={"coupling": "none"},
        defaults=lambda depth: {"prompt_depth": min(9, depth.both)},
        recipe=Recipe(
            learning_rate=0.0035,
            batch_size=4,
            epochs=5,
            source=DASSL
            + "muzairkhattak/multimodal-prompt-learning configs/trainers/IVLP/vit_b16_c2_ep5_batch4_2+2ctx.yaml",
        ),
        checkpoints={"ivlp": read},
        demo=DEMO,
    )
)
