"""Tuning of the norms in the layers of both towers, on class names."""

from ..base.recipe import Recipe
from ..base.registry import register
from ..base.spec import MethodSpec, Paper
from .config import NormTuningConfig
from .method import NormTuning, NormTuningModel


__all__ = ["NormTuning", "NormTuningConfig", "NormTuningModel"]

#: Farina et al.'s paper, whose method in two stages begins with this one.
TWO_STAGE_PAPER = Paper(
    "Farina et al., Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages, CVPR 2025",
    "https://arxiv.org/abs/2503.11609",
)

#: Their training.
TWO_STAGE = Recipe(
    learning_rate=2e-4,
    batch_size=32,
    epochs=None,
    steps_per_shot=300,
    optimizer="adamw",
    weight_decay=1e-2,
    schedule="cosine_per_step",
    min_learning_rate=1e-6,
    warmup_epochs=0,
    source="FarinaMatteo/rethinking_fewshot_vlms, commit 64ac143",
)

register(
    MethodSpec(
        name="ln-tuning",
        title="LN tuning",
        paper=TWO_STAGE_PAPER,
        learns="the LayerNorms inside the layers of both encoders",
        config_class=NormTuningConfig,
        tuner_class=NormTuningModel,
        recipe=TWO_STAGE,
    )
)
