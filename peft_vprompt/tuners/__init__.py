"""One folder per method, and `base` with all that touches PEFT. Importing this fills the method table, in this order."""

from .base.peft_patches import keep_adapters_apart, name_damaged_configs  # isort: skip

from . import (  # isort: skip
    vpt,
    coop,
    zero_shot,  # the first in the table, with a config of coop's
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
    tip_adapter,
    clap,
    text_encoder,
    ln_tuning,
    two_stage,
    clip_lora,
    fine_tuning,
    mlp_head,
    bias_tuning,
    bottleneck_adapter,
    side_tuning,
    lora,
)


name_damaged_configs()
keep_adapters_apart()

__all__ = [
    "bias_tuning",
    "bottleneck_adapter",
    "clap",
    "class_head",
    "clip_lora",
    "cocoop",
    "coop",
    "fine_tuning",
    "ivlp",
    "kgcoop",
    "ln_tuning",
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
    "tip_adapter",
    "two_stage",
    "vpt",
    "zero_shot",
]
