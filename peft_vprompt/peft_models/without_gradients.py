"""`LearnsWithoutGradients`: what an adapter learns from features of labelled images, and weights next to the frozen model's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from ..tuners.base.classifier import ClassNameClassifier
from ..tuners.tip_adapter.search import Found
from .interpolation import interpolate
from .safe_saving import SavedPeftModel
from .support import search_cache, set_support, uses_support


class LearnsWithoutGradients(SavedPeftModel):
    """A base model whose adapters are changed without training."""

    class_name_classifier: ClassNameClassifier

    def _changing(self) -> AbstractContextManager:
        """Keep calls by other threads out of a block that changes which adapter answers."""
        return self.class_name_classifier.adapted.lock.change()

    @property
    def uses_support(self) -> bool:
        """Whether `set_support` has something to do for the active adapter."""
        return uses_support(self.class_name_classifier)

    def set_support(
        self,
        images: Tensor | Iterable[Mapping[str, Any]],
        labels: Tensor | Sequence[int] | None = None,
        views: int = 1,
    ) -> None:
        """Let the active adapter learn from the features of labelled images what it does not learn by gradients.

        Tip-Adapter fills its cache, which is saved with the adapter; CLAP finds out how strongly each class is held.
        Images are encoded in evaluation mode, without autocast. Several processes each have to give all images.

        Args:
            images: batches in the same order in each pass, such as a `DataLoader` without shuffling gives, with `labels`
                and `pixel_values` or `image_features`; or features [images, dim] or [views, images, dim].
            labels: class numbers [images], beside features.
            views: passes over the batches, where each gives other crops of the images.

        Raises:
            ValueError: a method without a support set, no image, labels that are no classes; nothing is changed.
            UnsupportedModelError: the image features depend on what is trained.

        Example:

        ```python
        model = get_peft_model(clip, TipAdapterConfig(class_names=["cat", "dog"]))
        model.set_support(DataLoader(images.with_transform(TrainTransform(processor)), batch_size=64), views=10)
        ```
        """
        with self._changing():
            set_support(self.class_name_classifier, images, labels, views)

    def search_cache(
        self,
        images: Tensor | Iterable[Mapping[str, Any]],
        labels: Tensor | Sequence[int] | None = None,
        scale: Sequence[float] = (7, 3),
        step: Sequence[int] = (200, 20),
    ) -> Found:
        """Set the active Tip-Adapter's alpha and beta to the best of a grid on validation images.

        Args:
            images: validation images, as for `set_support`: neither those in the cache nor those to test on.
            labels: class numbers [images], beside features.
            scale: bounds of beta and of alpha; the authors have others for each data set.
            step: how many values of beta and of alpha are tried.

        Returns:
            What is set, and the accuracy in percent on these images.

        Raises:
            ValueError: another method, or an empty cache.
        """
        with self._changing():
            return search_cache(self.class_name_classifier, images, labels, scale, step)

    def interpolate(self, share: float, adapter_name: str | None = None) -> None:
        """Move the active adapter's weights towards the frozen model's: share * learned + (1 - share) * frozen.

        This is WiSE-FT (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022). It works for what has weights
        there: class heads (whose frozen counterpart are the text features), CLAP's prototypes, fine-tuned text encoders, and
        PEFT's LoRA and LayerNorm tuning on class names.

        Args:
            share: 1 leaves the adapter as it was trained, 0 gives the frozen model.
            adapter_name: name of a new adapter for the result; default: the active one is changed in place.

        Raises:
            ValueError: a share out of 0 to 1, an adapter of that name, or one without a counterpart in the frozen model, such
                as prompts, or that is merged; nothing is changed.
        """
        with self._changing():
            interpolate(self, self.class_name_classifier, share, adapter_name)
