"""Tip-Adapter, CLAP and ZS-LP from the command line."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import CLIPModel

from peft_vprompt.training.cached_features import cache_features
from tests.support.command_line import QUICK, train, vprompt


pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "vprompt-features"


def saved(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    return json.loads((folder / "results.json").read_text()), {k.rpartition(".")[2]: v for k, v in tensors.items()}


@pytest.fixture
def encoded(monkeypatch):
    """The numbers of views that were asked for."""
    views = []

    def count(*args, **options):
        views.append(options["views"])
        return cache_features(*args, **options)

    monkeypatch.setattr("peft_vprompt.experiments.run.cache_features", count)
    return views


def test_tip_adapter(clip_path, colours, tmp_path, cache, encoded):
    train(tmp_path / "a", clip_path, colours, "--method", "tip-adapter", "--shots", 3)
    results, tensors = saved(tmp_path / "a")
    assert (
        tensors["keys"].shape[0] == 12 and sorted(tensors["labels"].tolist()) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    )
    torch.testing.assert_close(tensors["keys"].norm(dim=-1), torch.ones(12))
    assert encoded == [10] and results["recipe"] is None and len(list(cache.iterdir())) == 1
    vprompt("evaluate", "--adapter", tmp_path / "a", "--output", tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text())["accuracy"]["all"] == results["accuracy"]["all"]


def test_a_second_run_finds_the_features(clip_path, colours, tmp_path, cache, monkeypatch):
    options = ("--method", "clap", *QUICK, "--views", 2)
    train(tmp_path / "a", clip_path, colours, *options)
    (file,) = cache.iterdir()
    before = file.stat().st_mtime_ns
    train(tmp_path / "b", clip_path, colours, *options)
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [before]
    (one, rows), (_, other) = saved(tmp_path / "a"), saved(tmp_path / "b")
    assert torch.equal(rows["weight"], other["weight"]) and not torch.equal(rows["weight"], rows["start"])
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert len(config["class_penalties"]) == 4 and one["settings"]["views"] == 2


@pytest.mark.parametrize(("asked", "number"), [((), 20), (("--views", 1), 1)], ids=["authors", "one"])
def test_clap_is_trained_on_twenty_views_or_as_many_as_are_asked_for(
    asked, number, clip_path, colours, tmp_path, encoded
):
    train(tmp_path, clip_path, colours, "--method", "zs-lp", *QUICK, *asked)
    assert encoded == [number]


def test_the_search_takes_images_that_were_held_out(clip_path, colours, tmp_path):
    options = ("--method", "tip-adapter-f", *QUICK, "--set", "search_scale=[7,3]", "--set", "search_step=[3,4]")
    shown = train(tmp_path / "a", clip_path, colours, *options, code=2)
    assert "Hold some out by val_fraction" in shown and not (tmp_path / "a" / "adapter_config.json").exists()
    train(tmp_path / "a", clip_path, colours, *options, "--val-fraction", 0.3)
    results, _ = saved(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    found = results["search"]
    assert (config["alpha"], config["beta"]) == (found["alpha"], found["beta"])
    assert found["accuracy"] == pytest.approx(results["validation"]["all"])
    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(clip_path), str(tmp_path / "a"))
    assert model.active_peft_config.alpha == found["alpha"]
