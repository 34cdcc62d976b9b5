"""Views of an image for test-time tuning: the image itself, and random crops of it.

Source: azshue/TPT `data/datautils.py`, `data/augmix_ops.py` (after google-research/augmix); as there, crops are resized
bilinearly. Random numbers are a generator's own, where the authors draw from numpy's global ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..utils.arguments import typed
from ..utils.validation import require_int
from .images import to_rgb
from .transforms import EvalTransform, ImageProcessor, image_size, random_crop_box, takes_any_shape


#: Range of a crop's share of the image area.
CROP_SCALE = (0.08, 1.0)


class ViewTransform:
    """Views of each image: its plain preprocessing, then random crops, resized and flipped half of the time.

    Gives `pixel_values` [batch, views, 3, height, width], and `labels` of labelled rows.

    Args:
        image_processor: image processor of the model.
        views: number of views, the plain one among them.
        augmix: mix each crop with three random chains of distortions of it (AugMix, Hendrycks et al., ICLR 2020), as the
            authors do on fine-grained data.

    Raises:
        ValueError: fewer than one view, or a processor without a fixed size.
    """

    random = True

    @typed
    def __init__(self, image_processor: ImageProcessor, views: int = 64, augmix: bool = False):
        require_int("views", views, 1)
        if takes_any_shape(image_processor):
            raise ValueError(
                "Expected a model that takes images of one size, of which there can be crops. Received: an image processor "
                f"of patches ({type(image_processor).__name__}). Use a CLIP or SigLIP of a fixed image size."
            )
        self.image_processor = image_processor
        self.views = views
        self.augmix = augmix
        self.size = image_size(image_processor)

    def __call__(self, batch: dict, generators: Sequence[torch.Generator] | None = None) -> dict:
        """Make the views of a batch of rows, each with its own random numbers or with torch's global ones."""
        plain = EvalTransform(self.image_processor)(batch)
        each = generators or [None] * len(batch["image"])
        views = [
            torch.stack([first, *self._random_views(to_rgb(image), own)])
            for first, image, own in zip(plain["pixel_values"], batch["image"], each, strict=True)
        ]
        return plain | {"pixel_values": torch.stack(views)}

    def settings(self) -> dict:
        """Return what decides the pixels beside the random numbers, for the key of a cache."""
        how = {"views": self.views, "augmix": self.augmix}
        return {"transform": "views", **how, "image_processor": self.image_processor.to_dict()}

    def _random_views(self, image: Image.Image, generator: torch.Generator | None) -> list[Tensor]:
        crops = [self._crop(image, generator) for _ in range(self.views - 1)]
        if not crops or not self.augmix:
            return list(self._preprocess(crops)) if crops else []
        return [self._mix(crop, generator) for crop in crops]

    def _crop(self, image: Image.Image, generator: torch.Generator | None) -> Image.Image:
        box = random_crop_box(image.width, image.height, CROP_SCALE, generator)
        image = image.crop(box).resize(self.size, Image.Resampling.BILINEAR)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if _uniform(generator) < 0.5 else image

    def _preprocess(self, images: list[Image.Image]) -> Tensor:
        return self.image_processor(images, do_resize=False, return_tensors="pt")["pixel_values"]

    def _mix(self, crop: Image.Image, generator: torch.Generator | None) -> Tensor:
        """Return a random mean of a crop and of three distorted copies, after preprocessing."""
        draws = torch.tensor([-math.log1p(-_uniform(generator)) for _ in range(3)])
        weights = draws / draws.sum()  # Dirichlet(1, 1, 1)
        share = _uniform(generator)  # Beta(1, 1)
        copies = []
        for _ in weights:
            distorted = crop
            for _ in range(1 + _index(3, generator)):
                distorted = DISTORTIONS[_index(len(DISTORTIONS), generator)](distorted, generator)
            copies.append(distorted)
        plain, *mixed = self._preprocess([crop, *copies])
        return share * plain + (1 - share) * torch.einsum("k,kchw->chw", weights, torch.stack(mixed))


def _uniform(generator: torch.Generator | None) -> float:
    return torch.rand((), generator=generator).item()


def _index(count: int, generator: torch.Generator | None) -> int:
    return int(torch.randint(count, (), generator=generator).item())


def _level(maximum: float, generator: torch.Generator | None) -> float:
    """Draw the strength of a distortion, of the least severity: uniform in a hundredth to a tenth of the maximum."""
    return (0.1 + 0.9 * _uniform(generator)) * maximum / 10


def _either_way(level: float, generator: torch.Generator | None) -> float:
    return -level if _uniform(generator) > 0.5 else level


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)


def _rotate(image: Image.Image, generator: torch.Generator | None) -> Image.Image:
    degrees = _either_way(int(_level(30, generator)), generator)
    return image.rotate(degrees, resample=Image.Resampling.BILINEAR)


def _shear_x(image: Image.Image, generator: torch.Generator | None) -> Image.Image:
    return _affine(image, (1, _either_way(_level(0.3, generator), generator), 0, 0, 1, 0))


def _shear_y(image: Image.Image, generator: torch.Generator | None) -> Image.Image:
    return _affine(image, (1, 0, 0, _either_way(_level(0.3, generator), generator), 1, 0))


def _translate_x(image: Image.Image, generator: torch.Generator | None) -> Image.Image:
    return _affine(image, (1, 0, _either_way(int(_level(image.width / 3, generator)), generator), 0, 1, 0))


def _translate_y(image: Image.Image, generator: torch.Generator | None) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, _either_way(int(_level(image.height / 3, generator)), generator)))


#: AugMix's distortions, without those that ImageNet-C tests with.
DISTORTIONS: tuple[Callable[[Image.Image, torch.Generator | None], Image.Image], ...] = (
    lambda image, generator: ImageOps.autocontrast(image),
    lambda image, generator: ImageOps.equalize(image),
    lambda image, generator: ImageOps.posterize(image, 4 - int(_level(4, generator))),
    _rotate,
    lambda image, generator: ImageOps.solarize(image, 256 - int(_level(256, generator))),
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
)
