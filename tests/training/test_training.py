"""Building models by method name, training by recipe, resuming, evaluating, writing results."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rich
import torch
from transformers import TrainerCallback, TrainingArguments

from peft_vprompt.errors import FolderInUseError, OutputNotFiniteError, TrainingDivergedError
from peft_vprompt.experiments import reports
from peft_vprompt.experiments.adapter_classes import require_moves
from peft_vprompt.experiments.models import METHODS, build_model, load_adapter
from peft_vprompt.training import trainer
from peft_vprompt.training.checkpoints import SEAL, checkpoint_folder, last_checkpoint
from peft_vprompt.training.eval_classes import among_own_classes, own_classes
from peft_vprompt.training.evaluation import (
    EvalSet,
    accuracy,
    evaluate,
    harmonic_mean,
    predict_logits,
    set_class_names,
)
from peft_vprompt.training.recipes import Recipe, lr_schedule
from peft_vprompt.training.trainer import train
from peft_vprompt.utils import io
from peft_vprompt.utils.environment import environment
from peft_vprompt.utils.processes import Processes
from tests.support.callbacks import Diverge, Kill
from tests.support.models import CLASS_NAMES, NEW_NAMES, images, often
from tests.support.peft_behaviours import SUPPORT
from tests.support.rows import every_row


TRAINED = [name for name, method in METHODS.items() if method.recipe]
PARTS = ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", SEAL]
#: Methods that start from the model's own weights, whatever the seed.
NOT_DRAWN = {"classifier-c", "clap", "zs-lp", "tenc-ft", "ln-tuning", "2sfs", "class-name", "kgcoop", "prograd"}
QUICK = Recipe(learning_rate=0.05, batch_size=4, epochs=3, source="test")
LONG = replace(QUICK, learning_rate=0.01, batch_size=6)


@pytest.fixture
def rows():
    """18 noisy images, each with the colour of its class."""
    colours = 2 * torch.randn(len(CLASS_NAMES), 3, 1, 1, generator=torch.Generator().manual_seed(1))
    return [{"pixel_values": x + colours[index % 5], "labels": index % 5} for index, x in enumerate(images(18))]


def prompts(model):
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class Snapshots(TrainerCallback):
    """What was trained, before the first epoch and after each."""

    def __init__(self):
        self.before, self.after = None, {}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.before = prompts(model)

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        self.after[round(state.epoch)] = prompts(model)


def batch_sizes(model) -> list[int]:
    """How many images each call of the model gets from now on."""
    sizes = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    return sizes


class TestBuild:
    @pytest.mark.parametrize("method", every_row())
    def test_every_method_classifies(self, method, clip_path):
        bundle = build_model(clip_path, method, CLASS_NAMES, **SUPPORT.get(method, {}))
        assert bundle.model(pixel_values=images()).logits.shape == (4, len(CLASS_NAMES))
        assert bundle.trainable_parameters == sum(value.numel() for value in prompts(bundle.model).values())
        assert (bundle.trainable_parameters > 0) == (method != "tip-adapter")
        # Fine-tuning baselines train on any model by the recipe of classifiers.
        row = METHODS[method]
        assert bundle.recipe is (row.classifier_recipe if row.is_baseline else row.recipe)

    @pytest.mark.parametrize("method", every_row(TRAINED))
    def test_seed_decides_the_first_prompts(self, method, clip_path):
        told = SUPPORT.get(method, {})
        built = (build_model(clip_path, method, CLASS_NAMES, seed, **told) for seed in (1, 1, 2))
        first, again, other = (prompts(bundle.model) for bundle in built)
        assert same(first, again)
        assert same(first, other) == (method in NOT_DRAWN)

    def test_published_depth_is_cut_to_the_model(self, clip_path):
        config = build_model(clip_path, "maple", CLASS_NAMES).model.peft_config["default"]
        assert config.prompt_depth == 3

    def test_options_replace_defaults(self, clip_path):
        model = build_model(clip_path, "coop", CLASS_NAMES, num_virtual_tokens=4).model
        assert model.peft_config["default"].num_virtual_tokens == 4

    def test_depth_asked_for_is_not_cut(self, clip_path):
        with pytest.raises(ValueError, match="prompt_depth"):
            build_model(clip_path, "maple", CLASS_NAMES, prompt_depth=4)

    def test_unknown_method(self, clip_path):
        with pytest.raises(ValueError, match="No method 'adalora'. Choose one of: zero-shot, vpt, vpt-shallow"):
            build_model(clip_path, "adalora", CLASS_NAMES)

    def test_unknown_option(self, clip_path):
        with pytest.raises(
            ValueError, match="CoOp has no option depth. It has: .*class_specific, class_token_position"
        ):
            build_model(clip_path, "coop", CLASS_NAMES, depth=3)

    def test_classifier(self, vit_path):
        bundle = build_model(vit_path, "vpt", NEW_NAMES)
        assert bundle.model(pixel_values=images()).logits.shape == (4, len(NEW_NAMES))
        assert bundle.model.get_base_model().config.id2label == dict(enumerate(NEW_NAMES))
        assert bundle.recipe is METHODS["vpt"].classifier_recipe

    def test_classifier_has_no_text(self, vit_path):
        with pytest.raises(ValueError, match="CoOp needs a model with a text tower.*vit has none.*: vpt"):
            build_model(vit_path, "coop", CLASS_NAMES)

    def test_classifier_cannot_change_classes(self, vit_path):
        with pytest.raises(ValueError, match="head for its 5 classes.*: fox, wolf pack, airbus"):
            set_class_names(build_model(vit_path, "vpt", CLASS_NAMES).model, NEW_NAMES)

    def test_underscores_in_names_of_a_head_are_blanks(self, vit_path, rows):
        model = build_model(vit_path, "vpt", CLASS_NAMES).model
        written = [name.replace(" ", "_") for name in CLASS_NAMES]
        set_class_names(model, written)
        require_moves(own_classes(model), written)
        some = among_own_classes(model, EvalSet([{"labels": 0}], written[3:0:-1]))
        assert some.class_names == CLASS_NAMES and some[0][0]["labels"] == 3


class TestTrain:
    @pytest.mark.parametrize("method", often(TRAINED, ["vpt", "coop", "maple", "mrpo", "mmrl", "lora"]))
    def test_prompts_learn_and_the_rest_is_frozen(self, method, clip_path, rows, tmp_path):
        # KgCoOp and PromptSRC are held at the frozen features by weights that were chosen for larger models.
        weights = ("text_consistency_weight", "image_consistency_weight", "logit_consistency_weight")
        options = dict.fromkeys(weights, 0.0) if method in ("kgcoop", "promptsrc") else SUPPORT.get(method, {})
        model = build_model(clip_path, method, CLASS_NAMES, **options).model
        frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
        before = prompts(model)
        result = train(model, rows, LONG, tmp_path, epochs=25, checkpoints=False)
        losses = [entry["loss"] for entry in result.history if "loss" in entry]
        assert losses[-1] < losses[0]
        assert not any(torch.equal(before[name], value) for name, value in prompts(model).items())
        assert all(torch.equal(frozen[name], value) for name, value in model.named_parameters() if name in frozen)

    def test_rates_steps_and_times(self, clip_path, rows, tmp_path):
        model = build_model(clip_path, "coop", CLASS_NAMES).model
        result = train(model, rows, QUICK, tmp_path, rows, epochs=3, checkpoints=False)
        assert result.steps == 12  # 18 images make four full batches of 4
        assert result.resumed_step == 0
        assert 0 < result.seconds_per_step < result.train_seconds
        rates = [entry["learning_rate"] for entry in result.history if "learning_rate" in entry]
        assert rates == pytest.approx(lr_schedule(QUICK, 3))
        measured = [entry["eval_accuracy"] for entry in result.history if "eval_accuracy" in entry]
        assert len(measured) == 3 and measured[-1] == pytest.approx(accuracy(model, rows))

    def test_fewer_images_than_a_batch(self, clip_path, rows, tmp_path):
        model = build_model(clip_path, "coop", CLASS_NAMES).model
        assert train(model, rows[:3], QUICK, tmp_path, epochs=2, checkpoints=False).steps == 2

    def test_a_killed_run_goes_on_bit_for_bit(self, clip_path, rows, tmp_path):
        def run(folder, *callbacks):
            model = build_model(clip_path, "maple", CLASS_NAMES).model
            return train(model, rows, QUICK, tmp_path / folder, epochs=4, callbacks=callbacks), prompts(model)

        _, whole = run("whole")
        with pytest.raises(KeyboardInterrupt):
            run("killed", Kill(10))  # in the third epoch of four steps
        result, resumed = run("killed")
        assert (result.resumed_step, result.steps) == (8, 16)
        assert same(whole, resumed)

    def test_a_finished_run_is_not_trained_again(self, clip_path, rows, tmp_path):
        first = build_model(clip_path, "coop", CLASS_NAMES).model
        train(first, rows, QUICK, tmp_path, epochs=2)
        second = build_model(clip_path, "coop", CLASS_NAMES).model
        result = train(second, rows, QUICK, tmp_path, epochs=2)
        assert result.resumed_step == result.steps == 8
        assert np.isnan(result.seconds_per_step)
        assert same(prompts(first), prompts(second))

    def test_a_diverged_run_stops_and_can_be_started_again(self, clip_path, rows, tmp_path):
        def run(*callbacks):
            model = build_model(clip_path, "coop", CLASS_NAMES).model
            return train(model, rows, QUICK, tmp_path, epochs=4, callbacks=callbacks)

        with pytest.raises(TrainingDivergedError, match="Training diverged in epoch 2 of 4.*lower learning rate"):
            run(Diverge(6))
        again = run()
        assert (again.resumed_step, again.steps) == (4, 16)  # of the diverged epoch no checkpoint was made

    @pytest.mark.parametrize("checkpoints", [True, False])
    def test_a_diverged_run_leaves_the_last_finite_values(self, checkpoints, clip_path, rows, tmp_path):
        def run(folder, *callbacks):
            model = build_model(clip_path, "coop", CLASS_NAMES).model
            try:
                train(model, rows, QUICK, folder, epochs=4, callbacks=callbacks, checkpoints=checkpoints)
            except TrainingDivergedError as error:
                return prompts(model), error.epoch
            return prompts(model), None

        snapshots = Snapshots()
        run(tmp_path / "sound", snapshots)
        kept, epoch = run(tmp_path / "third", Diverge(9))
        assert epoch == 3 and same(kept, snapshots.after[2])
        kept, epoch = run(tmp_path / "first", Diverge(2))
        assert epoch == 1 and same(kept, snapshots.before)

    def test_the_batch_is_the_recipes_whatever_the_machine(self, clip_path, rows, tmp_path, monkeypatch):
        model = build_model(clip_path, "coop", CLASS_NAMES).model
        batches, found = batch_sizes(model), TrainingArguments.n_gpu.fget
        # A machine with two GPUs, of which the Trainer uses both unless it is told to use one.
        two_gpus = property(lambda arguments: 1 if found(arguments) == 1 else 2)
        monkeypatch.setattr(TrainingArguments, "n_gpu", two_gpus)
        assert train(model, rows, QUICK, tmp_path, epochs=2, checkpoints=False).steps == 8
        assert set(batches) == {QUICK.batch_size}

    def test_processes_share_the_batch(self, clip_path, rows, tmp_path, monkeypatch):
        # Without others to add up with: what the first of two processes would do.
        monkeypatch.setattr(trainer, "all_processes", lambda device: Processes(0, 2))
        monkeypatch.setattr(Processes, "gather", lambda processes, mine: mine)
        monkeypatch.setattr(Processes, "from_first", lambda processes, make: make())
        model = build_model(clip_path, "coop", CLASS_NAMES).model
        for recipe, own in ((QUICK, QUICK.batch_size // 2), (replace(QUICK, batch_size=3), 1)):
            batches = batch_sizes(model)
            # Full batches only: the seventh image waits for the next epoch.
            steps = train(model, rows[:7], recipe, tmp_path, epochs=2, checkpoints=False).steps
            assert set(batches) == {own} and steps == 2 * (7 // recipe.batch_size)
        with pytest.raises(ValueError, match="each of 2 processes. Received: batches of 1"):
            train(model, rows, replace(QUICK, batch_size=1), tmp_path, epochs=2, checkpoints=False)

    def test_an_interrupted_run_leaves_no_bar(self, clip_path, rows, tmp_path):
        model = build_model(clip_path, "coop", CLASS_NAMES).model
        with pytest.raises(KeyboardInterrupt):
            train(model, rows, QUICK, tmp_path, epochs=2, checkpoints=False, progress="CoOp", callbacks=[Kill(2)])
        assert not rich.get_console()._live_stack

    def test_other_settings_start_afresh(self, clip_path, rows, tmp_path):
        for recipe in (QUICK, replace(QUICK, learning_rate=0.01)):
            model = build_model(clip_path, "coop", CLASS_NAMES).model
            assert train(model, rows, recipe, tmp_path, epochs=2).resumed_step == 0
        assert len(list((tmp_path / "checkpoints").iterdir())) == 2

    def test_each_stage_starts_afresh_and_is_resumed_by_itself(self, clip_path, rows, tmp_path):
        def run(*callbacks):
            model = build_model(clip_path, "2sfs", CLASS_NAMES).model
            first = train(model, rows, QUICK, tmp_path, epochs=2)
            model.start_class_head()
            second = train(model, rows, QUICK, tmp_path, epochs=2, callbacks=callbacks)
            return (first.resumed_step, second.resumed_step), prompts(model)

        with pytest.raises(KeyboardInterrupt):
            run(Kill(6))
        resumed, trained = run()
        assert resumed == (8, 4)
        assert list(trained) == ["base_model.model.text_model.two_stage_readout.default.weight"]

    def test_a_checkpoint_cut_off_is_passed_over(self, tmp_path):
        for step, state in ((4, '{"global_step": 4}'), (8, '{"global_'), (12, None)):
            (tmp_path / f"checkpoint-{step}").mkdir()
            if state:
                (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
        with pytest.warns(UserWarning, match="checkpoint-(12|8)' is passed over: it") as told:
            assert last_checkpoint(tmp_path).name == "checkpoint-4"
        assert len(told) == 2
        assert last_checkpoint(tmp_path / "none") is None

    @pytest.mark.parametrize("part", often(PARTS, ["adapter_model.safetensors", SEAL]))
    @pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?")])
    def test_a_checkpoint_that_lacks_a_part_is_passed_over(self, damage, part, clip_path, rows, tmp_path):
        def run():
            model = build_model(clip_path, "coop", CLASS_NAMES).model
            return train(model, rows, QUICK, tmp_path, epochs=2).resumed_step, prompts(model)

        _, whole = run()
        (checkpoint,) = tmp_path.rglob("checkpoint-8")
        damage(checkpoint / part)
        if part == SEAL and not (checkpoint / part).exists():
            assert run()[0] == 8  # of an earlier version, or killed when all but the seal was written
            return
        with pytest.warns(
            UserWarning, match=f"passed over: (.*{part} is not as it was written|its {SEAL} is damaged)"
        ):
            step, again = run()
        assert step == 0 and same(whole, again)

    def test_two_trainings_in_one_folder(self, clip_path, rows, tmp_path):
        class Again(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                train(build_model(clip_path, "coop", CLASS_NAMES).model, rows, QUICK, tmp_path, epochs=2)

        model = build_model(clip_path, "coop", CLASS_NAMES).model
        with pytest.raises(FolderInUseError, match="Another run writes to"):
            train(model, rows, QUICK, tmp_path, epochs=2, callbacks=[Again()])

    def test_checkpoint_folder_depends_on_settings_alone(self, tmp_path):
        assert checkpoint_folder(tmp_path, {"a": 1, "b": 2}) == checkpoint_folder(tmp_path, {"b": 2, "a": 1})
        assert checkpoint_folder(tmp_path, {"a": 1}) != checkpoint_folder(tmp_path, {"a": 2})

    def test_warm_up_alone_warns(self, clip_path, rows, tmp_path):
        model = build_model(clip_path, "coop", CLASS_NAMES).model
        with pytest.warns(UserWarning, match="All of epochs=1 is warm-up"):
            train(model, rows, QUICK, tmp_path, epochs=1, checkpoints=False)

    def test_empty_set(self, clip_path, tmp_path):
        with pytest.raises(ValueError, match="training set is empty"):
            train(build_model(clip_path, "coop", CLASS_NAMES).model, [], QUICK, tmp_path, epochs=1)

    def test_a_model_in_which_nothing_learns(self, clip_path, rows, tmp_path):
        model = build_model(clip_path, "coop", CLASS_NAMES).model
        with (
            model.disable_adapter(),
            pytest.raises(ValueError, match="something is trained.*outside of disable_adapter"),
        ):
            train(model, rows, QUICK, tmp_path, epochs=2)
        model.set_requires_grad("default", False)
        with pytest.raises(ValueError, match="Load its adapter with is_trainable=True"):
            train(model, rows, QUICK, tmp_path, epochs=2)

    def test_a_loss_that_takes_something_else(self, clip_path, rows, tmp_path):
        model = build_model(clip_path, "coop", CLASS_NAMES).model
        for loss in (torch.nn.CrossEntropyLoss(), torch.nn.functional.cross_entropy, lambda output, labels: 0):
            with pytest.raises(ValueError, match="called as loss.output, labels, num_items_in_batch=.*CrossEntropy"):
                train(model, rows, QUICK, tmp_path, epochs=2, loss=loss)

    def test_rows_without_labels(self, clip_path, rows, tmp_path):
        model = build_model(clip_path, "coop", CLASS_NAMES).model
        unlabelled = [{"pixel_values": row["pixel_values"]} for row in rows]
        with pytest.raises(ValueError, match="rows with `labels`. Received: rows of pixel_values"):
            train(model, unlabelled, QUICK, tmp_path, epochs=2, checkpoints=False)

    def test_classifier_trains_and_reloads(self, vit_path, rows, tmp_path):
        bundle = build_model(vit_path, "vpt", CLASS_NAMES)
        train(bundle.model, rows, QUICK, tmp_path, epochs=8, checkpoints=False)
        bundle.model.save_pretrained(tmp_path / "adapter")
        again = load_adapter(tmp_path / "adapter", class_names=CLASS_NAMES)
        assert torch.equal(
            bundle.model.eval()(pixel_values=images()).logits, again.model(pixel_values=images()).logits
        )


class TestEvaluate:
    @pytest.mark.parametrize(("base", "novel", "expected"), [(80, 60, 480 / 7), (50, 50, 50), (0, 90, 0)])
    def test_harmonic_mean(self, base, novel, expected):
        assert harmonic_mean(base, novel) == pytest.approx(expected)

    def test_harmonic_mean_refuses_negatives(self):
        with pytest.raises(ValueError, match="novel=-1"):
            harmonic_mean(3, -1)

    def test_predictions_are_the_models_own_whatever_the_batch(self, clip_path, rows):
        model = build_model(clip_path, "coop", CLASS_NAMES).model.train()
        logits, true = predict_logits(model, rows, batch_size=5)
        assert model.training
        with torch.no_grad():
            pixel_values = torch.stack([row["pixel_values"] for row in rows])
            expected = model.eval()(pixel_values=pixel_values).logits.argmax(-1)
        assert logits.argmax(-1).tolist() == expected.tolist() == predict_logits(model, rows)[0].argmax(-1).tolist()
        assert true.tolist() == [row["labels"] for row in rows]
        assert accuracy(model, rows) == pytest.approx(100 * np.mean(expected.numpy() == true))

    def test_every_set_has_its_own_classes(self, clip_path, rows):
        model = build_model(clip_path, "maple", CLASS_NAMES).model
        novel = [row | {"labels": row["labels"] % len(NEW_NAMES)} for row in rows]
        results = evaluate(model, {"base": EvalSet(rows, CLASS_NAMES), "novel": EvalSet(novel, NEW_NAMES)})
        model.set_class_names(NEW_NAMES)
        assert results["novel"] == accuracy(model, novel)
        assert results["hm"] == harmonic_mean(results["base"], results["novel"])

    def test_zero_shot_is_the_plain_model(self, clip_path, rows, tmp_path):
        model = build_model(clip_path, "maple", CLASS_NAMES).model
        before = evaluate(model, {"all": EvalSet(rows, CLASS_NAMES)}, zero_shot=True)
        train(model, rows, LONG, tmp_path, epochs=25, checkpoints=False)
        assert evaluate(model, {"all": EvalSet(rows, CLASS_NAMES)}, zero_shot=True) == before
        prompted = model.eval()(pixel_values=images()).logits
        with model.disable_adapter():
            assert not torch.allclose(model(pixel_values=images()).logits, prompted)

    @pytest.mark.parametrize("options", ({"class_specific": True}, {"tune": "class_name"}))
    def test_some_of_the_classes_of_a_model_that_learned_them(self, options, clip_path, rows):
        model = build_model(clip_path, "coop", CLASS_NAMES, **options).model
        logits = predict_logits(model, rows)[0]
        for names in (CLASS_NAMES[::-1], CLASS_NAMES[1:4][::-1]):
            some = [row | {"labels": names.index(CLASS_NAMES[row["labels"]])} for row in rows
                    if CLASS_NAMES[row["labels"]] in names]  # fmt: skip
            columns = logits[:, [CLASS_NAMES.index(name) for name in names]]
            right = [names[guess] == CLASS_NAMES[row["labels"]] for guess, row in zip(columns.argmax(-1), rows, strict=True)
                     if CLASS_NAMES[row["labels"]] in names]  # fmt: skip
            result = evaluate(model, {"all": EvalSet(some, names)})["all"]
            assert result == pytest.approx(100 * sum(right) / len(right))
        with pytest.raises(ValueError, match="means nothing for other names. Received: owl"):
            evaluate(model, {"all": EvalSet(rows[:1], [*CLASS_NAMES[1:], "owl"])})

    def test_logits_that_are_not_finite(self, clip_path, rows):
        model = build_model(clip_path, "coop", CLASS_NAMES).model
        with torch.no_grad():
            next(p for p in model.parameters() if p.requires_grad).fill_(torch.finfo(torch.float32).max)
        with pytest.raises(OutputNotFiniteError, match=f"NaN or infinity for {len(rows)} of {len(rows)} images"):
            accuracy(model, rows)

    def test_no_images(self, clip_path):
        with pytest.raises(ValueError, match="No image"):
            accuracy(build_model(clip_path, "coop", CLASS_NAMES).model, [])


class TestReports:
    RUN = {
        "title": "CoOp",
        "trainable_parameters": 8192,
        "adapter_bytes": 32900,
        "seconds_per_step": float("nan"),
        "train_seconds": 3.0,
        "accuracy": {"base": 82.69, "novel": 63.22, "hm": 71.66},
    }

    def test_json_is_whole_or_absent(self, tmp_path):
        path = tmp_path / "deep" / "results.json"
        io.write_json({"nan": float("nan"), "high": float("inf"), "list": [1, {"x": 0.5}]}, path)
        assert json.loads(path.read_text()) == {"nan": None, "high": None, "list": [1, {"x": 0.5}]}
        with pytest.raises(TypeError):
            io.write_json({"bad": object()}, path)
        with pytest.raises(RuntimeError, match="disk"), io.atomic_path(path) as partial:
            partial.write_text("half")
            raise RuntimeError("disk")
        assert json.loads(path.read_text())["list"] == [1, {"x": 0.5}]
        assert [file.name for file in path.parent.iterdir()] == ["results.json"]

    def test_environment_names_machine_and_versions(self):
        found = environment()
        assert found["machine"]["cpu"] and found["machine"]["cores"] >= 1
        assert found["versions"]["torch"] == torch.__version__

    def test_table(self, capsys):
        from rich.console import Console

        zero_shot = self.RUN | {"title": "Zero-shot", "adapter_bytes": None, "accuracy": {"base": 69.34}}
        Console(width=120).print(reports.results_table([self.RUN, zero_shot]))
        shown = capsys.readouterr().out
        assert all(text in shown for text in ("CoOp", "8,192", "32,900", "71.66", "69.34", "–"))

    def test_plot(self, figures, tmp_path):
        zero_shot = self.RUN | {"title": "Zero-shot", "accuracy": {"base": 1.0}}
        reports.plot_results([self.RUN, zero_shot], tmp_path / "plot.png", "title")
        (axes,) = figures[0].axes
        bars = {bar.get_label(): [patch.get_height() for patch in bar] for bar in axes.containers}
        assert bars == {"base": [82.69, 1.0], "novel": [63.22, 0], "hm": [71.66, 0]}
        assert [label.get_text() for label in axes.get_xticklabels()] == ["CoOp", "Zero-shot"]
        places = [patch.get_x() + patch.get_width() / 2 for bar in axes.containers for patch in bar]
        assert [round(place) for place in places] == [0, 1] * 3 and len(set(places)) == 6  # beside each other
