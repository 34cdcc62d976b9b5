"""Bias tuning (BitFit)."""

from ..base.registry import register
from ..base.shared_recipes import CLASSIFIER
from ..base.spec import MethodSpec, Paper
from .config import BiasTuningConfig
from .method import BiasTuningModel


__all__ = ["BiasTuningConfig", "BiasTuningModel"]

register(
    MethodSpec(
        name="bias",
        title="Bias",
        paper=Paper(
            "Ben Zaken et al., BitFit, ACL 2022; a baseline of Jia et al., Visual Prompt Tuning, ECCV 2022",
            "https://arxiv.org/abs/2106.10199",
        ),
        learns="every bias and the head",
        config_class=BiasTuningConfig,
        tuner_class=BiasTuningModel,
        classifier_recipe=CLASSIFIER,
        new_classes=False,
        is_baseline=True,
    )
)
