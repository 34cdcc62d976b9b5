"""Tip-Adapter and Tip-Adapter-F.

Paper: Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022, section 3.
Authors' code: gaopengcuhk/Tip-Adapter `main.py`, `utils.py`, commit d0e2d6f.

As in that code, keys are normalised once, after the mean over views, and not again while they are trained; the search
never tries its bounds themselves, and the first of the best wins.

Deviations: alpha and beta are searched on validation images only (the authors' ImageNet script uses the test images), and
only when asked for; the weights after the last epoch are kept (the authors choose the epoch by the test accuracy).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from ...backbones.text import TextView
from ...prompts.base import placed_like
from ...readouts import CacheReadout
from ..base.method import OTHER_CLASSES, PromptMethod, SupportSet, refuse_other_classes
from ..base.tuner import PromptTuner
from .config import TipAdapterConfig


class TipAdapter(PromptMethod):
    """Zero-shot logits and a cache."""

    def readout(self, config: TipAdapterConfig, view: TextView, feature_dim: int) -> CacheReadout:
        """Return the cache, empty or with random keys."""
        size = (config.num_support_images or 0, len(config.own_classes), feature_dim)
        return CacheReadout(*size, config.train_keys, **placed_like(view))

    def uses_support(self, config: TipAdapterConfig) -> bool:
        """Return True: for the cache."""
        return True

    def take_support(self, config: TipAdapterConfig, readout: CacheReadout, support: SupportSet) -> None:
        """Fill the cache: a key is the mean over views of an image's features, normalised once."""
        readout.fill(F.normalize(support.features.mean(0), dim=-1), support.labels)
        config.num_support_images = len(support.labels)

    def added_logits(self, config: TipAdapterConfig, readout: CacheReadout, image: Tensor) -> Tensor:
        """Return alpha times what the cache says.

        Raises:
            ValueError: the cache is empty.
        """
        require_images(config)
        return config.alpha * readout.cached(image, config.beta)

    def check_new_classes(self, config: TipAdapterConfig, names: Sequence[str]) -> None:
        """Refuse other classes than those of the cached images.

        Raises:
            ClassNamesError: names the adapter's own classes and the remedy.
        """
        refuse_other_classes(config, names, "cached images", OTHER_CLASSES)


def require_images(config: TipAdapterConfig) -> None:
    """Refuse an empty cache.

    Raises:
        ValueError: says how it is filled.
    """
    if config.num_support_images is None:
        raise ValueError(
            "Expected support images in the cache of this Tip-Adapter. Received none (num_support_images=None). Call "
            "model.set_support(...) with labelled images first, or disable the adapter for zero-shot."
        )


class TipAdapterModel(PromptTuner):
    """Tip-Adapter's tuner."""

    peft_name = "tip_adapter"
    prefix = "image_cache_"
    method = TipAdapter()
