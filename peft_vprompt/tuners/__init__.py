"""One folder per method, and `base` with all that touches PEFT. Importing this fills the method table, in this order."""

from .base.peft_patches import name_damaged_configs  # isort: skip

from . import (  # isort: skip
    zero_shot,
    vpt,
    coop,
    maple,
    ivlp,
    cocoop,
    kgcoop,
    prograd,
    promptsrc,
    mmrl,
    tcp,
    promptkd,
    rpo,
    mrpo,
    class_head,
    text_encoder,
    fine_tuning,
    mlp_head,
    bias_tuning,
    bottleneck_adapter,
    side_tuning,
    lora,
)


name_damaged_configs()

__all__ = [
    "bias_tuning",
    "bottleneck_adapter",
    "class_head",
    "cocoop",
    "coop",
    "fine_tuning",
    "ivlp",
    "kgcoop",
    "lora",
    "maple",
    "mlp_head",
    "mmrl",
    "mrpo",
    "prograd",
    "promptkd",
    "promptsrc",
    "rpo",
    "side_tuning",
    "tcp",
    "text_encoder",
    "vpt",
    "zero_shot",
]
