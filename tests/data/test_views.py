"""Views of an image for test-time tuning."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from transformers import CLIPImageProcessorPil, Siglip2ImageProcessorPil

from peft_vprompt.data import AugmentedRows, EvalTransform, ViewTransform
from peft_vprompt.data.views import DISTORTIONS


PROCESSOR = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


@pytest.fixture
def rows():
    noise = np.random.default_rng(0).integers(0, 255, (3, 40, 60, 3), dtype=np.uint8)
    pictures = [PILImage.fromarray(each) for each in noise]
    features = Features(image=Image(), label=ClassLabel(names=["a", "b"]))
    return Dataset.from_dict({"image": pictures, "label": [0, 1, 0]}, features=features)


@pytest.mark.parametrize("augmix", [False, True])
def test_the_first_view_is_the_plain_image_and_the_others_are_random(rows, augmix):
    batch = ViewTransform(PROCESSOR, 5, augmix)(rows[:2])
    assert batch["pixel_values"].shape == (2, 5, 3, 32, 32)
    assert batch["labels"] == [0, 1]
    plain = EvalTransform(PROCESSOR)(rows[:2])["pixel_values"]
    assert torch.equal(batch["pixel_values"][:, 0], torch.as_tensor(plain))
    flat = batch["pixel_values"].flatten(0, 1)
    assert len(torch.unique(flat.flatten(1), dim=0)) == 10
    assert ViewTransform(PROCESSOR, 1, augmix)(rows[:2])["pixel_values"].shape == (2, 1, 3, 32, 32)


@pytest.mark.parametrize("augmix", [False, True])
def test_views_depend_on_the_seed_and_the_row_alone(rows, augmix):
    views = AugmentedRows(rows, ViewTransform(PROCESSOR, 4, augmix), seed=3)
    torch.manual_seed(1)
    together = views.__getitems__([0, 1, 2])
    torch.manual_seed(2)
    assert torch.equal(views[1]["pixel_values"], together[1]["pixel_values"])
    assert not torch.equal(views.with_seed(4)[1]["pixel_values"], together[1]["pixel_values"])


def test_mixing_stays_among_the_pixels(rows):
    """A mean of distorted copies of a grey image is that grey, but for the black that shifts bring in."""
    grey = PILImage.new("RGB", (40, 40), (120, 120, 120))
    pixels = ViewTransform(PROCESSOR, 9, augmix=True)({"image": [grey]})["pixel_values"][0]
    black = EvalTransform(PROCESSOR)({"image": [PILImage.new("RGB", (40, 40))]})["pixel_values"][0]
    white = EvalTransform(PROCESSOR)({"image": [PILImage.new("RGB", (40, 40), (255, 255, 255))]})["pixel_values"][0]
    assert (pixels >= torch.as_tensor(black) - 1e-4).all()
    assert (pixels <= torch.as_tensor(white) + 1e-4).all()


def test_every_distortion_keeps_the_size(rows):
    image = rows[0]["image"].resize((32, 32))
    generator = torch.Generator().manual_seed(0)
    for distort in DISTORTIONS:
        assert distort(image, generator).size == (32, 32)


def test_what_has_no_views_is_refused():
    with pytest.raises(ValueError, match="views"):
        ViewTransform(PROCESSOR, 0)
    with pytest.raises(ValueError, match="Use a CLIP or SigLIP of a fixed image size"):
        ViewTransform(Siglip2ImageProcessorPil())
