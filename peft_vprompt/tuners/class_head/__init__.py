"""What prompt tuning is compared with in PTNL: a linear head on image features, and the whole text encoder."""

from ..base.registry import Method, register
from .config import ClassHeadConfig, TextEncoderConfig
from .method import ClassHeadModel, TextEncoderModel


__all__ = ["ClassHeadConfig", "ClassHeadModel", "TextEncoderConfig", "TextEncoderModel"]

PAPER = "Wu et al., Why Is Prompt Tuning for Vision-Language Models Robust to Noisy Labels?, ICCV 2023"

register(
    Method(
        name="class_head",
        title="Classifier-R, -C",
        paper=PAPER,
        learns="one vector per class in the joint space",
        config_class=ClassHeadConfig,
        model_class=ClassHeadModel,
    )
)
register(
    Method(
        name="text_encoder",
        title="TEnc-FT",
        paper=PAPER,
        learns="the text encoder itself",
        config_class=TextEncoderConfig,
        model_class=TextEncoderModel,
    )
)
