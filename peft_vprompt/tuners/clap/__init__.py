"""Linear probes that start from zero-shot: CLAP, which holds each class near its start, and ZS-LP, which does not."""

from ...core.prompt_templates import ENSEMBLES, SINGLE
from ..base.recipe import Recipe, SupportViews
from ..base.registry import register
from ..base.spec import MethodSpec, Paper, Variation
from .checkpoint import read
from .config import CLAPConfig
from .method import CLAP, CLAPModel


__all__ = ["CLAP", "CLAPConfig", "CLAPModel"]

PAPER = Paper(
    "Silva-Rodriguez et al., A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models, CVPR 2024",
    "https://arxiv.org/abs/2312.12730",
)
SOURCE = "jusiro/CLAP configs/trainers/SGD_lr1e-1_B256_ep300.yaml, trainers/adapters.py"
#: CLIP's seven selected templates, and the plainest one behind them.
IMAGENET = (Variation({"template": [*ENSEMBLES["ensemble-7"], SINGLE]}, tasks=("imagenet",)),)
VIEWS = SupportViews(views=20, trained_on=True, source=SOURCE)
RECIPE = Recipe(learning_rate=0.1, batch_size=256, epochs=300, weight_decay=0.0, source=SOURCE)

register(
    MethodSpec(
        name="clap",
        title="CLAP",
        paper=PAPER,
        learns="one prototype per class, held near the text feature",
        config_class=CLAPConfig,
        tuner_class=CLAPModel,
        variations=IMAGENET,
        support=VIEWS,
        recipe=RECIPE,
        checkpoints={"clap": read},
        new_classes=False,
    )
)
register(
    MethodSpec(
        name="zs-lp",
        title="ZS-LP",
        paper=PAPER,
        learns="one prototype per class, started from the text feature",
        config_class=CLAPConfig,
        marks={"constraint": "none"},
        variations=IMAGENET,
        support=VIEWS,
        recipe=RECIPE,
        new_classes=False,
    )
)
