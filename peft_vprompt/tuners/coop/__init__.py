"""Context optimisation (CoOp), and PTNL's tuning of class names."""

from ..base.recipe import Recipe
from ..base.registry import register
from ..base.shared_recipes import DASSL, DEMO, PTNL
from ..base.spec import MethodSpec, Paper, Variation
from .checkpoint import read
from .config import ContextOptConfig, CoOpConfig
from .method import ContextOptModel, CoOp


__all__ = ["CoOp", "CoOpConfig", "ContextOptConfig", "ContextOptModel"]

PAPER = Paper(
    "Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022", "https://arxiv.org/abs/2109.01134"
)
PTNL_PAPER = Paper(
    "Wu et al., Why Is Prompt Tuning for Vision-Language Models Robust to Noisy Labels?, ICCV 2023",
    "https://arxiv.org/abs/2307.11978",
)

register(
    MethodSpec(
        name="coop",
        title="CoOp",
        paper=PAPER,
        learns="context vectors around the class name",
        config_class=ContextOptConfig,
        tuner_class=ContextOptModel,
        recipe=Recipe(
            learning_rate=0.002,
            batch_size=32,
            epochs=((1, 50), (4, 100), (16, 200)),
            source=DASSL
            + "KaiyangZhou/CoOp configs/trainers/CoOp/vit_b16.yaml, vit_b16_ep100.yaml, vit_b16_ep50.yaml",
        ),
        noisy_recipe=PTNL,
        variations=(Variation({"epochs": 50}, tasks=("imagenet",)),),
        checkpoints={"coop": read},
        demo=DEMO,
    )
)
register(
    MethodSpec(
        name="class-name",
        title="CLS-Tuning",
        paper=PTNL_PAPER,
        learns="the tokens of the class names",
        config_class=ContextOptConfig,
        marks={"tune": "class_name"},
        recipe=PTNL,
        new_classes=False,
    )
)
register(
    MethodSpec(
        name="full-prompt",
        title="Full-Prompt-Tuning",
        paper=PTNL_PAPER,
        learns="context vectors and the tokens of the class names",
        config_class=ContextOptConfig,
        marks={"tune": "full"},
        recipe=PTNL,
        new_classes=False,
    )
)
