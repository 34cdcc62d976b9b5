"""The patches of what transformers has beside its models, and PEFT for it, made when somebody imports it."""

from __future__ import annotations

from ..tuners.base.peft_patches import keep_wrapped_names
from ..utils.late_imports import when_imported
from .pipelines import patch_classification, patch_loading, patch_zero_shot, tell_tasks
from .trainer_patches import patch_trainer


when_imported("peft.utils.transformers_weight_conversion", keep_wrapped_names)
when_imported("transformers.trainer", patch_trainer)
when_imported("transformers.pipelines.base", tell_tasks)
when_imported("transformers.pipelines", patch_loading)
when_imported("transformers.pipelines.image_classification", patch_classification)
when_imported("transformers.pipelines.zero_shot_image_classification", patch_zero_shot)
