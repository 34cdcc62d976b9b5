"""What is trained depends on nothing that only looks: evaluation, workers, checkpoints, logs, progress, probes."""

from dataclasses import replace

import pytest
import torch
from datasets import DatasetDict
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import CLIPImageProcessorPil, Trainer, TrainingArguments

from peft_vprompt import ContextOptConfig, VisualPromptConfig
from peft_vprompt.data import AugmentedRows, DataOptions, EvalTransform, TrainTransform, load_images
from peft_vprompt.experiments.run import run_experiment
from peft_vprompt.experiments.settings import Settings
from peft_vprompt.experiments.supervision import Supervision
from peft_vprompt.training.evaluation import EvalSet, measure_beside_zero_shot
from peft_vprompt.training.recipes import Recipe
from peft_vprompt.training.trainer import train
from tests.support.callbacks import Kill
from tests.support.labelled_images import pictures
from tests.support.models import CLASS_NAMES, IMAGE_SIZE, often, tiny_clip, tiny_vit


pytestmark = pytest.mark.usefixtures("forgetful")

SIZE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
PROCESSOR = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=SIZE)
RECIPE = Recipe(learning_rate=0.1, batch_size=4, epochs=3, source="test")

#: What must not change what is trained, as arguments of `run_experiment`.
LOOKING = {
    "watch": {"watch": True},
    "all": {"watch": True, "workers": 2, "gradients": True, "checkpoints": False, "quiet": True, "compare": False},
}
#: Runs with random augmentation, dropout, cached views.
RUNS = {
    "augmentation": {"method": "coop", "config": {"num_virtual_tokens": 2}},
    "dropout": {"method": "vpt", "config": {"prompt_dropout": 0.5, "num_virtual_tokens": 2}},
    "views": {"method": "coop", "config": {"num_virtual_tokens": 2}, "cache_features": True, "views": 3},
}


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def data(colours) -> DatasetDict:
    return load_images(DataOptions(colours, label_column="colour"))


@pytest.fixture
def settings(clip_path, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def make(**changes) -> Settings:
        noise = Supervision("symmetric", 0.25)
        recipe = {"epochs": 3, "batch_size": 4, "learning_rate": 0.1}
        return Settings(model=clip_path, shots=4, base_novel=False, supervision=noise, **recipe, **changes)

    return make


@pytest.mark.parametrize("run", often(RUNS, ["augmentation"]))
def test_a_run_does_not_depend_on_who_looks(run, settings, data, tmp_path):
    changes = RUNS[run]
    run_experiment(settings(**changes), data, tmp_path / "plain")
    expected = weights(tmp_path / "plain")
    for name, options in LOOKING.items():
        run_experiment(settings(**changes), data, tmp_path / name, **options)
        assert same(weights(tmp_path / name), expected), name
    run_experiment(replace(settings(**changes), seed=2), data, tmp_path / "other")
    assert not same(weights(tmp_path / "other"), expected)


@pytest.mark.parametrize("method", ["vpt"])
def test_a_classifier_does_not_depend_on_who_looks(method, vit_path, settings, data, tmp_path):
    config = {"prompt_dropout": 0.5} if method == "vpt" else {}
    run = replace(
        settings(method=method, config=config), model=vit_path, supervision=Supervision(), learning_rate=0.01
    )
    for name, options in {"plain": {}, **LOOKING}.items():
        run_experiment(run, data, tmp_path / name, **options | {"gradients": False})
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "watch"))
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "all"))


def prompts(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def vit():
    torch.manual_seed(0)
    return get_peft_model(tiny_vit(), VisualPromptConfig(num_virtual_tokens=2, prompt_dropout=0.5))


@pytest.mark.parametrize("workers", [0, 1])
def test_resumed_is_uninterrupted_with_augmentation_dropout_and_evaluation(workers, tmp_path):
    rows, test = (
        pictures(12).with_transform(TrainTransform(PROCESSOR)),
        pictures(3).with_transform(EvalTransform(PROCESSOR)),
    )
    whole, stopped, resumed = vit(), vit(), vit()
    train(whole, rows, RECIPE, tmp_path / "whole", epochs=3)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, rows, RECIPE, tmp_path / "b", test, epochs=3, callbacks=[Kill(7)], workers=workers)
    torch.rand(5)
    assert train(resumed, rows, RECIPE, tmp_path / "b", epochs=3, workers=workers).resumed_step == 6
    assert same(prompts(whole), prompts(resumed))
    assert not same(prompts(whole), prompts(vit()))


def test_a_row_is_augmented_by_seed_epoch_and_place_alone():
    rows = AugmentedRows(pictures(4), TrainTransform(PROCESSOR), seed=3)
    first = torch.stack([row["pixel_values"] for row in rows.__getitems__([0, 1, 2, 3])])
    torch.manual_seed(9)
    assert torch.equal(rows[2]["pixel_values"], first[2]) and rows[2]["labels"] == pictures(4)[2]["label"]
    assert torch.equal(rows.__getitems__([3, 0])[1]["pixel_values"], first[0])
    others = [AugmentedRows(pictures(4), TrainTransform(PROCESSOR), seed=4)[2], rows.with_seed(3)[1]]
    rows.set_epoch(1)
    assert not any(torch.equal(row["pixel_values"], first[2]) for row in [rows[2], *others])
    rows.set_epoch(0)
    assert torch.equal(rows[2]["pixel_values"], first[2])


def test_the_stock_trainer_tells_the_rows_their_epoch(tmp_path):
    rows, seen = AugmentedRows(pictures(6), TrainTransform(PROCESSOR)), []
    rows.transform = lambda batch, generators: seen.append(rows.epoch) or TrainTransform(PROCESSOR)(batch, generators)
    arguments = TrainingArguments(
        str(tmp_path), num_train_epochs=3, per_device_train_batch_size=6, report_to="none", save_strategy="no",
        remove_unused_columns=False, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    Trainer(vit(), arguments, train_dataset=rows).train()
    assert seen == [0, 1, 2]


def test_evaluation_leaves_the_random_numbers_alone(tokenizer_path):
    config = ContextOptConfig(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path)
    model = get_peft_model(tiny_clip(), config)
    before = torch.get_rng_state()
    sets = {"all": EvalSet(pictures(6).with_transform(EvalTransform(PROCESSOR)), CLASS_NAMES)}
    measure_beside_zero_shot(model, sets)
    assert torch.equal(torch.get_rng_state(), before)
