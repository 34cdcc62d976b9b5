"""What a recipe makes of optimizer, schedule and length, against the authors' numbers; the recipe's own checks."""

import json
import math
import typing
from dataclasses import replace

import pytest
import torch
from transformers import CLIPImageProcessorPil, TrainerCallback

from peft_vprompt.data import TrainTransform
from peft_vprompt.training import Recipe, lr_schedule, lr_scheduler, make_optimizer, train
from peft_vprompt.training.callbacks import named_trained_values
from tests.support.callbacks import Kill


CLASSES, SIZE = 3, 16
#: CLIP-LoRA's, but for the number of steps.
LORA = Recipe(
    learning_rate=2e-4,
    batch_size=4,
    epochs=None,
    steps_per_shot=500,
    source="MaxZanella/CLIP-LoRA",
    optimizer="adamw",
    weight_decay=1e-2,
    schedule="cosine_per_step",
    min_learning_rate=1e-6,
    warmup_epochs=0,
)
#: What the golden schedules call the lowest rate of each warm-up.
LOWEST = {"constant": "warmup_cons_lr", "linear": "warmup_min_lr"}
SGD = Recipe(learning_rate=0.05, batch_size=4, epochs=4, source="test")
MIXED = {
    "adamw by step": LORA.override(learning_rate=0.01, epochs=4),
    "adam by epoch": Recipe(learning_rate=0.01, batch_size=4, epochs=4, source="test", optimizer="adam"),
}


@pytest.fixture(scope="module")
def rows():
    """17 noisy images: four full batches of four."""
    generator = torch.Generator().manual_seed(1)
    return [
        {"pixel_values": torch.randn(3, SIZE, SIZE, generator=generator) + i % CLASSES, "labels": i % CLASSES}
        for i in range(17)
    ]


class Rates(list, TrainerCallback):
    """The learning rate that each step is made with."""

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.append(optimizer.param_groups[0]["lr"])


