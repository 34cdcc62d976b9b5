"""Textual-based class-aware prompts (TCP)."""

from ..base.recipe import Recipe
from ..base.registry import register
from ..base.shared_recipes import DEMO
from ..base.spec import MethodSpec, Paper
from .checkpoint import read
from .config import TCPConfig
from .method import TCP, TCPModel


__all__ = ["TCP", "TCPConfig", "TCPModel"]


def text(template: str) -> dict:
    """Return what a task's template decides: behind the context stands the template without the words of the context."""
    behind = template.removeprefix("a photo of a ")
    return {
        "template": template,
        "prompt_template": behind if behind != template else template[template.index("{}") :],
    }


register(
    MethodSpec(
        name="tcp",
        title="TCP",
        paper=Paper(
            "Yao et al., TCP: Textual-based Class-aware Prompt tuning for Visual-Language Model, CVPR 2024",
            "https://arxiv.org/abs/2311.18231",
        ),
        learns="a context, and tokens made of each class's frozen feature",
        config_class=TCPConfig,
        tuner_class=TCPModel,
        text=text,
        defaults=lambda depth: {"class_token_layer": min(8, depth.text - 1)},
        recipe=Recipe(
            learning_rate=0.002,
            batch_size=32,
            epochs=50,
            optimizer="adam",
            source="htyao89/Textual-based_Class-aware_prompt_tuning configs/trainers/TCP/vit_b16_ep100_ctxv1.yaml; weight "
            "decay 5e-4 inherited from Dassl",
        ),
        checkpoints={"tcp": read},
        demo=DEMO | {"learning_rate": 0.002},
    )
)
