"""One folder per method, and `base` with all that touches PEFT. Importing this fills the method table, in this order."""

# ruff: noqa: F401

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
