"""How many processes load images, and drafts of JPEGs."""

import io

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import CLIPImageProcessorPil

from peft_vprompt.data.augmentation import AugmentedRows
from peft_vprompt.data.images import RGBImage, as_drafts
from peft_vprompt.data.transforms import EvalTransform, TrainTransform
from peft_vprompt.training import loading
from peft_vprompt.training.loading import decodes, enough_workers, find_workers, require_workers
from tests.support.models import IMAGE_SIZE


PROCESSOR = CLIPImageProcessorPil(
    size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
)


@pytest.fixture
def rows():
    """Images as `load_images` gives them."""
    pixels = [Image.new("RGB", (20, 20), (40 * k, 0, 0)) for k in range(6)]
    return Dataset.from_dict({"image": pixels, "label": [0] * 6}).cast_column("image", RGBImage())


class Model(torch.nn.Module):
    """A model that notes what it is called with, and draws random numbers as dropout does."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.calls = []

    def forward(self, pixel_values):
        self.calls.append((pixel_values.shape, self.training, torch.is_grad_enabled()))
        torch.rand(3)
        return pixel_values


@pytest.mark.parametrize(
    ("load", "step", "most", "workers"),
    [
        (0.01, 1.0, 8, 0),  # a step of a CPU: nobody waits
        (0.1, 0.1, 8, 1),
        (0.35, 0.1, 8, 4),
        (9.0, 0.1, 8, 8),
        (9.0, 0.0, 64, loading.MOST),
    ],
)
def test_as_many_as_the_step_needs(load, step, most, workers):
    assert enough_workers(load, step, most) == workers


@pytest.mark.parametrize("workers", ["two", -1, 1.5, True, 10**6, ""])
def test_what_is_no_number_of_processes(workers):
    with pytest.raises(ValueError, match="Expected workers to be"):
        require_workers(workers)


def test_a_number_is_taken_and_nothing_is_tried(rows):
    model = Model()
    assert [find_workers(number, model, rows) for number in (0, 3)] == [0, 3] and not model.calls


def test_rows_that_decode_images(rows):
    assert decodes(rows.with_transform(EvalTransform(PROCESSOR)))
    assert decodes(AugmentedRows(rows, TrainTransform(PROCESSOR)))
    assert not decodes(rows.select_columns("label")) and not decodes([{"pixel_values": 0}])


def test_automatic_number(rows, monkeypatch):
    model = Model().train()
    views = AugmentedRows(rows, TrainTransform(PROCESSOR))
    monkeypatch.setattr(loading, "usable_cores", lambda: 2)
    assert find_workers("auto", model, views) == 0 and not model.calls  # no core to spare beside a CPU's step
    monkeypatch.setattr(loading, "usable_cores", lambda: 32)
    before = torch.get_rng_state()
    assert find_workers("auto", model, views) == 0  # an epoch is short
    assert set(model.calls) == {((loading.TRIED, 3, IMAGE_SIZE, IMAGE_SIZE), False, False)}
    assert model.training and torch.equal(before, torch.get_rng_state())
    monkeypatch.setattr(loading, "_seconds", lambda model, rows: (6.0, 1.0))
    assert find_workers("auto", model, views) == 6


def test_processes_of_a_launcher_share_the_cores(monkeypatch):
    alone = loading.usable_cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(alone))
    assert loading.usable_cores() == 1


def jpeg(width, height):
    ramp = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None].repeat(height, 0).repeat(3, 2)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "JPEG", quality=95)
    return {"bytes": file.getvalue(), "path": None}


def test_drafts_of_large_jpegs_alone():
    images = [jpeg(400, 300), jpeg(100, 90), {"bytes": _png(400, 300), "path": None}]
    whole = Dataset.from_dict({"image": images, "label": [0, 0, 0]}).cast_column("image", RGBImage(background="red"))
    drafts = as_drafts(whole, 64)
    assert [image.size for image in drafts["image"]] == [(100, 75), (100, 90), (400, 300)]
    assert drafts.features["image"].background == "red"
    assert [image.size for image in whole["image"]] == [(400, 300), (100, 90), (400, 300)]
    small = np.asarray(whole[0]["image"].resize((100, 75), Image.Resampling.BOX), dtype=int)
    assert np.abs(np.asarray(drafts[0]["image"], dtype=int) - small).max() <= 3


def _png(width, height):
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()
