"""A cache of labelled images beside zero-shot: Tip-Adapter, and Tip-Adapter-F, whose cached features are trained."""

from ..base.recipe import Recipe, SupportViews
from ..base.registry import register
from ..base.spec import MethodSpec, Paper, Variation
from .config import TipAdapterConfig
from .method import TipAdapter, TipAdapterModel


__all__ = ["TipAdapter", "TipAdapterConfig", "TipAdapterModel"]

PAPER = Paper(
    "Zhang et al., Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification, ECCV 2022",
    "https://arxiv.org/abs/2207.09519",
)
#: The other data sets have the config's alpha.
ALPHAS = (
    Variation({"alpha": 2.0}, tasks=("dtd", "eurosat")),
    Variation({"alpha": 3.0}, tasks=("caltech101", "stanford_cars", "ucf101")),
    Variation({"alpha": 5.0}, tasks=("fgvc_aircraft",)),
    Variation({"alpha": 10.0}, tasks=("oxford_flowers",)),
)
VIEWS = SupportViews(views=10, crop_scale=(0.5, 1.0), source="gaopengcuhk/Tip-Adapter configs/, main.py")

register(
    MethodSpec(
        name="tip-adapter",
        title="Tip-Adapter",
        paper=PAPER,
        learns="a cache of labelled images, without training",
        config_class=TipAdapterConfig,
        tuner_class=TipAdapterModel,
        variations=ALPHAS,
        support=VIEWS,
        new_classes=False,
    )
)
register(
    MethodSpec(
        name="tip-adapter-f",
        title="Tip-Adapter-F",
        paper=PAPER,
        learns="the features by which labelled images are looked up",
        config_class=TipAdapterConfig,
        marks={"train_keys": True},
        variations=ALPHAS,
        support=VIEWS,
        recipe=Recipe(
            learning_rate=1e-3,
            batch_size=256,
            epochs=20,
            optimizer="adamw",
            eps=1e-4,
            weight_decay=0.01,
            schedule="cosine_per_step",
            warmup_epochs=0,
            crop_scale=(0.5, 1.0),
            source="gaopengcuhk/Tip-Adapter configs/, main.py; weight decay: torch's default",
        ),
        new_classes=False,
    )
)
