"""Prompt-aligned gradients (ProGrad)."""

from ..base.recipe import Recipe
from ..base.registry import register
from ..base.shared_recipes import DASSL, DEMO
from ..base.spec import MethodSpec, Paper
from .checkpoint import read
from .config import ProGradConfig
from .method import ProGrad, ProGradModel


__all__ = ["ProGrad", "ProGradConfig", "ProGradModel"]


def text(template: str) -> dict:
    """Return what a task's template decides: the text that teacher and context start from, the kind of the classes in front.

    Source: BeierZhu/Prompt-align `trainers/prograd.py`: "a type of pet, a photo of a {}.".
    """
    photo, _, kind = template.removesuffix(".").partition("{}, ")
    own = {"{} texture.": "a texture of {}."}.get(template, f"{kind}, {photo}{{}}." if kind else template)
    words = own.removesuffix(" {}.")
    return {"template": own} | ({} if words == own else {"prompt_init_text": words})


register(
    MethodSpec(
        name="prograd",
        title="ProGrad",
        paper=Paper(
            "Zhu et al., Prompt-aligned Gradient for Prompt Tuning, ICCV 2023", "https://arxiv.org/abs/2205.14865"
        ),
        learns="a context whose gradient never goes against the frozen model",
        config_class=ProGradConfig,
        tuner_class=ProGradModel,
        text=text,
        recipe=Recipe(
            learning_rate=0.002,
            batch_size=32,
            epochs=((1, 50), (4, 100), (16, 200)),
            source=DASSL + "BeierZhu/Prompt-align configs/trainers/CoOp/rn50_ep50.yaml, rn50_ep100.yaml, rn50.yaml",
        ),
        checkpoints={"prograd": read},
        demo=DEMO,
    )
)
