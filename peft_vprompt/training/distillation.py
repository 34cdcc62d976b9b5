"""Distillation of a teacher's predictions on unlabelled images (PromptKD): class features, cached predictions, rows.

Source: Li et al., "PromptKD: Unsupervised Prompt Distillation for Vision-Language Models", CVPR 2024; zhengli97/PromptKD.
The teacher sees the same crops as the student. It answers once for each of a number of fixed augmentations of every image.

Shapes: n = images, k = augmentations of each, c = classes, e = size of the teacher's joint space.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..data.augmentation import AugmentedRows, RandomRows
from ..data.image_digests import image_fingerprint
from ..data.transforms import Transform
from ..errors import UnsupportedModelError
from ..readouts import GivenClasses
from ..utils.arguments import typed
from ..utils.digests import ADAPTER_PROVENANCE, MODEL_PROVENANCE, digest_json, digest_tensors, without
from ..utils.io import atomic_path, set_aside
from ..utils.progress import with_progress
from ..utils.validation import require_int, require_seed
from .cached_features import MAX_VIEWS, default_cache_dir
from .evaluation import batches, compares_with_text, logits_of


#: Entry of the metadata of a file of logits: their digest.
_DIGEST = "digest"


@typed
def teacher_features(teacher: PeftModel, class_names: Sequence[str]) -> Tensor:
    """Return a teacher's class features [c, e], L2-normalised, without gradients; its classes are these afterwards.

    Args:
        teacher: a PEFT model of this package; with its adapter disabled, the plain zero-shot model.
        class_names: names of the classes.

    Raises:
        UnsupportedModelError: a teacher whose classes have not one feature each, whatever the image is.
        ClassNamesError: its prompts do not move to these classes.
    """
    if not compares_with_text(teacher):
        raise UnsupportedModelError(
            "Expected a teacher that compares images with class names. Received one with a classification head. Use a CLIP, "
            "as it is or with an adapter."
        )
    if teacher.class_names != list(class_names):
        teacher.set_class_names(list(class_names))
    if teacher.class_name_classifier.texts.conditional:
        raise UnsupportedModelError(
            "Expected a teacher whose class features do not depend on the image. Received CoCoOp. Use another teacher."
        )
    with torch.no_grad():
        features = teacher.eval().encode_classes()
    if features.ndim != 2:
        raise UnsupportedModelError(
            f"Expected a teacher with one feature for each class. Received {features.shape[1]} for each, those of read-only "
            "prompts. Use another teacher."
        )
    return features


@typed
def take_teacher(model: PeftModel, teacher: PeftModel) -> None:
    """Give a PromptKD adapter the class features of its teacher, for its own classes.

    Args:
        model: a PEFT model whose active adapter is PromptKD's.
        teacher: as for `teacher_features`.

    Raises:
        UnsupportedModelError: the active adapter has no place for a teacher's features, or the teacher has others.
        ValueError: features of another size than `teacher_dim`.
    """
    adapted = model.class_name_classifier.adapted
    readout = adapted.readout
    if not isinstance(readout, GivenClasses):
        raise UnsupportedModelError(
            "Expected a PromptKD adapter, which takes a teacher's class features. Received "
            f"{getattr(adapted.config.peft_type, 'value', 'another')}. Use PromptKDConfig."
        )
    features = teacher_features(teacher, adapted.config.own_classes)
    if features.shape != readout.class_features.shape:
        raise ValueError(
            f"Expected a teacher with features of size teacher_dim={readout.class_features.shape[1]}. Received: "
            f"{features.shape[1]}. Make the adapter with teacher_dim={features.shape[1]}."
        )
    with torch.no_grad():
        readout.class_features.copy_(features)


class DistillationRows(RandomRows):
    """Images to distil on: `pixel_values`, and the teacher's probabilities [c] as `labels`.

    Of the k augmentations of every image an epoch shows one: the first epoch the first, and so on, over and over.

    Args:
        images: data set with a column `image`; labels are not read.
        transform: the student's `TrainTransform` or `EvalTransform`.
        logits: the teacher's [k, n, c], from `teacher_logits` with the same images, seed and augmentation.
        temperature: what the logits are divided by, the config's.
        seed: seed of the augmentations, that of `logits`.

    Raises:
        ValueError: logits of another number of images.
    """

    @typed
    def __init__(
        self,
        images: Dataset,
        transform: Transform,
        logits: Tensor,
        temperature: float = 1.0,
        seed: int = 0,
    ):
        super().__init__(seed)
        if logits.ndim != 3 or logits.shape[1] != len(images):
            raise ValueError(
                f"Expected the teacher's logits [augmentations, {len(images)}, classes]. Received: {list(logits.shape)}."
            )
        self.probabilities = (logits.float() / temperature).softmax(-1)
        self.rows = AugmentedRows(images.select_columns("image"), transform, seed)

    def __len__(self) -> int:
        return len(self.rows)

    def with_seed(self, seed: int) -> DistillationRows:
        """Return these very rows: the augmentations are those that the teacher saw."""
        return self

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        view = self.epoch % len(self.probabilities)
        self.rows.set_epoch(view)
        rows = self.rows.__getitems__(indices)
        answers = self.probabilities[view, list(indices)]
        return [{**row, "labels": answer} for row, answer in zip(rows, answers, strict=True)]


@typed
def teacher_logits(
    teacher: PeftModel,
    images: Dataset,
    transform: Transform,
    class_names: Sequence[str],
    *,
    views: int = 1,
    seed: int = 0,
    batch_size: int = 100,
    cache_dir: str | Path | None = None,
    progress: str | None = None,
) -> Tensor:
    """Return a teacher's logits [k, n, c] of fixed augmentations of images, from a file if they were computed before.

    Args:
        teacher: as for `teacher_features`.
        images: data set with a column `image`.
        transform: the teacher's transform; where it is random, with the crop of the student's.
        class_names: names of the classes.
        views: k; one where the transform is not random.
        seed: seed of the augmentations.
        batch_size: images per pass.
        cache_dir: folder of the cache files, one for each teacher, images, classes, transform, views and seed, all known
            by their content; default: that of `cache_features`. A damaged file is moved aside with a warning.
        progress: label of a progress bar; None for no bar.

    Raises:
        UnsupportedModelError, ClassNamesError: as `teacher_features`.
        ValueError: a number out of range, or several views without a random transform.
    """
    require_int("views", views, 1, MAX_VIEWS)
    require_int("batch_size", batch_size, 1)
    require_seed(seed)
    if views > 1 and not transform.random:
        raise ValueError(f"Expected views=1 without a random augmentation. Received: views={views}.")
    own = teacher_fingerprint(teacher, teacher_features(teacher, class_names))
    seen = [image_fingerprint(images), transform.settings(), views, seed if transform.random else None]
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
    path = folder / f"teacher-{digest_json([own, *seen], 32)}.safetensors"
    if (kept := _read(path)) is not None:
        return kept
    rows = AugmentedRows(images.select_columns("image"), transform, seed)
    answers = []
    for view in range(views):
        rows.set_epoch(view)
        # pyrefly: ignore[bad-argument-type]  # a loader of batches takes whatever has __len__ and __getitem__
        answers.append(logits_of(teacher, with_progress(batches(rows, batch_size), progress)))
    logits = torch.stack(answers)
    with atomic_path(path) as partial:
        save_file({"logits": logits}, partial, metadata={_DIGEST: digest_tensors({"logits": logits})})
    return logits


def teacher_fingerprint(teacher, features: Tensor) -> str:
    """Return a digest of all that decides a teacher's logits, for its class features [c, e].

    Weights, configs of model and adapter, and the features, which also tell the tokenizer and the names.
    """
    base = teacher.get_base_model().config.to_dict()
    config = vars(teacher.active_peft_config)
    facts = [
        digest_tensors({"class features": features, **teacher.state_dict()}),
        without(base, MODEL_PROVENANCE),
        {name: _plain(value) for name, value in without(config, ADAPTER_PROVENANCE).items()},
        teacher.class_name_classifier.adapted.disabled,
    ]
    return digest_json(facts, 32)


def _plain(value) -> str:
    """Return the value of a field as text, the same in every process."""
    return repr(sorted(map(str, value)) if isinstance(value, (set, frozenset)) else value)


def _read(path: Path) -> Tensor | None:
    """Return the logits of a file; None where there is none, or a damaged one, which is moved aside."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            logits = file.get_tensor("logits")
            if (file.metadata() or {}).get(_DIGEST) == digest_tensors({"logits": logits}):
                return logits
    except (OSError, SafetensorError):
        pass
    set_aside(path, "teacher's answers")
    return None
