"""Few-shot adaptation in two stages (2SFS): norms of both encoders, then one vector per class."""

from dataclasses import replace

from ..base.registry import register
from ..base.spec import MethodSpec
from ..ln_tuning import TWO_STAGE, TWO_STAGE_PAPER
from .config import TwoStageConfig
from .method import TwoStage, TwoStageModel


__all__ = ["TwoStage", "TwoStageConfig", "TwoStageModel"]

register(
    MethodSpec(
        name="2sfs",
        title="2SFS",
        paper=TWO_STAGE_PAPER,
        learns="the LayerNorms of both encoders, then one vector per class",
        config_class=TwoStageConfig,
        tuner_class=TwoStageModel,
        recipe=replace(TWO_STAGE, first_stage=0.6),
        demo={"learning_rate": 2e-3, "batch_size": 32, "epochs": 15},
    )
)