def values(model):
    return {name: value.detach().clone() for name, value in named_trained_values(model).items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def golden(shared, case):
    return json.loads((shared / "golden/field" / f"{case}.json").read_text())


def rates_of(recipe, epochs, steps_per_epoch=1, steps=None, count=None):
    """The rates that an optimizer has in a loop which steps the scheduler after every batch."""
    optimizer = make_optimizer(torch.nn.Linear(1, 1), recipe)
    scheduler = lr_scheduler(optimizer, recipe, epochs, steps_per_epoch, steps)
    seen = []
    for _ in range(count or steps or epochs * steps_per_epoch):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


class TestOptimizers:
    @staticmethod
    def stepped(recipe, gradients):
        """The number 2 after steps with these gradients."""
        layer = torch.nn.Linear(1, 1, bias=False).double()
        layer.weight.data.fill_(2.0)
        optimizer = make_optimizer(layer, recipe)
        for gradient in gradients:
            layer.weight.grad = torch.full_like(layer.weight, gradient)
            optimizer.step()
        return layer.weight.item()

    @staticmethod
    def expected(gradients, rate, decay, betas, eps, decoupled):
        value, first, second = 2.0, 0.0, 0.0
        for time, gradient in enumerate(gradients, 1):
            gradient += 0 if decoupled else decay * value
            value -= rate * decay * value if decoupled else 0
            first = betas[0] * first + (1 - betas[0]) * gradient
            second = betas[1] * second + (1 - betas[1]) * gradient**2
            corrected = math.sqrt(second / (1 - betas[1] ** time)) + eps
            value -= rate * first / (1 - betas[0] ** time) / corrected
        return value

    @pytest.mark.parametrize("optimizer", ["adam", "adamw"])
    def test_decay_is_coupled_for_adam_and_decoupled_for_adamw(self, optimizer):
        numbers = {"weight_decay": 0.3, "betas": (0.8, 0.95), "eps": 0.01}
        recipe = Recipe(learning_rate=0.1, batch_size=1, epochs=1, source="test", optimizer=optimizer, **numbers)
        gradients = [0.5, -0.2, 0.1]
        expected = self.expected(gradients, 0.1, 0.3, (0.8, 0.95), 0.01, optimizer == "adamw")
        assert self.stepped(recipe, gradients) == pytest.approx(expected, rel=1e-12)

    def test_sgd_has_coupled_decay_and_momentum(self):
        recipe = Recipe(learning_rate=0.1, batch_size=1, epochs=1, source="test", weight_decay=0.3, momentum=0.5)
        first = 0.5 + 0.3 * 2
        value = 2 - 0.1 * first
        value -= 0.1 * (0.5 * first - 0.2 + 0.3 * value)
        assert self.stepped(recipe, [0.5, -0.2]) == pytest.approx(value, rel=1e-12)

    def test_what_is_frozen_is_not_given(self, build):
        model = build()
        optimizer = make_optimizer(model, LORA)
        given = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        assert given == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


class TestSchedules:
    @pytest.mark.parametrize("case", ["clip_lora_r2_qkv_both", "twosfs_ln_both", "tip_adapter_vit"])
    def test_by_step_of_the_authors_code(self, case, shared):
        """CLIP-LoRA over 10 steps, a stage of 2SFS over 5, both to 1e-6; Tip-Adapter-F over 10 steps to 0."""
        optimizer = golden(shared, case)["optimizer"]
        rates = optimizer.get("lrs") or optimizer["lrs_stage1"]
        recipe = LORA.override(learning_rate=rates[0], steps=5 if "lrs_stage1" in optimizer else 10)
        if "eta_min 0" in optimizer["schedule"]:
            recipe = recipe.override(min_learning_rate=0.0)
        # Epochs of three steps, the last cut short, are nothing to a schedule by step.
        epochs = math.ceil(recipe.steps / 3)
        assert rates_of(recipe, epochs, 3, recipe.steps, count=len(rates)) == pytest.approx(rates, rel=1e-6)

    def test_by_epoch_of_dassl(self, shared):
        for schedule in golden(shared, "dassl_lr_schedule")["schedules"]:
            recipe = Recipe(
                learning_rate=schedule["lr"],
                batch_size=1,
                epochs=schedule["max_epoch"],
                source="golden",
                warmup={"constant": "constant", "linear": "linear_dassl"}[schedule["warmup_type"]],
                warmup_epochs=max(schedule["warmup_epoch"], 0),
                warmup_learning_rate=schedule[LOWEST[schedule["warmup_type"]]],
            )
            rates = lr_schedule(recipe, schedule["max_epoch"])
            assert rates == pytest.approx(schedule["lr_per_epoch"][: len(rates)], rel=1e-6, abs=1e-11)

    def test_by_epoch_the_linear_warmup_of_dassl(self):
        recipe = SGD.override(warmup_epochs=2, epochs=5)
        rates = lr_schedule(replace(recipe, warmup="linear_dassl"), 5)
        cosine = [0.025 * (1 + math.cos(math.pi * time / 5)) for time in range(3)]
        assert rates == pytest.approx([1e-5, 0.025, *cosine])

    def test_by_epoch_without_warmup_of_promptsrc(self, shared):
        expected = golden(shared, "promptsrc_4x4_d3")["traj_lr"]
        recipe = Recipe(learning_rate=0.0025, batch_size=4, epochs=5, source="golden", warmup_epochs=0)
        assert rates_of(recipe, 5, steps_per_epoch=2) == pytest.approx(expected, rel=1e-9)

    def test_by_step_a_warmup_is_as_many_steps_as_its_epochs(self):
        recipe = LORA.override(warmup_epochs=1, warmup_learning_rate=3e-5)
        rates = lr_schedule(recipe, 4, steps_per_epoch=3)
        assert rates[:4] == pytest.approx([3e-5] * 3 + [2e-4])
        assert len(rates) == 12 and rates[-1] == pytest.approx(1e-6 + 1.99e-4 / 2 * (1 + math.cos(math.pi * 8 / 12)))

    def test_the_minimum_holds_by_epoch_too(self):
        recipe = SGD.override(min_learning_rate=0.01, warmup_epochs=0)
        assert lr_schedule(recipe, 2) == pytest.approx([0.05, 0.03])

    def test_the_trainer_steps_with_these_rates(self, build, rows, tmp_path):
        for name, (recipe, epochs, steps) in {
            "by step": (LORA, None, 10),
            "by epoch": (SGD, None, 10),
            "whole epochs": (MIXED["adamw by step"], 3, None),
        }.items():
            rates = Rates()
            length = {"epochs": epochs, "steps": steps}
            train(build(), rows, recipe, tmp_path / name, checkpoints=False, callbacks=[rates], **length)
            assert rates == pytest.approx(rates_of(recipe, 3, 4, steps)), name


class TestTraining:
    @pytest.mark.parametrize("name", MIXED)
    def test_a_killed_run_goes_on_bit_for_bit(self, name, build, rows, tmp_path):
        def run(folder, *callbacks):
            model = build()
            return train(model, rows, MIXED[name], tmp_path / folder, epochs=4, callbacks=callbacks), values(model)

        _, whole = run("whole")
        with pytest.raises(KeyboardInterrupt):
            run("killed", Kill(10))
        result, resumed = run("killed")
        assert (result.resumed_step, result.steps) == (8, 16)
        assert same(whole, resumed) and not same(whole, values(build()))

    def test_a_killed_run_of_steps_goes_on_and_ends_with_the_last(self, build, rows, tmp_path):
        def run(folder, *callbacks):
            model = build()
            return train(model, rows, LORA, tmp_path / folder, steps=11, callbacks=callbacks), values(model)

        result, whole = run("whole")
        assert result.steps == 11
        with pytest.raises(KeyboardInterrupt):
            run("killed", Kill(10))
        result, resumed = run("killed")
        assert (result.resumed_step, result.steps) == (8, 11)
        assert same(whole, resumed)
        result, again = run("killed")
        assert (result.resumed_step, result.steps) == (11, 11)
        assert same(whole, again)

    def test_fewer_steps_than_an_epoch(self, build, rows, tmp_path):
        first, second = build(), build()
        assert train(first, rows, LORA, tmp_path, steps=2).steps == 2
        result = train(second, rows, LORA, tmp_path, steps=2)
        assert (result.resumed_step, result.steps) == (2, 2)
        assert same(values(first), values(second))

    @pytest.mark.parametrize("length", [{}, {"epochs": 1, "steps": 2}])
    def test_one_length(self, length, build, rows, tmp_path):
        with pytest.raises(ValueError, match="Expected a number of epochs or of steps. Received: epochs="):
            train(build(), rows, SGD, tmp_path, **length)

    def test_a_method_brings_its_callbacks(self, build, rows, tmp_path):
        """As ProGrad, which changes gradients before the step; here all of them to zero."""

        class NoGradients(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.grad.zero_()

        model = build()
        before = values(model)
        model.method_callbacks = lambda: [NoGradients()]
        train(model, rows, SGD.override(weight_decay=0.0), tmp_path, epochs=2, checkpoints=False)
        assert same(values(model), before)


class TestRecipe:
    def test_steps_by_shots(self):
        assert (LORA.steps_for(1), LORA.steps_for(16), LORA.epochs_for(16)) == (500, 8000, None)
        assert SGD.steps_for(16) is None and LORA.override(steps=7).steps_for(None) == 7

    def test_all_images_are_no_number_of_shots(self):
        with pytest.raises(ValueError, match="steps_per_shot=500.*Received: all images. Override"):
            LORA.steps_for(None)

    def test_override_replaces_the_length_in_its_unit(self):
        by_epoch = LORA.override(epochs=3)
        assert (by_epoch.epochs_for(16), by_epoch.steps_for(16)) == (3, None)
        by_step = SGD.override(steps=30)
        assert (by_step.epochs_for(16), by_step.steps_for(16)) == (None, 30)
        assert by_step.source == "test; changed by the user: steps"

    def test_crops_are_those_of_the_transform(self):
        processor = CLIPImageProcessorPil(size={"height": SIZE, "width": SIZE})
        for crop in typing.get_args(typing.get_type_hints(Recipe)["crop"]):
            TrainTransform(processor, crop, SGD.override(crop=crop).crop_scale)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"epochs": None}, "exactly one of epochs, steps, steps_per_shot. Received: epochs=None, steps=None"),
            ({"steps": 3}, "exactly one of .*epochs=4, steps=3"),
            ({"epochs": 2.5}, "Expected epochs to be an integer >= 1 or a list, each .*Received: epochs=2.5"),
            ({"epochs": ((4, 10), (1, 5))}, "Expected epochs by ascending shots"),
            ({"epochs": ((4, 0),)}, r"Expected each of epochs to be an integer >= 1. Received: epochs=\(\(4, 0\),\)"),
            ({"epochs": None, "steps_per_shot": 0}, "Expected steps_per_shot to be an integer >= 1"),
            ({"batch_size": 0}, "Expected batch_size to be an integer >= 1"),
            ({"learning_rate": 0.0}, "Expected learning_rate to be a finite number > 0. Received: learning_rate=0.0"),
            ({"min_learning_rate": 0.1}, "Expected min_learning_rate to be less than learning_rate=0.05"),
            ({"warmup_epochs": -1}, "Expected warmup_epochs to be an integer >= 0"),
            ({"warmup_learning_rate": math.inf}, "Expected warmup_learning_rate to be a finite number >= 0"),
            ({"momentum": 1.0}, r"Expected momentum in \[0, 1\)"),
            ({"weight_decay": -1}, "Expected weight_decay to be a finite number >= 0"),
            ({"eps": True}, "Expected eps to be a finite number >= 0. Received: eps=True"),
            ({"betas": 0.9}, "Expected betas to be a list of 2 .*Received: betas=0.9"),
            ({"betas": (0.9, 1.0)}, r"Expected each of betas in \[0, 1\)"),
            ({"betas": {0.9, 0.8}}, "Expected betas to be a list of 2"),
            ({"first_stage": 1.0}, r"Expected first_stage in \(0, 1\)"),
            ({"crop_scale": (0.5, 0.1)}, "Expected crop_scale to ascend in"),
            ({"optimizer": "lamb"}, "Expected optimizer to be one of .*optimizer='lamb'"),
            ({"schedule": "step"}, "Expected schedule to be one of .*schedule='step'"),
            ({"warmup": "none"}, "Expected warmup to be one of"),
            ({"crop": "center"}, "Expected crop to be one of"),
            ({"averaging": "ema"}, "Expected averaging to be Averaging or None. Received: averaging='ema'"),
        ],
    )
    def test_refused(self, fields, message):
        with pytest.raises(ValueError, match=message):
            Recipe(**{"learning_rate": 0.05, "batch_size": 4, "epochs": 4, "source": "test"} | fields)
