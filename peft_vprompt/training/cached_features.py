"""Image features of a frozen image encoder, computed once and kept on disk as memory-mapped Arrow.

They stand for the images wherever no visual prompt is trained and the augmentation is fixed: a training step is then
the text side alone. A cache file belongs to one image encoder, one preprocessing and one list of images, all known by
their content; labels are not part of it, so that noisy or changed labels use the same file. It ends with a checksum; a
damaged file is moved aside and made anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset, Features, Value
from datasets import Sequence as ListOf
from datasets.arrow_writer import ArrowWriter
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.utils.data import DataLoader
from transformers import default_data_collator

from ..data.augmentation import RandomRows
from ..data.feature_folders import FEATURES, holds_features, made_with
from ..data.image_digests import image_digests, image_fingerprint
from ..data.transforms import Transform
from ..errors import UnsupportedModelError
from ..tuners.base.classifier import text_classifier
from ..tuners.base.module_state import switches
from ..tuners.base.prompted_encoder import PromptedEncoder
from ..utils.arguments import typed
from ..utils.checked_files import add_checksum, keep_intact
from ..utils.devices import device_of
from ..utils.digests import MODEL_PROVENANCE, Digest, digest_json, without
from ..utils.eval_mode import eval_mode
from ..utils.io import atomic_path
from ..utils.precision import PRECISIONS
from ..utils.validation import require_int, require_seed
from .loading import Workers, find_workers, require_workers


#: Most views of every image.
MAX_VIEWS = 10_000


@typed
def cache_features(
    model: PeftModel,
    images: Dataset,
    transform: Transform,
    *,
    views: int = 1,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    batch_size: int = 100,
    workers: Workers = 0,
    normalized: bool = True,
) -> Dataset:
    """Return L2-normalised image features of `images`, from the disk if they were computed before.

    Args:
        model: a PEFT model of this package whose active adapter has no visual prompts (or is disabled).
        images: data set with a column `image`, or with features that a folder of such has and that are returned as they are; a
            column `label` is carried over and nothing else is read.
        transform: `data.EvalTransform` or `data.TrainTransform`: what turns a batch of rows into `pixel_values`, has
            `settings()` and says whether it is `random`.
        views: how often every image is transformed. Several views keep some of the variety of a random augmentation:
            see `RandomViews`.
        seed: seed of a random augmentation.
        cache_dir: folder of the cache files; default: `vprompt-features` in the cache of `datasets`.
        batch_size: images per forward pass.
        workers: processes that load images, or "auto", see `loading.find_workers`; a random augmentation is made in this process alone, so that the features
            do not depend on their number.
        normalized: L2-normalise the features, as training takes them; else they are as the model projects them, for a
            mean over views.

    Returns:
        A data set with the column `image_features` (float32, [dim]) and `label`, if there is one: `views` times as
        many rows as images, first the first view of all images, then the second, ... Its attribute `image_digests` says
        which images a single view is of.

    Raises:
        UnsupportedModelError: the image features depend on what is trained.
        ValueError: no column of encoded images, a number out of range, or features that something else made.
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    require_int("views", views, 1, MAX_VIEWS)
    require_int("batch_size", batch_size, 1)
    require_workers(workers)
    require_seed(seed)
    if holds_features(images):
        return _as_given(model, images, transform, views, normalized)
    model.class_name_classifier.images.require_fixed()
    digests = image_digests(images)
    key = {
        "model": model_fingerprint(model),
        "transform": transform.settings(),
        "images": image_fingerprint(images, digests),
        "views": views,
        "seed": seed if transform.random else None,
        **({} if normalized else {"normalized": False}),
    }
    path = (default_cache_dir() if cache_dir is None else Path(cache_dir)) / f"{digest_json(key, 32)}.arrow"
    if not keep_intact(path, "image features"):
        rows = images.select_columns("image").with_transform(transform)
        with atomic_path(path) as partial:
            _write(model, rows, partial, views, seed, batch_size, workers, normalized)
            add_checksum(partial)
    features = Dataset.from_file(str(path))
    if "label" in images.column_names:
        labels = np.concatenate([np.asarray(images["label"][:])] * views)
        features = features.add_column("label", list(labels), feature=images.features["label"])
    features.image_digests = digests if views == 1 else None
    return features


def _as_given(model: PeftModel, images: Dataset, transform: Transform, views: int, normalized: bool) -> Dataset:
    """Return features that were given in the place of images, if they are what would be made of these."""
    require_features_of(model, transform, images)
    if views != 1 or not normalized:
        raise ValueError(
            f"Expected images to look at in {views} views. Received image features, one of each image. Give the images as the "
            "data (--data), or train a method that takes features, such as coop or classifier-r."
        )
    rows = images.select_columns([FEATURES, *(["label"] if "label" in images.column_names else [])])
    rows.image_digests = image_digests(images)
    return rows


def features_content(model: Any, transform: Transform) -> dict[str, str]:
    """Return digests of what image features depend on beside the images, and their precision, by what it is.

    Args:
        model: a PEFT model of this package, with an adapter that leaves the image features alone.
        transform: what makes the model's inputs of images.
    """
    vision = model.class_name_classifier.images.vision.base_layer
    dtype = next(tensor.dtype for tensor in vision.parameters() if tensor.is_floating_point() and tensor.numel() > 1)
    named = next((name for name, known in PRECISIONS.items() if known == dtype), str(dtype))
    return {
        "model": model_fingerprint(model)[:32],
        "precision": named,
        "preprocessing": digest_json(transform.settings(), 32),
    }


