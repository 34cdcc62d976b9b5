"""What one or several CLIPs say of images without training: float32 probabilities of the classes, as a table.

Nothing here reads a label: of every row the image alone is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F

from ..data import EvalTransform
from ..data.feature_folders import DIGESTS
from ..data.image_digests import image_digests
from ..training.cached_features import FEATURES, encode_frozen, require_features_of
from ..training.evaluation import batches
from ..utils.arguments import typed
from ..utils.processes import ALONE, Processes


if TYPE_CHECKING:
    from .models import ModelBundle


@typed
def zero_shot(
    clips: ModelBundle | Sequence[ModelBundle],
    images: Dataset | Sequence[dict],
    class_names: Sequence[str],
    *,
    combine: str = "probabilities",
    batch_size: int = 100,
    processes: Processes = ALONE,
) -> np.ndarray:
    """Return the zero-shot probabilities of every image, float32 [images, classes], which remember their images.

    Args:
        clips: one or several CLIPs with their image processors, as `build_model(path, "zero-shot", names)` gives;
            the template (or ensemble of templates) is the adapter config's. Adapters are switched off. A model's
            class names are `class_names` afterwards.
        images: rows with `image`; for a single CLIP also a data set of its `image_features`.
        class_names: names of the classes.
        combine: what is averaged over several CLIPs: "probabilities" (the default, as in UPL), "logits" or "features".
        batch_size: images per forward pass.
        processes: share the images with these, which all make the same call and all get the whole table.

    Raises:
        ValueError: no images, an unknown `combine`, or features of different sizes.
    """
    bundles: Any = clips if isinstance(clips, (list, tuple)) else [clips]
    if not len(images) or not bundles:
        raise ValueError(f"Expected images and CLIPs. Received: {len(images)} images, {len(bundles)} CLIPs.")
    encoded = [_encode(clip, images, class_names, batch_size, processes) for clip in bundles]
    if combine == "features":
        table = _combine_features(encoded)
    else:
        table = combine_logits([each.logits for each in encoded], combine)
    return ScoreTable.of(table.numpy(), digests_of(images))


class ScoreTable(np.ndarray):
    """Scores [n, c] of known images: an array as any other, of which parts and results know no images.

    Attributes:
        images: digests of the images, uint8 [n, 16], see `data.image_digests`; None where they are not known.
    """

    images: np.ndarray | None = None

    @classmethod
    def of(cls, scores: np.ndarray, images: np.ndarray | None) -> ScoreTable:
        """Return the scores as a table of these images."""
        table = scores.view(cls)
        table.images = images
        return table


def digests_of(images) -> np.ndarray | None:
    """Return which images the rows are, if it is known: of a list of pictures it is not."""
    if isinstance(images, Dataset) and (DIGESTS in images.column_names or FEATURES not in images.column_names):
        return image_digests(images)
    return getattr(images, "image_digests", None)


def _combine_features(encoded: Sequence[_Encoded]) -> Tensor:
    """Return probabilities [n, c] by the mean features of several models, with their mean scale."""
    sizes = [each.images.shape[1] for each in encoded]
    if len(set(sizes)) > 1:
        raise ValueError(f"Expected CLIPs with features of one size. Received sizes: {sizes}. Average probabilities.")
    images, classes = (
        F.normalize(torch.stack([getattr(each, part) for each in encoded]).mean(0), dim=-1)
        for part in ("images", "classes")
    )
    scale = torch.stack([each.scale for each in encoded]).mean()
    return (scale * images @ classes.t()).softmax(-1)


def combine_logits(logits: Sequence[Tensor], combine: str) -> Tensor:
    """Return probabilities [n, c] from the logits of several models.

    Args:
        logits: each model's, [n, c].
        combine: "probabilities" for the mean of the models' softmax, "logits" for the softmax of their mean logits.

    Raises:
        ValueError: an unknown `combine`.
    """
    table = torch.stack([each.float() for each in logits])
    if combine == "probabilities":
        return table.softmax(-1).mean(0)
    if combine == "logits":
        return table.mean(0).softmax(-1)
    raise ValueError(f"Expected combine to be 'probabilities', 'logits' or 'features'. Received: combine={combine!r}.")


class _Encoded(NamedTuple):
    """What one CLIP makes of the images, in float32: features [n, d] and [c, d], logits [n, c] and their scale."""

    images: Tensor
    classes: Tensor
    logits: Tensor
    scale: Tensor


@torch.no_grad()
def _encode(clip: ModelBundle, images, class_names: Sequence[str], batch_size: int, processes: Processes) -> _Encoded:
    """Encode images and class names by the CLIP without its adapter."""
    model = clip.model
    classifier = model.class_name_classifier
    with model.disable_adapter():
        if isinstance(images, Dataset) and FEATURES in images.column_names:
            if DIGESTS in images.column_names:  # of a folder, which somebody may have made with another model
                require_features_of(model, EvalTransform(clip.image_processor), images)
            features = images.select_columns(FEATURES).with_format("torch")[:][FEATURES]
        else:
            rows: Any = _Pixels(images, EvalTransform(clip.image_processor))
            own = [encode_frozen(model, batch) for batch in batches(rows, batch_size, processes)]
            features = torch.cat(processes.gather(own))
        model.set_class_names(list(class_names))
        classes = model.encode_classes()
        scale = classifier.adapted.dual.logit_scale
        logits = classifier.scaled(features.to(classes) @ classes.t())
    return _Encoded(features, *(tensor.float().cpu() for tensor in (classes, logits, scale)))


class _Pixels(torch.utils.data.Dataset):
    """What the image processor makes of each row's image; no other entry of a row is touched."""

    def __init__(self, images, transform: EvalTransform):
        self.images = images.select_columns("image") if isinstance(images, Dataset) else images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        inputs = self.transform({"image": [self.images[index]["image"]]})
        return {name: torch.as_tensor(values[0]) for name, values in inputs.items()}
