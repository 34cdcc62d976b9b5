"""The pretraining scripts: a run that was stopped ends like one that was not, and what is held out is never trained on."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, CLIPImageProcessorPil

from examples.studies import noise_on_backbones, pretrain_demo, pretrain_emoji
from examples.studies.contrastive import CHECKPOINT, InFloat32, clip_loss
from examples.studies.pretrain_emoji import HELD_OUT, Batches, Drawings, augment, drop_patches, loss_of
from peft_vprompt.demo import demo_model_path
from peft_vprompt.models import ResNetCLIPModel
from peft_vprompt.utils.io import read_json
from tests.support.models import IMAGE_SIZE, tiny_clip, tiny_tokenizer


SMALL = {"steps": 4, "batch_size": 4, "width": 64, "layers": 1, "text_layers": 1, "projection": 16}


@pytest.fixture(autouse=True)
def the_tokenizer_is_there(monkeypatch):
    """The learning of the tokenizer, which takes seconds, is another test's."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
    monkeypatch.setattr(pretrain_demo, "train_tokenizer", lambda *_: tokenizer)


def stopping(measure, calls: int):
    """A function that measures like another one, but for one call at which the run is stopped."""
    count = 0

    def measured(*args):
        nonlocal count
        count += 1
        if count == calls:
            raise KeyboardInterrupt
        return measure(*args)

    return measured


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return AutoModel.from_pretrained(folder).state_dict()


def same_runs(one: Path, other: Path) -> None:
    """Two folders hold the same model, to the bit, and the same learning curve; no checkpoint is left."""
    expected, found = weights(one), weights(other)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    curves = [read_json(folder / "training.json")["curve"] for folder in (one, other)]
    assert curves[0] == curves[1] and len(curves[0]) == SMALL["steps"]
    assert not (one / CHECKPOINT).exists() and not (other / CHECKPOINT).exists()


def test_a_stopped_run_on_the_demo_world_goes_on(tmp_path, monkeypatch):
    options = pretrain_demo.Options(tower="resnet", **SMALL)
    run = {"workers": 0, "pictures": 16}
    record = pretrain_demo.pretrain(options, tmp_path / "whole", **run)
    with monkeypatch.context() as patch:
        patch.setattr(pretrain_demo, "attribute_accuracy", stopping(pretrain_demo.attribute_accuracy, 3))
        with pytest.raises(KeyboardInterrupt):
            pretrain_demo.pretrain(options, tmp_path / "stopped", **run)
    assert torch.load(tmp_path / "stopped" / CHECKPOINT, weights_only=True)["noted"]["step"] == 2
    other = pretrain_demo.Options(tower="resnet", **SMALL | {"steps": 5})
    with pytest.raises(ValueError, match="'steps': 5.*Received.*'steps': 4.*folder of its own"):
        pretrain_demo.pretrain(other, tmp_path / "stopped", **run)
    pretrain_demo.pretrain(options, tmp_path / "stopped", **run)
    same_runs(tmp_path / "whole", tmp_path / "stopped")
    model = AutoModel.from_pretrained(tmp_path / "stopped")
    assert isinstance(model, ResNetCLIPModel)
    assert record["parameters"] == model.num_parameters()
    assert "--tower resnet --steps 4" in (tmp_path / "whole" / "README.md").read_text()


def test_the_texts_may_be_those_of_the_embedded_clip(tmp_path):
    options = pretrain_demo.Options(steps=2, batch_size=4, tower="resnet", locked_text=True)
    pretrain_demo.pretrain(options, tmp_path, workers=0, pictures=4)
    expected, found = weights(demo_model_path()), weights(tmp_path)
    texts = [name for name in expected if name.startswith("text_")]
    assert texts and all(torch.equal(expected[name], found[name]) for name in texts)
    assert "embedded CLIP's text tower" in (tmp_path / "README.md").read_text()


def test_muon_in_float32():
    torch.manual_seed(0)
    weight, gradient = torch.randn(6, 9), torch.randn(6, 9)
    parameter = torch.nn.Parameter(weight.clone())
    parameter.grad = gradient.clone()
    with InFloat32():
        torch.optim.Muon([parameter], lr=1.0, weight_decay=0.0).step()
    x = gradient / gradient.norm()  # Jordan's iteration, as torch has it
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    torch.testing.assert_close(weight - parameter.detach(), x, rtol=0, atol=1e-5)
    assert torch.equal(parameter.grad, gradient)


# ---- drawings of emoji ------------------------------------------------------------------------------------------------