def require_features_of(model: Any, transform: Transform, *images: Dataset) -> None:
    """Refuse rows whose features something else made than would make them of their images; other rows pass.

    Args:
        model: a PEFT model of this package.
        transform: what makes its inputs of images.
        *images: rows, of features or not.

    Raises:
        UnsupportedModelError: the image features depend on what is trained.
        ValueError: features of another model, precision or preprocessing; says which.
    """
    given = [made_with(rows) for rows in images if holds_features(rows)]
    if not given:
        return
    classifier = text_classifier(model)
    if classifier is None:
        raise UnsupportedModelError(
            "Expected images for a model with a classification head. Received image features. Give the images (--data)."
        )
    classifier.images.require_fixed()
    expected = features_content(model, transform)
    for content in given:
        if content is None:
            raise ValueError(
                "Expected image features that say what made them. Received some that do not. Make them by `vprompt features`."
            )
        if content.get("precision") != expected["precision"]:  # of which the digest of the model is another, too
            raise ValueError(
                f"Expected image features in {expected['precision']}, in which this model is held. Received: "
                f"{content.get('precision')}. Take that (--precision), or make the features anew by `vprompt features`."
            )
        if other := [name for name in (*expected, "adapter") if content.get(name) != expected.get(name)]:
            raise ValueError(
                f"Expected image features of this model and its preprocessing. Received some of another {' and '.join(other)}. "
                "Name the model and the image size that made them, or make them anew by `vprompt features`."
            )


def default_cache_dir() -> Path:
    """Return `vprompt-features` in the cache folder of `datasets` (see HF_DATASETS_CACHE)."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "vprompt-features"


def _write(
    model, rows: Dataset, path: Path, views: int, seed: int, batch_size: int, workers: Workers, normalized: bool
) -> None:
    schema = Features({FEATURES: ListOf(Value("float32"))})
    # Each process would draw numbers of its own, and the features depend on how many there are.
    loaders = 0 if rows.format["format_kwargs"]["transform"].random else find_workers(workers, model, rows)
    # The caller's own stream of random numbers goes on as if nothing had been drawn here.
    with torch.random.fork_rng(devices=[]), ArrowWriter(path=str(path), features=schema) as writer:
        torch.manual_seed(seed)
        for _ in range(views):
            for batch in DataLoader(rows, batch_size, collate_fn=default_data_collator, num_workers=loaders):
                writer.write_batch({FEATURES: encode_frozen(model, batch, normalized).numpy()})
        writer.finalize()


@torch.no_grad()
def encode_frozen(model, batch: dict[str, torch.Tensor], normalized: bool = True) -> torch.Tensor:
    """Return image features [batch, dim] in float32 on the CPU, without autocast, whatever mode the model is in.

    They are L2-normalised, or as the model projects them. `batch` is what the image processor gives: `pixel_values`, and what else the model takes with them.
    """
    device = device_of(model)
    encode = model.encode_images if normalized else model.class_name_classifier.images.project
    with eval_mode(model), torch.autocast(device.type, enabled=False):
        features = encode(**{name: tensor.to(device) for name, tensor in batch.items()})
    return features.float().cpu()


class RandomViews(RandomRows):
    """Draw a view of every image in each epoch, one row per image, from the rows that `cache_features(views=n)` gives.

    Args:
        rows: what `cache_features` gives, made tensors by `feature_rows`.
        views: rows of every image.
        seed: seed of the drawing.

    Raises:
        ValueError: the rows are not as many for every image.
    """

    @typed
    def __init__(self, rows: Dataset, views: int, seed: int = 0):
        super().__init__(seed)
        if len(rows) % views:
            raise ValueError(f"Expected {views} rows per image. Received {len(rows)} rows.")
        self.rows, self.views = rows, views

    def __len__(self) -> int:
        return len(self.rows) // self.views

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        drawn = [int(torch.randint(self.views, (), generator=self.generator(index))) for index in indices]
        batch = self.rows[[view * len(self) + index for view, index in zip(drawn, indices, strict=True)]]
        return [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]


@typed
def feature_rows(features: Dataset, views: int = 1) -> Dataset | RandomViews:
    """Return rows to train or evaluate on, with the tensors `image_features` [dim] and `labels`."""
    names = [FEATURES, *(["label"] if "label" in features.column_names else [])]
    rows = features.select_columns(names)
    rows = rows.rename_column("label", "labels") if "label" in names else rows
    rows = rows.with_format("torch")
    return rows if views == 1 else RandomViews(rows, views)


def model_fingerprint(model) -> str:
    """Return a digest of what decides the image features: weights and config without the text side and the prompts."""
    base = model.get_base_model()
    text = {id(tensor) for tensor in model.class_name_classifier.adapted.text.state_dict(keep_vars=True).values()}
    config = getattr(base.config, "vision_config", base.config).to_dict()
    digest = Digest()
    digest.add(digest_json(without(config, MODEL_PROVENANCE), 64).encode())
    for name, tensor in sorted(base.state_dict(keep_vars=True).items()):
        if id(tensor) not in text and "learner." not in name:
            digest.add_tensor(name.replace("base_layer.", ""), tensor)
    for name, module in base.named_modules():  # a LoRA that the base model carries, say
        if isinstance(module, BaseTunerLayer) and not isinstance(module, PromptedEncoder):
            digest.add(f"{name}{switches(module)}".encode())
    return digest.hex()
