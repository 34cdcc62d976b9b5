"""From images to `pixel_values`, without torchvision.

Both transforms are made for `datasets.Dataset.with_transform`: they take a batch of rows with `image` (PIL) and, if
they are labelled, `label`, and give `labels` and what the model's own image processor does: `pixel_values` [batch, 3,
height, width], or SigLIP 2's padded rows of patches with their mask and shapes. Sizes, means and standard deviations are
the processor's. Randomness comes from torch's global generator, which `Trainer` seeds and restores; `augmentation` has
rows with random numbers of their own.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from datasets import Dataset
from PIL import Image

from ..utils.arguments import typed
from ..utils.fields import shown
from ..utils.validation import is_number
from .images import to_rgb


@runtime_checkable
class ImageProcessor(Protocol):
    """an image processor of transformers, as AutoImageProcessor.from_pretrained gives it.

    Of a processor of images and texts it is the attribute `image_processor`.
    """

    size: Any

    def __call__(self, images: Any, **kwargs) -> Any:
        """Return the inputs of a model for images."""

    def to_dict(self) -> dict:
        """Return what the inputs depend on."""
        ...


@runtime_checkable
class Transform(Protocol):
    """EvalTransform, TrainTransform, ViewTransform or another one with `random` and `settings()`."""

    random: bool

    def __call__(self, batch: dict, generators: Sequence[torch.Generator] | None = None) -> dict:
        """Return the inputs and `labels` of a batch of rows, each with its own random numbers."""
        ...

    def settings(self) -> dict:
        """Return what decides the pixels beside the random numbers."""
        ...


class EvalTransform:
    """The model's own preprocessing: whatever its image processor does."""

    random = False

    @typed
    def __init__(self, image_processor: ImageProcessor):
        self.image_processor = image_processor

    def __call__(self, batch: dict, generators: Sequence[torch.Generator] | None = None) -> dict:
        """Preprocess a batch of rows; nothing is drawn from their random numbers."""
        images = [to_rgb(image) for image in batch["image"]]
        return dict(self.image_processor(images, return_tensors="pt")) | _labels(batch)

    def settings(self) -> dict:
        """Return what decides the pixels, for the key of a cache."""
        return {"transform": "eval", "image_processor": self.image_processor.to_dict()}


class TrainTransform:
    """The authors' augmentation: a random crop resized (bicubic) to the model's size, flipped half of the time.

    For a model that takes images of any shape in patches, its processor does the resizing.

    Args:
        image_processor: image processor of the model.
        crop: `"random_resized_crop"` (area and aspect ratio drawn; CoOp, MaPLe, RPO) or `"random_crop"` (short side
            resized to 8/7 of the model's size, then a crop of that size; VPT on fine-grained data); `"none"`: the
            model's own preprocessing, without a flip (VPT on VTAB-1k).
        scale: range of the crop's share of the image area, for `"random_resized_crop"`.

    Raises:
        ValueError: `crop` is unknown or `scale` is not an increasing pair in (0, 1].
    """

    random = True

    @typed
    def __init__(
        self,
        image_processor: ImageProcessor,
        crop: str = "random_resized_crop",
        scale: tuple[float, float] = (0.08, 1.0),
    ):
        crops = {"random_resized_crop": self._random_resized_crop, "random_crop": self._random_crop, "none": None}
        if crop not in crops:
            raise ValueError(f"`crop` must be one of {', '.join(crops)}. Received: crop={crop!r}.")
        is_pair = isinstance(scale, (tuple, list)) and len(scale) == 2 and all(map(is_number, scale))
        if not is_pair or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"`scale` must be an increasing pair in (0, 1]. Received: scale={shown(scale)}.")
        self.image_processor: Any = image_processor
        self.crop_name = crop
        self.crop: Callable[[Image.Image, torch.Generator | None], Image.Image] | None = crops[crop]
        self.scale = scale
        self.size = None if takes_any_shape(image_processor) else image_size(image_processor)

    def __call__(self, batch: dict, generators: Sequence[torch.Generator] | None = None) -> dict:
        """Augment a batch of rows, each with its own random numbers or with torch's global ones."""
        if self.crop is None:
            return EvalTransform(self.image_processor)(batch)
        each = generators or [None] * len(batch["image"])
        images = [self._augment(to_rgb(image), own) for image, own in zip(batch["image"], each, strict=True)]
        # Of the right size already, if there is one: a centre crop, where the processor does one, changes nothing.
        inputs = self.image_processor(images, do_resize=self.size is None, return_tensors="pt")
        return dict(inputs) | _labels(batch)

    def settings(self) -> dict:
        """Return what decides the pixels beside the random numbers, for the key of a cache."""
        return {"transform": self.crop_name, "scale": self.scale, "image_processor": self.image_processor.to_dict()}

    def _augment(self, image: Image.Image, generator: torch.Generator | None) -> Image.Image:
        image = self.crop(image, generator)  # pyrefly: ignore[not-callable]  # without a crop no image comes here
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if _uniform(0, 1, generator) < 0.5 else image

    def _random_resized_crop(self, image: Image.Image, generator: torch.Generator | None) -> Image.Image:
        box = random_crop_box(image.width, image.height, self.scale, generator)
        return image.crop(box) if self.size is None else image.crop(box).resize(self.size, Image.Resampling.BICUBIC)

    def _random_crop(self, image: Image.Image, generator: torch.Generator | None) -> Image.Image:
        if self.size is None:
            width, height = (max(1, round(edge * 7 / 8)) for edge in image.size)
        else:
            width, height = self.size
            ratio = max(width / image.width, height / image.height) * 8 / 7
            size = (round(image.width * ratio), round(image.height * ratio))
            image = image.resize(size, self.image_processor.resample)
        left = _integer(image.width - width, generator)
        top = _integer(image.height - height, generator)
        return image.crop((left, top, left + width, top + height))


