"""Fine-tuning of the whole text encoder (TEnc-FT)."""

from ..base.registry import register
from ..base.shared_recipes import PTNL
from ..base.spec import MethodSpec
from ..coop import PTNL_PAPER
from .config import TextEncoderConfig
from .method import TextEncoderModel, TextEncoderTuning


__all__ = ["TextEncoderConfig", "TextEncoderModel", "TextEncoderTuning"]

register(
    MethodSpec(
        name="tenc-ft",
        title="TEnc-FT",
        paper=PTNL_PAPER,
        learns="the text encoder itself",
        config_class=TextEncoderConfig,
        tuner_class=TextEncoderModel,
        recipe=PTNL,
    )
)
