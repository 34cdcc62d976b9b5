"""Side tuning."""

from ..base.registry import register
from ..base.shared_recipes import CLASSIFIER
from ..base.spec import MethodSpec, Paper
from .config import SideTuningConfig
from .method import SideTuningModel


__all__ = ["SideTuningConfig", "SideTuningModel"]

register(
    MethodSpec(
        name="sidetune",
        title="Sidetune",
        paper=Paper(
            "Zhang et al., Side-Tuning, ECCV 2020; a baseline of Jia et al., Visual Prompt Tuning, ECCV 2022",
            "https://arxiv.org/abs/1912.13503",
        ),
        learns="a small network beside the encoder and the head",
        config_class=SideTuningConfig,
        tuner_class=SideTuningModel,
        classifier_recipe=CLASSIFIER,
        new_classes=False,
        is_baseline=True,
    )
)
