"""Pfeiffer adapters."""

from ..base.registry import register
from ..base.shared_recipes import CLASSIFIER
from ..base.spec import MethodSpec, Paper
from .config import BottleneckAdapterConfig
from .method import BottleneckAdapterModel


__all__ = ["BottleneckAdapterConfig", "BottleneckAdapterModel"]

register(
    MethodSpec(
        name="adapter",
        title="Adapter",
        paper=Paper(
            "Pfeiffer et al., AdapterFusion, EACL 2021; a baseline of Jia et al., Visual Prompt Tuning, ECCV 2022",
            "https://arxiv.org/abs/2005.00247",
        ),
        learns="a bottleneck after every feed-forward part and the head",
        config_class=BottleneckAdapterConfig,
        tuner_class=BottleneckAdapterModel,
        classifier_recipe=CLASSIFIER,
        new_classes=False,
        is_baseline=True,
    )
)
