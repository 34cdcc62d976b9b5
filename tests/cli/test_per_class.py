"""`vprompt evaluate` says the mean over classes where they differ in size; the Trainer gets it by one argument."""

import json

import pytest
from datasets import Dataset
from peft import PeftModel
from sklearn.metrics import recall_score
from transformers import CLIPModel, Trainer, TrainingArguments

from peft_vprompt.data import DataOptions, EvalTransform, load_split
from peft_vprompt.experiments.models import load_adapter
from peft_vprompt.training import make_compute_metrics, predict_logits
from tests.support.command_line import QUICK, train, vprompt


@pytest.fixture(scope="module")
def adapter(clip_path, colours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    train(folder, clip_path, colours, "--method", "coop", *QUICK)
    return folder


def evaluated(adapter, data):
    file = adapter.with_name("found.json")
    said = vprompt("evaluate", "--adapter", adapter, "--data", data, "--label-column", "colour", "--output", file)
    return json.loads(file.read_text()), said


def test_classes_of_one_size_have_one_number(adapter, colours):
    found, said = evaluated(adapter, colours)
    assert found["per_class"] == pytest.approx(found["accuracy"]) and "mean over classes" not in said
    results = json.loads((adapter / "results.json").read_text())
    assert results["per_class"] == pytest.approx(results["accuracy"])


def test_classes_of_different_size_have_two(adapter, clip_path, colours, tmp_path):
    chosen = [10 * colour + image for colour in range(4) for image in range(2 * colour + 1)]  # of ten of each
    unequal = Dataset.from_parquet(colours).select(chosen)
    unequal.to_parquet(tmp_path / "unequal.parquet")
    found, said = evaluated(adapter, tmp_path / "unequal.parquet")
    bundle = load_adapter(adapter, clip_path)
    images = load_split(DataOptions(tmp_path / "unequal.parquet", label_column="colour"))
    assert images.features["label"].names == bundle.model.class_names
    logits, labels = predict_logits(bundle.model, images.with_transform(EvalTransform(bundle.image_processor)))
    expected = 100 * recall_score(labels, logits.argmax(-1), average="macro")
    assert found["per_class"]["all"] == pytest.approx(expected) != found["accuracy"]["all"]
    assert f"{found['accuracy']['all']:.2f} %, mean over classes {expected:.2f} %; zero-shot" in said
    # The stock Trainer.
    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(clip_path), str(adapter))
    arguments = TrainingArguments(tmp_path / "t", report_to="none", remove_unused_columns=False, use_cpu=True)
    rows = images.with_transform(EvalTransform(bundle.image_processor))
    metrics = Trainer(model, arguments, eval_dataset=rows, compute_metrics=make_compute_metrics()).evaluate()
    assert metrics["eval_per_class"] == pytest.approx(expected)
    assert metrics["eval_accuracy"] == pytest.approx(found["accuracy"]["all"]) and 0 < metrics["eval_ece"] < 100
