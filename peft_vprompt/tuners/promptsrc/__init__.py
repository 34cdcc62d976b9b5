"""Self-regulating prompts (PromptSRC)."""

from ..base.recipe import Averaging, Recipe
from ..base.registry import register
from ..base.shared_recipes import DASSL, DEMO, TRANSFERS
from ..base.spec import MethodSpec, Paper, Variation
from .checkpoint import read
from .config import PromptSRCConfig
from .method import PromptSRC, PromptSRCModel
from .templates import TEMPLATES


__all__ = ["TEMPLATES", "PromptSRC", "PromptSRCConfig", "PromptSRCModel"]

register(
    MethodSpec(
        name="promptsrc",
        title="PromptSRC",
        paper=Paper(
            "Khattak et al., Self-regulating Prompts: Foundational Model Adaptation without Forgetting, ICCV 2023",
            "https://arxiv.org/abs/2307.06948",
        ),
        learns="deep prompts in both encoders that stay near the frozen model",
        config_class=PromptSRCConfig,
        tuner_class=PromptSRCModel,
        defaults=lambda depth: {"prompt_depth": min(9, depth.both), "frozen_template": list(TEMPLATES)},
        recipe=Recipe(
            learning_rate=0.0025,
            batch_size=4,
            epochs=20,
            averaging=Averaging("gaussian", mean=15, std=1),
            source=DASSL + "muzairkhattak/PromptSRC configs/trainers/PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx.yaml",
        ),
        variations=(
            Variation({"epochs": 50, "averaging": Averaging("gaussian", mean=30, std=30)}, protocols=("few-shot",)),
            Variation(
                {"averaging": Averaging("gaussian", mean=45, std=5)},
                tasks=("stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat"),
                protocols=("few-shot",),
            ),
            Variation({"averaging": Averaging("gaussian", mean=6, std=10), "prompt_depth": 3}, protocols=TRANSFERS),
        ),
        checkpoints={"promptsrc": read},
        demo=DEMO,
    )
)
