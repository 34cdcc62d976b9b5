"""The authors' recipes and their learning rates."""

import json
from functools import partial

import pytest
import torch
from peft import get_peft_model
from transformers import TrainingArguments, default_data_collator

from peft_vprompt import VisualPromptConfig
from peft_vprompt.data.epoch_batches import EpochBatches
from peft_vprompt.experiments.models import DEMO_CHANGES
from peft_vprompt.training import RecipeTrainer
from peft_vprompt.training.recipes import Recipe, lr_schedule, lr_scheduler
from peft_vprompt.tuners.base.registry import METHODS
from peft_vprompt.tuners.base.shared_recipes import CLASSIFIER
from tests.support.models import images, tiny_vit


COOP = METHODS["coop"].recipe


@pytest.mark.parametrize(
    ("method", "learning_rate", "batch_size", "epochs"),
    [("coop", 0.002, 32, 200), ("maple", 0.0035, 4, 5), ("ivlp", 0.0035, 4, 5), ("vpt", 0.0025, 4, 5)],
)
def test_published_values(method, learning_rate, batch_size, epochs):
    recipe = METHODS[method].recipe
    assert (recipe.learning_rate, recipe.batch_size, recipe.epochs_for(16)) == (learning_rate, batch_size, epochs)
    assert (recipe.momentum, recipe.weight_decay, recipe.warmup_learning_rate) == (0.9, 5e-4, 1e-5)
    assert recipe.source


@pytest.mark.parametrize(
    ("shots", "epochs"), [(1, 50), (2, 100), (4, 100), (8, 200), (16, 200), (64, 200), (None, 200)]
)
def test_epochs_by_shots(shots, epochs):
    assert COOP.epochs_for(shots) == epochs


def test_schedule_starts_low_and_never_reaches_zero():
    rates = lr_schedule(COOP, 200)
    assert rates[:2] == [1e-5, 0.002]
    assert all(later < earlier for earlier, later in zip(rates[1:], rates[2:], strict=False))
    assert 0 < rates[-1] < 1e-6


def test_schedule_of_the_authors_code(shared):
    golden = json.loads((shared / "golden" / "ptnl" / "lr_schedule.json").read_text())
    recipe = Recipe(
        golden["base_lr"],
        32,
        golden["max_epoch"],
        "golden",
        warmup_epochs=golden["warmup_epochs"],
        warmup_learning_rate=golden["warmup_const"],
    )
    assert lr_schedule(recipe, golden["max_epoch"]) == pytest.approx(golden["lr"], rel=1e-12)


def test_linear_warmup():
    rates = lr_schedule(CLASSIFIER, 100)
    assert rates[:3] == pytest.approx([0, 0.05, 0.1])
    assert rates[10] == max(rates) == 0.5
    assert rates[55] == pytest.approx(0.25)


def test_scheduler_changes_between_epochs_only():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=COOP.learning_rate)
    scheduler = lr_scheduler(optimizer, COOP, epochs=5, steps_per_epoch=3)
    seen = []
    for _ in range(15):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([rate for rate in lr_schedule(COOP, 5) for _ in range(3)])


def test_override_keeps_what_is_none_and_says_what_changed():
    changed = COOP.override(learning_rate=0.1, batch_size=None, epochs=3)
    assert (changed.learning_rate, changed.batch_size, changed.epochs_for(16)) == (0.1, 32, 3)
    assert changed.source.endswith("changed by the user: epochs, learning_rate")
    assert COOP.override(learning_rate=None) == COOP


@pytest.mark.parametrize(
    "value", [{"epochs": 0}, {"learning_rate": -1.0}, {"batch_size": 0}, {"learning_rate": float("nan")}]
)
def test_override_refuses_what_is_not_positive(value):
    with pytest.raises(ValueError, match=f"`{next(iter(value))}` must be greater than 0"):
        COOP.override(**value)


def test_schedule_needs_an_epoch():
    with pytest.raises(ValueError, match="epochs=0"):
        lr_schedule(COOP, 0)


def test_demo_changes_fit_the_methods():
    from peft_vprompt.experiments.models import METHODS

    assert set(DEMO_CHANGES) <= set(METHODS)


def test_the_metric_and_the_collator_are_the_callers_where_given(tmp_path):
    rows = [{"pixel_values": images()[0], "labels": 0}] * 2
    options = {
        "model": get_peft_model(tiny_vit(), VisualPromptConfig(num_virtual_tokens=2)),
        "args": TrainingArguments(tmp_path, report_to="none", use_cpu=True),
        "eval_dataset": rows,
    }
    collate = partial(default_data_collator, return_tensors="pt")
    given = RecipeTrainer(
        EpochBatches(2, 2, seed=0), compute_metrics=lambda _: {"own": 3.0}, data_collator=collate, **options
    )
    assert given.evaluate()["eval_own"] == 3.0 and given.data_collator is collate
    assert "eval_accuracy" in RecipeTrainer(EpochBatches(2, 2, seed=0), **options).evaluate()