def random_crop_box(
    width: int, height: int, scale: tuple[float, float], generator: torch.Generator | None = None
) -> tuple[int, int, int, int]:
    """Draw a crop of an image: area share uniform in `scale`, aspect ratio log-uniform in [3/4, 4/3].

    Ten draws that do not fit inside the image are followed by the largest central crop with an allowed aspect ratio,
    as in the Inception-style crop that the published recipes use.

    Returns:
        (left, top, right, bottom) in pixels.
    """
    for _ in range(10):
        area = width * height * _uniform(*scale, generator)
        ratio = math.exp(_uniform(math.log(3 / 4), math.log(4 / 3), generator))
        crop_width = round(math.sqrt(area * ratio))
        crop_height = round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = _integer(width - crop_width, generator)
            top = _integer(height - crop_height, generator)
            return left, top, left + crop_width, top + crop_height
    crop_width = min(width, round(height * 4 / 3))
    crop_height = min(height, round(width * 4 / 3))
    left = (width - crop_width) // 2
    top = (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def takes_any_shape(image_processor) -> bool:
    """Tell whether a processor gives padded rows of patches of images that keep their shape, as SigLIP 2's."""
    return hasattr(image_processor, "max_num_patches")


@typed
def image_size(image_processor: ImageProcessor) -> tuple[int, int]:
    """Return (width, height) in pixels of the images that a processor gives.

    Raises:
        ValueError: the processor has no fixed size.
    """
    crops = getattr(image_processor, "do_center_crop", None)
    size = getattr(image_processor, "crop_size", None) if crops else image_processor.size
    if not (size and size.get("height") and size.get("width")):
        raise ValueError(
            f"The image processor gives images of no fixed size: size={size}, do_center_crop={crops}. Random crops need "
            "one; train on the processor's own batches with the stock Trainer instead."
        )
    return size["width"], size["height"]


@typed
def cache_pixels(dataset: Dataset) -> list[dict]:
    """Run the transform of a data set once and keep the pixels in memory.

    Makes sense for evaluation, and for training where a fixed augmentation will do; each row takes
    12 bytes per pixel.
    """
    return list(dataset)


def _labels(batch: dict) -> dict:
    """Return the labels of a batch; an unlabelled one has none."""
    return {"labels": batch["label"]} if "label" in batch else {}


def _uniform(low: float, high: float, generator: torch.Generator | None) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _integer(high: int, generator: torch.Generator | None) -> int:
    """Draw a whole number in [0, high]."""
    return int(torch.randint(high + 1, (), generator=generator).item())
