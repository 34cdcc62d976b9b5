"""The card of an adapter: what it says of a run, its data as the Hub reads them, its snippet, and cards edited by hand."""

from dataclasses import replace

import pytest
import torch
from huggingface_hub import ModelCard

from peft_vprompt import AutoPeftModelForImageClassification
from peft_vprompt.experiments.cards import card_details
from peft_vprompt.experiments.models import METHODS, build_model
from peft_vprompt.experiments.settings import Settings
from peft_vprompt.peft_models.card_details import CardDetails, Score
from peft_vprompt.peft_models.model_card import render_model_card
from tests.support.finished_runs import run_snippet
from tests.support.models import CLASS_NAMES


SCORES = (
    Score("base", "base: trained on", 81.5, 70.25, 50.0),
    Score("novel", "novel: never trained on", 60.0, 65.0, 50.0),
)
DETAILS = CardDetails(
    data="me/birds", data_set="me/birds", split="test", scores=SCORES, training={"Seed": "1"}, versions={"torch": "2.9"},
    language="en", license="mit",
)  # fmt: skip
#: What `results.json` says, as far as a card reads it.
REPORT = {
    "settings": {"method": "coop", "shots": 4, "seed": 3, "precision": "float32", "loss": None, "model": "/home/alice/clip",
                 "config": {"num_virtual_tokens": 2, "tokenizer_name_or_path": "/home/alice/words"},
                 "supervision": {"noise": "symmetric", "noise_rate": 0.25}},
    "recipe": {"optimizer": "sgd", "learning_rate": 0.002, "weight_decay": 5e-4, "batch_size": 32, "epochs": 50,
               "schedule": "cosine_per_epoch", "crop": "random_resized_crop"},
    "steps": 100, "train_seconds": 61.7, "model_commit": None,
    "data": {"path": "../../home/alice/birds", "test_split": "test"},
    "classes": {"base": ["a"], "novel": ["b"]}, "accuracy": {"base": 80.0, "novel": 50.0, "hm": 61.54},
    "zero_shot": None, "chance": {"base": 50.0, "novel": 50.0, "hm": 50.0},
    "environment": {"machine": {"cpu": "A Processor", "gpus": []}, "versions": {"torch": "2.9", "peft": "0.21"}},
}  # fmt: skip


@pytest.fixture
def model(clip_path):
    return build_model(clip_path, "coop", CLASS_NAMES, num_virtual_tokens=2).model


def saved_card(model, folder) -> ModelCard:
    model.save_pretrained(folder)
    return ModelCard.load(folder / "README.md")


def test_the_data_are_read_back_as_they_were_said(model, tmp_path):
    model.card_details = DETAILS
    card = saved_card(model, tmp_path)
    again = ModelCard(f"---\n{card.data.to_yaml()}\n---\n")
    for data in (card.data, again.data):
        assert data.eval_results == DETAILS.results("zero-shot-image-classification")
        assert (data.language, data.license, data.datasets) == ("en", "mit", ["me/birds"])
        assert (data.library_name, data.pipeline_tag) == ("peft", "zero-shot-image-classification")
        assert {"peft_vprompt", "prompt-learning"} <= set(data.tags)
    assert [result.metric_value for result in card.data.eval_results] == [0.815, 0.6]
    row = "| base: trained on | 81.50 | 70.25 | 50.00 |"
    assert row in card.text and "- Seed: 1" in card.text and "- torch 2.9" in card.text


def test_what_nobody_said_is_not_in_it(model, tmp_path):
    card = saved_card(model, tmp_path)
    said = card.data.to_dict()
    assert not said.keys() & {"model-index", "language", "license", "datasets", "base_model_relation"}
    assert "## Results" not in card.text and "- PEFT " in card.text


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ("mrpo", "- The method: Seo and Lee, Multi-modal Read-only Prompt Optimization, Kookmin University."),
        ("maple", "CVPR 2023. https://arxiv.org/abs/2210.03117"),
    ],
)
def test_a_paper_is_cited_with_its_own_address_or_none(method, line, clip_path):
    card = render_model_card(build_model(clip_path, method, CLASS_NAMES).model, True, DETAILS)
    assert f"{line}\n- The software:" in card


