"""A linear head on CLIP's image features: Classifier-R (random) and Classifier-C (started from the class names)."""

from ..base.registry import register
from ..base.shared_recipes import PTNL
from ..base.spec import MethodSpec
from ..coop import PTNL_PAPER
from .config import ClassHeadConfig
from .method import ClassHead, ClassHeadModel


__all__ = ["ClassHead", "ClassHeadConfig", "ClassHeadModel"]

register(
    MethodSpec(
        name="classifier-r",
        title="Classifier-R",
        paper=PTNL_PAPER,
        learns="one vector per class in the joint space",
        config_class=ClassHeadConfig,
        tuner_class=ClassHeadModel,
        recipe=PTNL,
        new_classes=False,
    )
)
register(
    MethodSpec(
        name="classifier-c",
        title="Classifier-C",
        paper=PTNL_PAPER,
        learns="one vector per class, started from the text features",
        config_class=ClassHeadConfig,
        marks={"head_init": "text"},
        recipe=PTNL,
        new_classes=False,
    )
)
