"""The former name of `hf_patches`."""

from .hf_patches import (  # noqa: F401  # TODO(lead): remove
    MEAN_LOSS,
    ask_for_feature,
    declare_mean_loss,
    restore_class,
    take_labels,
)
