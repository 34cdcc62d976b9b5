"""A perceptron in the place of the head."""

from ..base.registry import register
from ..base.shared_recipes import CLASSIFIER
from ..base.spec import MethodSpec, Paper
from .config import MLPHeadConfig
from .method import MLPHeadModel


__all__ = ["MLPHeadConfig", "MLPHeadModel"]

register(
    MethodSpec(
        name="mlp-3",
        title="Mlp-3",
        paper=Paper(
            "Mlp-k: a baseline of Jia et al., Visual Prompt Tuning, ECCV 2022", "https://arxiv.org/abs/2203.12119"
        ),
        learns="a perceptron in the place of the head",
        config_class=MLPHeadConfig,
        tuner_class=MLPHeadModel,
        defaults=lambda depth: {"num_layers": 3},
        classifier_recipe=CLASSIFIER,
        new_classes=False,
        is_baseline=True,
        numbered="num_layers",
    )
)