STYLES = ("one/color", "two/flat", *HELD_OUT[:2])
THINGS = 7


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Drawings of seven things in four styles, two of which are held out; the last thing has only those."""
    rows = [
        {
            "name": f"thing {thing}",
            "keywords": [f"word {thing // 2}", "all"],
            "subgroup": f"sub-{thing // 3}",
            "vendor": style.split("/")[0],
            "style": style.split("/")[1],
            "image": picture(10 * thing + index),
        }
        for index, style in enumerate(STYLES)
        for thing in range(THINGS)
        if thing < THINGS - 1 or style in HELD_OUT
    ]
    path = tmp_path_factory.mktemp("emoji") / "emoji.parquet"
    Dataset.from_list(rows).to_parquet(str(path))
    return path


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    for part in (tiny_clip(), tiny_tokenizer(), processor):
        part.save_pretrained(folder)
    return folder


def test_held_out_styles_are_never_in_a_batch(table, start):
    drawings = Drawings(table, IMAGE_SIZE)
    options = pretrain_emoji.Options(steps=40, batch_size=5)
    batches = Batches(drawings, tiny_tokenizer(), CLIPImageProcessorPil.from_pretrained(start), options)
    seen = set()
    for step in range(options.steps):
        rows, captions = batches.choose(step)
        things = drawings.things[rows]
        assert len(set(things)) == 5 and len(captions) == 5
        seen |= set(rows.tolist())
        true = batches.batch(step)["positives"]
        for column, (topic, text) in enumerate(captions):
            assert true[:, column].tolist() == [text in drawings.texts[topic][thing] for thing in things]
        assert true.diagonal().all()
    assert set(drawings.styles[sorted(seen)]) == set(STYLES) - set(HELD_OUT)
    assert len(seen) == 2 * (THINGS - 1)  # all that there is to train on
    with pytest.raises(ValueError, match="Received: 6 things.*batch_size=7"):
        Batches(drawings, tiny_tokenizer(), batches.processor, pretrain_emoji.Options(batch_size=7))


def test_a_caption_is_right_for_all_that_it_is_true_of():
    model = tiny_clip().eval()
    torch.manual_seed(0)
    call = {"input_ids": torch.randint(5, 50, (3, 6)), "pixel_values": torch.randn(3, 3, IMAGE_SIZE, IMAGE_SIZE)}
    call["input_ids"][:, -1] = model.config.text_config.eos_token_id
    alone = loss_of(model, call | {"positives": torch.eye(3, dtype=torch.bool)})
    torch.testing.assert_close(alone, clip_loss(model, call))
    logits = model(**call).logits_per_image
    shared = loss_of(model, call | {"positives": torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)})
    by_image, by_text = (F.log_softmax(scores, dim=1) for scores in (logits, logits.T))
    expected = -sum((rows[0, :2].mean() + rows[1, :2].mean() + rows[2, 2]) / 3 for rows in (by_image, by_text)) / 2
    torch.testing.assert_close(shared, expected)


def test_patches_are_left_out_in_training_alone():
    model = tiny_clip()
    pixels = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    embeddings = model.vision_model.embeddings
    whole = embeddings(pixels)
    handle = drop_patches(model, 0.5)
    kept = model.train().vision_model.embeddings(pixels)
    assert kept.shape[1] == 1 + (whole.shape[1] - 1) // 2
    torch.testing.assert_close(kept[:, 0], whole[:, 0])
    distances = torch.cdist(kept[:, 1:], whole[:, 1:])
    assert (distances.min(dim=2).values < 1e-5).all()
    assert all(len(set(row.tolist())) == kept.shape[1] - 1 for row in distances.argmin(dim=2))
    assert torch.equal(model.eval().vision_model.embeddings(pixels), whole)
    handle.remove()
    assert model.train().vision_model.embeddings(pixels).shape == whole.shape


def test_augmented_pictures_stay_on_their_ground():
    torch.manual_seed(0)
    empty = augment(torch.ones(6, 3, 16, 16))
    assert torch.equal(empty, empty[:, :, :1, :1].expand_as(empty))
    drawn = augment(torch.rand(6, 3, 16, 16))
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert len({tuple(row) for row in drawn.flatten(1)[:, :9].tolist()}) == 6


def test_lines_are_drawn_where_a_picture_changes():
    picture = torch.ones(1, 3, 6, 8)
    picture[..., 4:] = 0.5
    drawn = pretrain_emoji.outlined(picture, torch.full((1, 1, 1, 1), 4.0))
    assert torch.equal(drawn[..., [0, 1, 2, 5, 6, 7]], picture[..., [0, 1, 2, 5, 6, 7]])
    assert (drawn[..., 3:5] == 0).all()
    inked = pretrain_emoji.inked(picture, torch.full((1, 1, 1, 1), 0.7))
    assert (inked[..., :4] == 1).all() and (inked[..., 4:] == 0).all()


def test_a_stopped_run_on_emoji_goes_on(table, start, tmp_path, monkeypatch):
    options = pretrain_emoji.Options(steps=4, batch_size=4, whole_share=0.5)
    record = pretrain_emoji.pretrain(start, table, tmp_path / "whole", options)
    assert set(record["after"]) == {*HELD_OUT[:2], "trained styles"} and record["subgroups"] == 3
    with monkeypatch.context() as patch:
        patch.setattr(pretrain_emoji, "measure", stopping(pretrain_emoji.measure, 5))  # before the last checkpoint
        with pytest.raises(KeyboardInterrupt):
            pretrain_emoji.pretrain(start, table, tmp_path / "stopped", options)
    pretrain_emoji.pretrain(start, table, tmp_path / "stopped", options)
    same_runs(tmp_path / "whole", tmp_path / "stopped")
    before = tiny_clip().state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(tmp_path / "whole").items())


# ---- the study --------------------------------------------------------------------------------------------------------


def test_both_backbones_are_studied(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "resnet-clip"
    pretrain_demo.pretrain(pretrain_demo.Options(tower="resnet", **SMALL), folder, workers=0, pictures=4)
    grid = {"methods": ("linear-probe",), "kinds": ("symmetric",), "rates": (0.0, 0.5), "seeds": (1,)}
    results = noise_on_backbones.compare(tmp_path / "runs", folder, **grid)
    assert list(results["models"]) == ["vit", "resnet"] and results["chance"] == 100 / 32
    for model in results["models"].values():
        assert [(run["method"], run["rate"]) for run in model["runs"]] == [
            ("linear-probe", 0.0),
            ("linear-probe", 0.5),
        ]
    clean, noisy = (run["accuracy"] for run in results["models"]["vit"]["runs"])
    assert clean > noisy > results["chance"]
    known = read_json(Path(demo_model_path()) / "training.json")
    assert results["models"]["vit"]["parameters"] == known["parameters"] != results["models"]["resnet"]["parameters"]
    assert results["models"]["resnet"]["options"] == read_json(folder / "training.json")["options"]
    assert str(tmp_path) not in json.dumps(results)
