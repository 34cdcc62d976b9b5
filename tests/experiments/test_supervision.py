"""Runs on noisy labels and without labels, by the experiment and by the command line."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from datasets import ClassLabel, DatasetDict, Value, load_dataset

from peft_vprompt.data import DataOptions, load_images, load_unlabelled
from peft_vprompt.experiments.models import build_model
from peft_vprompt.experiments.pseudo_labels import PseudoLabels, threshold, top_k
from peft_vprompt.experiments.run import run_experiment
from peft_vprompt.experiments.settings import Settings
from peft_vprompt.experiments.supervision import Supervision, training_images
from peft_vprompt.experiments.zero_shot_scores import zero_shot
from peft_vprompt.tuners.base.registry import METHODS
from peft_vprompt.tuners.base.shared_recipes import PTNL
from tests.support.command_line import QUICK, train, vprompt
from tests.support.labelled_images import SecretRows
from tests.support.models import often
from tests.support.saved_models import COLOURS


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def data(colours):
    return load_images(DataOptions(colours, label_column="colour"))


@pytest.fixture
def clip(clip_path):
    return build_model(clip_path, "coop", sorted(COLOURS))


NAMES = sorted(COLOURS)


@pytest.mark.parametrize("kind", ["symmetric", "pair", "confusion", "false-positive"])
@pytest.mark.parametrize("cached", [False, True])
def test_noise_in_the_shots_alone(kind, cached, data, clip):
    clean, _ = training_images(Supervision(), data["train"], NAMES, 4, 1, clip)
    rows, facts = training_images(Supervision(kind, 0.5), data["train"], NAMES, 4, 1, clip, cached)
    assert facts["noise"]["achieved_rate"] == 0.5
    if kind != "false-positive":
        assert np.array(facts["noise"]["matrix"]).diagonal().tolist() == [0.5] * 4
        assert np.mean(np.array(rows["label"][:]) != clean["label"][:]) == 0.5
    true = {tuple(image.getpixel((0, 0))): label for image, label in zip(data["train"]["image"], data["train"]["label"], strict=True)}  # fmt: skip
    found = np.array([true[image.getpixel((0, 0))] for image in rows["image"]])
    assert np.mean(found != rows["label"][:]) == 0.5


def test_train_with_noise_and_a_loss(clip_path, colours, tmp_path):
    noise = ("--noise", "pair", "--noise-rate", 0.25, "--loss", "gce", "--q", 0.5, "--cache-features")
    train(tmp_path / "a", clip_path, colours, "--method", "coop", "--all-classes", *noise, *QUICK)
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert results["settings"]["loss"] == "gce" and results["settings"]["loss_options"] == {"q": 0.5}
    assert results["noise"]["achieved_rate"] == 0.25
    assert results["test_images"] == {"all": 12}
    losses = {}
    for loss in ("ce", "gce"):
        train(tmp_path / loss, clip_path, colours, "--method", "coop", "--loss", loss, *QUICK)
        losses[loss] = json.loads((tmp_path / loss / "results.json").read_text())["history"][0]["loss"]
    train(tmp_path / "own", clip_path, colours, "--method", "coop", *QUICK)
    own = json.loads((tmp_path / "own" / "results.json").read_text())["history"][0]["loss"]
    assert losses["ce"] == pytest.approx(own, abs=1e-5) and len({round(x, 3) for x in losses.values()}) == 2


@pytest.mark.parametrize("selector", ["top-k", "random-k", "quota"])
def test_train_without_labels(selector, clip_path, data, tmp_path):
    secret = SecretRows(data["train"].data, fingerprint="x")
    for train_rows in (secret, data["train"].select_columns("image")):
        settings = Settings("coop", clip_path, 4, base_novel=False, epochs=2, batch_size=4,
                            supervision=Supervision(unlabelled=selector), cache_features=True)  # fmt: skip
        results = run_experiment(settings, DatasetDict(train=train_rows, test=data["test"]), tmp_path / selector)
        assert results["pseudo_labels"]["source"]["selector"] == selector
        assert results["classes"] == {"all": NAMES} and set(results["accuracy"]) == {"all"}


def test_ensemble_is_one_adapter(clip_path, colours, tmp_path):
    more = ("--all-classes", "--unlabelled", "--ensemble", 2, "--set", "num_virtual_tokens=3", "--cache-features")
    train(tmp_path, clip_path, colours, "--method", "coop", *more, *QUICK, "--lr", 0.1)
    results = json.loads((tmp_path / "results.json").read_text())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["num_contexts"] == 2 and results["trainable_parameters"] == 2 * 3 * 32
    vprompt("evaluate", "--adapter", tmp_path, "--output", tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text())["accuracy"] == results["accuracy"]


def test_labels_from_a_file(clip_path, clip, colours, data, tmp_path):
    table = zero_shot(clip, data["train"], NAMES)
    chosen = threshold(table, NAMES, 0.0)
    chosen.save(tmp_path / "labels.safetensors")
    options = ("--method", "coop", "--all-classes", "--pseudo-labels", tmp_path / "labels.safetensors", *QUICK)
    train(tmp_path / "a", clip_path, colours, *options)
    assert json.loads((tmp_path / "a" / "results.json").read_text())["pseudo_labels"]["images"] == 28
    assert len(PseudoLabels.load(tmp_path / "labels.safetensors")) == 28
    assert "28 that zero-shot chose, without labels" in (tmp_path / "a" / "README.md").read_text()
    other = ("--method", "coop", "--all-classes", "--pseudo-labels", tmp_path / "other.safetensors", *QUICK)
    threshold(table[:, :2], NAMES[:2], 0.0).save(tmp_path / "other.safetensors")
    shown = train(tmp_path / "b", clip_path, colours, *other, code=2)
    assert f"for 2 classes that are not the 4 to train on: label 2 is None there and '{NAMES[2]}' here" in shown


def test_unlabelled_training_images_need_no_labels(clip_path, colours, tmp_path):
    rows = load_dataset("parquet", data_files=colours, split="train")
    nameless = rows.remove_columns("colour").add_column("colour", [None] * 40, feature=Value("string"))
    nameless.to_parquet(tmp_path / "d" / "train.parquet")
    rows.to_parquet(tmp_path / "d" / "test.parquet")
    loaded = load_unlabelled(DataOptions(str(tmp_path / "d"), label_column="colour"))
    assert loaded["train"].column_names == ["image"] and len(loaded["train"]) == 40
    assert loaded["test"].features["label"] == ClassLabel(names=NAMES)
    with pytest.raises(ValueError, match="No row of the split 'train' has a label"):
        load_images(DataOptions(str(tmp_path / "d"), label_column="colour"))
    rows.select_columns("image").to_parquet(tmp_path / "alone.parquet")
    alone = ("--data", tmp_path / "alone.parquet", "--model", clip_path)
    assert list(load_unlabelled(DataOptions(str(tmp_path / "alone.parquet")))) == ["train"]
    assert "Give --class-names" in vprompt("pseudo-label", *alone, "--output", tmp_path / "l.safetensors", code=2)
    (tmp_path / "names.txt").write_text("red\ngreen")
    named = ("--class-names", tmp_path / "names.txt", "--output", tmp_path / "l.safetensors")
    assert "of 40 images" in vprompt("pseudo-label", *alone, *named)
    assert PseudoLabels.load(tmp_path / "l.safetensors").class_names == ("red", "green")
    options = ("--method", "coop", "--all-classes", "--unlabelled", "--output", tmp_path / "out", *alone)
    assert "Give --class-names" in vprompt("train", *options, code=2)
    cut = load_unlabelled(DataOptions(colours, label_column="colour"))
    assert cut["train"].column_names == ["image"] and len(cut["test"]) == 12
    held = load_unlabelled(DataOptions(colours, label_column="colour", val_fraction=0.25))
    assert len(held["train"]) + len(held["validation"]) == len(cut["train"]) and len(held["validation"]) >= 4
    assert held["train"].column_names == ["image"] and held["validation"].features["label"].names == NAMES
    with pytest.raises(ValueError, match="`val_fraction=0.25` holds images of every class out.*Leave it out"):
        load_unlabelled(DataOptions(str(tmp_path / "d"), label_column="colour", val_fraction=0.25))


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (("--noise", "flip"), "noise='flip'"),
        (("--noise-rate", 0.5), "needs a kind of noise"),
        (("--loss", "focal"), "No loss 'focal'"),
        (("--loss", "ce", "--q", 0.7), "The loss ce has no option q"),
        (("--q", 0.7), "need a loss. Received: {'q': 0.7} and no loss"),
        (("--selector", "random-k"), "A selector needs --unlabelled. Received: --selector random-k"),
        (("--unlabelled", "--base-novel"), "use all classes"),
        (("--unlabelled", "--all-classes", "--selector", "best"), "unlabelled='best'"),
        (("--unlabelled", "--all-classes", "--noise", "pair"), "Labels come from one source"),
        (("--ensemble", 2, "--method", "maple"), "An ensemble is of contexts.*MaPLe"),
        (("--noise", "false-positive", "--noise-rate", 0.5, "--shots", 0), "Expected a number of shots"),
        (("--noise", "pair", "--noise-rate", 0.05), "too small for a noise rate"),
        (("--noise", "pair", "--noise-rate", 2), "noise rate above 0 and up to 1 with noise='pair'.*noise_rate=2"),
        (("--noise", "pair"), "noise_rate=0.*Leave the noise out"),
        (("--noise", "false-positive", "--noise-rate", 0.05), "shots are too few for a noise rate of 0.05"),
    ],
)
def test_user_errors(more, match, clip_path, colours, tmp_path):
    import re

    shown = train(tmp_path / "out", clip_path, colours, "--method", "coop", *QUICK, *more, code=2)
    assert re.search(match, shown) and len(shown.strip().splitlines()) == 1


def table_of(data, rank) -> np.ndarray:
    """Probabilities by which the images of a class are its own, the more certain the higher their rank."""
    labels = np.asarray(data["train"]["label"][:])
    places = np.array([np.sum(labels[:row] == label) for row, label in enumerate(labels)])
    certain = 0.5 + 0.05 * rank(places)
    table = np.repeat(((1 - certain) / 3)[:, None], len(NAMES), axis=1).astype(np.float32)
    table[np.arange(len(labels)), labels] = certain
    return table


def test_other_images_with_the_same_labels_are_another_run(clip_path, data, tmp_path):
    path, resumed, kept = tmp_path / "labels.safetensors", [], []
    supervision = Supervision(pseudo_labels=str(path))
    settings = Settings("coop", clip_path, 2, base_novel=False, epochs=2, batch_size=4, supervision=supervision)
    for rank in (lambda place: place, lambda place: place, lambda place: 6 - place):
        chosen = top_k(table_of(data, rank), NAMES, 2)
        chosen.save(path)
        kept.append(chosen)
        unlabelled = DatasetDict(train=data["train"].select_columns("image"), test=data["test"])
        results = run_experiment(settings, unlabelled, tmp_path / "out", quiet=True)
        resumed.append(results["resumed_step"])
        assert results["adapter_bytes"] == (tmp_path / "out" / "adapter_model.safetensors").stat().st_size
    assert np.array_equal(kept[0].labels, kept[2].labels) and not np.array_equal(kept[0].indices, kept[2].indices)
    assert resumed == [0, results["steps"], 0]


@pytest.mark.parametrize(
    ("supervision", "recipe"),
    often(
        [
            (Supervision("pair", 0.25), PTNL),
            (Supervision(), METHODS["coop"].recipe),
            (Supervision(unlabelled="top-k"), PTNL),
        ],
        [(Supervision("pair", 0.25), PTNL)],
    ),
)
def test_coop_takes_ptnls_recipe_where_labels_are_not_plain(supervision, recipe, clip_path, data, tmp_path):
    settings = Settings("coop", clip_path, 4, base_novel=False, supervision=supervision)
    used = run_experiment(settings, data, tmp_path, cached=True, quiet=True)["recipe"]
    assert used == asdict(recipe) | {"epochs": recipe.epochs_for(4)}


@pytest.mark.parametrize("more", (("--cache-features",), ("--unlabelled",), ("--noise", "confusion")))
@pytest.mark.parametrize("method", ("linear", "lora", "vpt-deep"))
def test_image_classifiers_take_no_options_of_clips(method, more, clip_path, colours, tmp_path):
    more = (*more, "--noise-rate", 0.5) if "--noise" in more else more
    shown = train(tmp_path / "out", clip_path, colours, "--method", method, "--all-classes", *QUICK, *more, code=2)
    assert "trains an image classifier" in shown and "take a CLIP" in shown and not (tmp_path / "out").exists()


def test_pixels_of_test_images_are_not_kept(clip_path, data, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(
        "peft_vprompt.experiments.run_state.cache_pixels", lambda rows: kept.append(len(rows)) or list(rows)
    )
    settings = Settings("coop", clip_path, 2, base_novel=False, epochs=2, batch_size=4)
    run_experiment(settings, data, tmp_path, cached=True, quiet=True)
    assert kept == [2 * len(NAMES)]


def test_checking_labels_when_no_image_was_chosen(clip_path, colours, tmp_path):
    data = ("--data", colours, "--label-column", "colour", "--model", clip_path)
    shown = vprompt(
        "pseudo-label", *data, "--output", tmp_path / "l.safetensors", "--min-confidence", 0.9999999, "--check"
    )
    assert "0 of 28 images" in shown and "Right: none of the chosen" in shown
