"""Fine-tuning of whole modules: all of them, the last layers, or the head alone."""

from ..base.registry import register
from ..base.shared_recipes import CLASSIFIER
from ..base.spec import MethodSpec, Paper
from .config import FineTuningConfig
from .method import FineTuningModel


__all__ = ["FineTuningConfig", "FineTuningModel"]

register(
    MethodSpec(
        name="full",
        title="Full",
        paper=Paper(
            "Full fine-tuning: a baseline of Jia et al., Visual Prompt Tuning, ECCV 2022",
            "https://arxiv.org/abs/2203.12119",
        ),
        learns="all weights",
        config_class=FineTuningConfig,
        tuner_class=FineTuningModel,
        classifier_recipe=CLASSIFIER,
        new_classes=False,
        is_baseline=True,
    )
)
register(
    MethodSpec(
        name="linear",
        title="Linear",
        paper=Paper(
            "Linear probing: a baseline of Jia et al., Visual Prompt Tuning, ECCV 2022",
            "https://arxiv.org/abs/2203.12119",
        ),
        learns="the head alone",
        config_class=FineTuningConfig,
        marks={"num_layers": 0},
        classifier_recipe=CLASSIFIER,
        new_classes=False,
        is_baseline=True,
    )
)
register(
    MethodSpec(
        name="partial-1",
        title="Partial-1",
        paper=Paper(
            "Partial-k: a baseline of Jia et al., Visual Prompt Tuning, ECCV 2022", "https://arxiv.org/abs/2203.12119"
        ),
        learns="the last layers, the final norm and the head",
        config_class=FineTuningConfig,
        defaults=lambda depth: {"num_layers": 1},
        classifier_recipe=CLASSIFIER,
        new_classes=False,
        is_baseline=True,
        numbered="num_layers",
    )
)