def test_only_the_first_classes_are_listed(clip_path):
    names = [f"kind {index}" for index in range(30)]
    text = render_model_card(build_model(clip_path, "coop", names).model)
    assert "30 classes, the first 20 of them: kind 0," in text and "kind 19, ..." in text and "kind 20" not in text


@pytest.mark.parametrize("method", ["maple", "cocoop", "rpo", "classifier-r"])
def test_the_snippet_runs_as_it_stands(method, clip_path, tmp_path, monkeypatch):
    model = build_model(clip_path, method, CLASS_NAMES).model
    model.save_pretrained(tmp_path / "adapter")
    scope = run_snippet((tmp_path / "adapter" / "README.md").read_text(), tmp_path / "adapter", monkeypatch)
    assert list(scope["scores"]) == CLASS_NAMES and sum(scope["scores"].values()) == pytest.approx(1, abs=1e-5)


def test_the_snippet_of_the_embedded_model_runs_as_it_stands(tmp_path, monkeypatch):
    """Also as it is published, as everybody has that model."""
    model = build_model(None, "coop", CLASS_NAMES).model
    with model.publishing():
        model.save_pretrained(tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "base = CLIPModel.from_pretrained(demo_model_path())" in card
    scope = run_snippet(card, tmp_path / "adapter", monkeypatch)
    assert torch.equal(scope["model"].encode_classes(), model.eval().encode_classes())


def test_a_card_edited_by_hand_keeps_its_text_and_gets_new_results(model, tmp_path):
    model.card_details = DETAILS
    saved_card(model, tmp_path)
    file = tmp_path / "README.md"
    file.write_text(
        file.read_text().replace("## Limits", "Mine.\n\n## Limits").replace("license: mit", "license: gpl-3.0")
    )
    edited = ModelCard.load(file).text.strip()
    model.card_details = replace(DETAILS, scores=(replace(SCORES[0], value=90.0),))
    for _ in range(2):
        card = saved_card(model, tmp_path)
        assert card.text.strip() == edited and card.data.license == "gpl-3.0"
        assert [result.metric_value for result in card.data.eval_results] == [0.9]


def test_no_path_of_a_run_is_in_its_card(model):
    details = card_details(REPORT, language="en")
    text = render_model_card(model, True, details, repo_id="me/a", revision="v1")
    assert "alice" not in text and "home" not in text
    assert 'PeftModel.from_pretrained(base, "me/a", revision="v1")' in text
    for said in (
        "4 of each class, with symmetric noise in 25 % of the labels", "num_virtual_tokens=2", "62 s on A Processor",
        "SGD, learning rate 0.002, weight decay 0.0005, batches of 32, 50 epochs, 100 steps, cosine per epoch",
        "1, and 1 that were kept back to test on", "| hm: harmonic mean of both | 61.54 | 50.00 |",
    ):  # fmt: skip
        assert said in text


@pytest.mark.parametrize(
    ("data", "name", "data_set"),
    [
        (None, "the embedded task of peft_vprompt", None),
        ({"path": "me/birds", "test_split": "test"}, "me/birds", "me/birds"),
        ({"path": "./birds", "test_split": "test"}, None, None),
        ({"path": "./cub", "test_split": "test", "benchmark": "cub"}, "cub", None),
        ({"path": "s3://bucket/birds", "test_split": "test"}, None, None),
    ],
)
def test_names_of_data(data, name, data_set):
    details = card_details(REPORT | {"data": data})
    assert (details.data, details.data_set) == (name, data_set)


def test_settings_have_what_a_card_reads():
    assert REPORT["settings"].keys() <= Settings.__dataclass_fields__.keys() and "coop" in METHODS
    assert hasattr(AutoPeftModelForImageClassification, "from_pretrained")
