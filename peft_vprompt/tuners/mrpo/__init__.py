"""Multi-modal read-only prompts (MRPO)."""

from ..base.recipe import Recipe
from ..base.registry import register
from ..base.shared_recipes import DASSL
from ..base.spec import MethodSpec, Paper
from .config import MRPOConfig
from .method import MRPO, MRPOModel


__all__ = ["MRPO", "MRPOConfig", "MRPOModel"]

register(
    MethodSpec(
        name="mrpo",
        title="MRPO",
        paper=Paper("Seo and Lee, Multi-modal Read-only Prompt Optimization, Kookmin University"),
        learns="deep read-only text prompts and their map to visual ones",
        config_class=MRPOConfig,
        tuner_class=MRPOModel,
        defaults=lambda depth: {"prompt_depth": min(9, depth.both)},
        # The paper states no recipe of its own.
        recipe=Recipe(learning_rate=0.01, batch_size=4, epochs=15, source=DASSL + "RPO's, on which MRPO builds"),
        # As published only the prompts of the last prompted layer learn, which leaves them two layers or fewer to read
        # on the tiny model; so each layer's are added up, and every depth learns.
        demo={
            "learning_rate": 0.1,
            "batch_size": 32,
            "epochs": 15,
            "config": {"prompt_depth": 2, "prompt_update": "accumulate"},
        },
    )
)
