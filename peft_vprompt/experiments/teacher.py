"""The teacher of a run: a trained adapter, or a base model as it is, whose predictions a student learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor

from ..data import TrainTransform, image_size
from ..training.distillation import DistillationRows, teacher_features, teacher_fingerprint, teacher_logits
from ..training.evaluation import evaluate
from ..tuners.base.recipe import Recipe
from ..tuners.base.registry import get_method
from ..tuners.promptkd import PromptKDConfig
from ..utils.digests import digest_json
from .models import ModelBundle, adapter_config, as_published, build_model, published_fields
from .settings import Settings
from .trained import SavedAdapter


@dataclass
class Teacher:
    """A model whose predictions are distilled.

    Attributes:
        bundle: model and image processor.
        features: its class features [c, e].
    """

    bundle: ModelBundle
    features: Tensor

    @property
    def model(self) -> PeftModel:
        """The model; a base model as it is has its adapter switched off."""
        return self.bundle.model

    @property
    def content(self) -> dict[str, str | None]:
        """What it and its preprocessing are, as a digest."""
        answers = teacher_fingerprint(self.model, self.features)
        processor: Any = self.bundle.image_processor
        return {"teacher": digest_json([answers, processor.to_dict()], 32)}

    def rows(
        self,
        images: Dataset,
        student_processor,
        recipe: Recipe,
        temperature: float,
        *,
        views: int,
        seed: int,
        progress: str | None,
    ) -> DistillationRows:
        """Return images to distil on, with the teacher's answers, which are computed once and kept on the disk.

        Raises:
            ValueError: crops that are no others' in another size.
        """
        crop = (recipe.crop, recipe.crop_scale)
        own = self.bundle.image_processor
        if recipe.crop == "random_crop" and image_size(own) != image_size(student_processor):
            raise ValueError(
                f"Expected a teacher with images of the student's size for crops of a fixed size. Received: {image_size(own)} "
                f"and {image_size(student_processor)} pixels. Use the random resized crop, or --image-size."
            )
        transform = TrainTransform(own, *crop)
        names = self.model.class_names or []
        logits = teacher_logits(self.model, images, transform, names, views=views, seed=seed, progress=progress)
        return DistillationRows(images, TrainTransform(student_processor, *crop), logits, temperature, seed)

    def accuracy(self, test_sets: dict, **options) -> dict[str, float]:
        """Return its accuracies in percent on test sets with images as it takes them; `options` are those of `evaluate`."""
        return evaluate(self.model, test_sets, **options)


def check_teacher(settings: Settings) -> None:
    """Refuse a teacher where nothing is distilled, and what has no meaning where something is.

    Raises:
        ValueError: names the settings that contradict each other.
    """
    distils = get_method(settings.method).config_class is PromptKDConfig
    if distils != (settings.teacher is not None):
        raise ValueError(
            "Expected a teacher (--teacher) with method promptkd, and with no other. Received: "
            f"method {settings.method}, teacher={settings.teacher!r}."
        )
    if settings.teacher_model is not None and settings.teacher is None:
        raise ValueError(f"A base model of the teacher needs a teacher. Received: {settings.teacher_model!r} alone.")
    if not distils:
        return
    labels = {
        "shots": settings.shots is not None,
        "a loss": settings.loss is not None,
        "noise": settings.supervision.noise is not None,
        "pseudo-labels": not settings.supervision.uses_labels,
        "cached features": settings.cache_features,
    }
    if given := [what for what, wanted in labels.items() if wanted]:
        raise ValueError(
            "Distillation takes all training images and reads no label (shots=None, --shots 0). Received: "
            f"{', '.join(given)}. Leave them out."
        )


def load_teacher(
    name: str,
    model_name_or_path: str | None,
    class_names: Sequence[str],
    device: str | torch.device | None,
    benchmark: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Teacher:
    """Load a teacher and let it read the class names.

    Args:
        name: folder or Hub id of an adapter, or of a base model that is taken as it is.
        model_name_or_path: base model of the adapter; None for the one that it names.
        class_names: names of the classes.
        device: where to compute.
        benchmark: the task whose template and preprocessing a base model has; an adapter has those of its training.
        config: fields of the student's config, of which a base model has the text around class names.

    Raises:
        OSError: there is no such adapter or model.
        UnsupportedModelError, ClassNamesError: as `teacher_features`.
    """
    if _is_adapter(name):
        bundle = SavedAdapter.find(name).load_as_trained(model_name_or_path, device=device)
    else:
        text = {each: value for each, value in (config or {}).items() if each in ("template", "class_descriptions")}
        text = published_fields(benchmark, "zero-shot") | text
        bundle = as_published(build_model(name, "zero-shot", class_names, device=device, **text), benchmark)
        bundle.model.disable_adapter_layers()
    bundle = replace(bundle, model=bundle.model.eval())
    return Teacher(bundle, teacher_features(bundle.model, class_names))


def _is_adapter(name: str) -> bool:
    """Tell whether a folder or Hub id is an adapter's, not a base model's."""
    try:
        adapter_config(name)
    except OSError:
        return False
    return True
