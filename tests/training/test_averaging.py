"""`AverageWeights`: against a plain computation, against PromptSRC's weights, and resumed = uninterrupted."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments

from peft_vprompt.errors import TrainingDivergedError
from peft_vprompt.training import AverageWeights, Averaging, Recipe, RecipeTrainer, train
from peft_vprompt.training.callbacks import named_trained_values
from peft_vprompt.training.checkpoints import AVERAGE_FILE, last_checkpoint
from tests.support.callbacks import Diverge, Kill


GAUSSIAN = Averaging("gaussian", mean=3, std=1.5)
EMA = Averaging("ema", decay=0.8)
UNIFORM = Averaging("uniform", from_epoch=2)
KINDS = pytest.mark.parametrize("averaging", [GAUSSIAN, EMA, UNIFORM], ids=lambda averaging: averaging.kind)
CLASSES, SIZE = 3, 16


def recipe(averaging=None, **changes):
    defaults = {"learning_rate": 0.05, "batch_size": 4, "epochs": 4, "source": "test", "averaging": averaging}
    return Recipe(**defaults | changes)


@pytest.fixture(scope="module")
def rows():
    """17 noisy images: four full batches of four."""
    generator = torch.Generator().manual_seed(1)
    colours = 2 * torch.randn(CLASSES, 3, 1, 1, generator=generator)
    pixels = torch.randn(17, 3, SIZE, SIZE, generator=generator)
    return [{"pixel_values": x + colours[i % CLASSES], "labels": i % CLASSES} for i, x in enumerate(pixels)]


class Scalar(torch.nn.Module):
    """One number whose value a callback decides; its gradient is zero."""

    def __init__(self):
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(1))

    def forward(self, pixel_values, labels=None):
        logits = 0 * self.number * pixel_values.flatten(1)[:, :CLASSES]
        return {"loss": logits.sum(), "logits": logits}


class History(TrainerCallback):
    """Keeps what is trained, before the first step, after each step and after each epoch."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.steps, self.epochs = [values(model)], []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.steps.append(values(model))

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        self.epochs.append(values(model))


class OneEpochIsOne(TrainerCallback):
    """The number is 1 at the end of one epoch and 0 at the end of all others: the average is that epoch's weight."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_step_end(self, args, state, control, model=None, **kwargs):
        model.number.data.fill_(float(math.ceil(state.epoch) == self.epoch))


def values(model):
    return {name: value.detach().clone() for name, value in named_trained_values(model).items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def weight_of(epoch, averaging, epochs, rows, tmp_path):
    model = Scalar()
    train(
        model,
        rows[:4],
        recipe(averaging),
        tmp_path,
        epochs=epochs,
        checkpoints=False,
        callbacks=[OneEpochIsOne(epoch)],
    )
    return model.number.item()


def stock_trainer(model, rows, output, *callbacks, **arguments):
    arguments = {"save_strategy": "no", "learning_rate": 0.05} | arguments
    arguments = TrainingArguments(
        output_dir=str(output),
        num_train_epochs=4,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_drop_last=True,
        **arguments,
    )
    return Trainer(model=model, args=arguments, train_dataset=rows, callbacks=list(callbacks))


class TestAverages:
    def plain(self, averaging, history):
        """The same averages written out in float64."""
        if averaging.kind == "ema":
            weights = [averaging.decay ** (len(history.steps) - 1)]
            weights += [0.2 * averaging.decay ** (len(history.steps) - 1 - t) for t in range(1, len(history.steps))]
            points = history.steps
        elif averaging.kind == "gaussian":
            weights = [math.exp(-((e - averaging.mean) ** 2) / (2 * averaging.std**2)) for e in range(1, 5)]
            points = history.epochs
        else:
            weights, points = [0, 1, 1, 1], history.epochs
        assert len(weights) == len(points)
        total = sum(weights)
        return {
            name: sum(w / total * point[name].double() for w, point in zip(weights, points, strict=True)).float()
            for name in points[0]
        }

    @KINDS
    def test_the_model_ends_with_the_average_by_the_recipe(self, averaging, build, rows, tmp_path):
        model, history = build(), History()
        train(model, rows, recipe(averaging), tmp_path, epochs=4, checkpoints=False, callbacks=[history])
        expected = self.plain(averaging, history)
        torch.testing.assert_close(values(model), expected, rtol=0, atol=3e-7)
        assert not any(torch.allclose(expected[name], last, atol=1e-5) for name, last in history.epochs[-1].items())

    @KINDS
    def test_the_stock_trainer_averages_too(self, averaging, build, rows, tmp_path):
        model, history = build(), History()
        stock_trainer(model, rows, tmp_path, history, AverageWeights(averaging)).train()
        torch.testing.assert_close(values(model), self.plain(averaging, history), rtol=0, atol=3e-7)

    @KINDS
    def test_the_average_does_not_change_training(self, averaging, build, rows, tmp_path):
        histories = [History(), History()]
        for history, chosen in zip(histories, (None, averaging), strict=True):
            train(build(), rows, recipe(chosen), tmp_path, epochs=4, checkpoints=False, callbacks=[history])
        assert all(same(left, right) for left, right in zip(*(history.steps for history in histories), strict=True))

    def test_accumulated_batches_are_one_step_of_the_ema(self, build, rows, tmp_path):
        model, history = build(), History()
        stock_trainer(model, rows, tmp_path, history, AverageWeights(EMA), gradient_accumulation_steps=2).train()
        assert len(history.steps) == 9
        torch.testing.assert_close(values(model), self.plain(EMA, history), rtol=0, atol=3e-7)

    def test_statistics_and_shared_parameters_are_averaged_once(self, rows, tmp_path):
        class Normed(torch.nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.norm = torch.nn.BatchNorm1d(12)
                self.frozen = torch.nn.BatchNorm1d(12).requires_grad_(False)
                self.head = torch.nn.Linear(12, CLASSES, bias=False)
                self.again = self.head

            def forward(self, pixel_values, labels=None):
                logits = self.again(self.frozen(self.norm(pixel_values.flatten(1)[:, :12])))
                loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
                return {"loss": loss, "logits": logits}

        model, history = Normed(), History()
        train(model, rows, recipe(UNIFORM), tmp_path, epochs=4, checkpoints=False, callbacks=[history])
        assert set(values(model)) == {
            "norm.weight",
            "norm.bias",
            "norm.running_mean",
            "norm.running_var",
            "head.weight",
        }
        torch.testing.assert_close(values(model), self.plain(UNIFORM, history), rtol=3e-7, atol=3e-7)
        assert int(model.norm.num_batches_tracked) == 16

    def test_half_precision_weights_are_averaged_in_float32(self, build, rows, tmp_path):
        """In bfloat16 an average that moves by a thousandth of its distance would not move at all."""
        model, average = build(torch.bfloat16), AverageWeights(Averaging("ema", decay=0.999))
        history = History()
        stock_trainer(
            model, [r | {"pixel_values": r["pixel_values"].bfloat16()} for r in rows], tmp_path, history, average
        ).train()
        expected = {name: value.double() for name, value in history.steps[0].items()}
        for step in history.steps[1:]:
            expected = {name: 0.999 * value + 0.001 * step[name].double() for name, value in expected.items()}
        kept = average._average
        assert {value.dtype for value in kept.values()} == {torch.float32}
        torch.testing.assert_close({n: v.double() for n, v in kept.items()}, expected, rtol=0, atol=1e-6)
        dtypes = {value.dtype for value in values(model).values()}
        assert torch.bfloat16 in dtypes  # the head; PEFT keeps prompts in float32
        assert all(torch.equal(value, kept[name].to(value.dtype)) for name, value in values(model).items())


class TestGaussianWeights:
    def test_of_the_authors_code(self, rows, tmp_path, shared):
        golden = json.loads((shared / "golden/field/promptsrc_4x4_d3.json").read_text())
        numbers = golden["hyperparameters"]
        averaging = Averaging("gaussian", mean=numbers["gpa_mean"], std=numbers["gpa_std"])
        found = [weight_of(e, averaging, numbers["epochs"], rows, tmp_path) for e in range(1, numbers["epochs"] + 1)]
        assert found == pytest.approx(golden["gpa_weights"], rel=1e-5)

    @pytest.mark.parametrize("epoch", [1, 13, 15, 20])
    def test_of_the_recipe_of_base_to_novel(self, epoch, rows, tmp_path):
        """N(15, 1) over the epochs 1 to 20."""
        density = [math.exp(-0.5 * (e - 15) ** 2) for e in range(1, 21)]
        expected = density[epoch - 1] / sum(density)
        found = weight_of(epoch, Averaging("gaussian", mean=15, std=1), 20, rows, tmp_path)
        assert found == pytest.approx(expected, rel=1e-5)

    def test_far_from_the_mean_the_last_epoch_counts(self, rows, tmp_path):
        """exp(-(1 - 60)^2 / 2) is no float64; weights relative to each other are."""
        averaging = Averaging("gaussian", mean=60, std=1)
        found = [weight_of(epoch, averaging, 3, rows, tmp_path) for epoch in (1, 2, 3)]
        assert found == pytest.approx([0, math.exp(-57.5), 1], rel=1e-5)


class TestResume:
    @pytest.mark.parametrize(("averaging", "step"), [(GAUSSIAN, 10), (EMA, 10), (UNIFORM, 10), (GAUSSIAN, 2)])
    def test_a_killed_run_goes_on_bit_for_bit(self, averaging, step, build, rows, tmp_path):
        def run(folder, *callbacks):
            model = build()
            return train(model, rows, recipe(averaging), tmp_path / folder, epochs=4, callbacks=callbacks), values(
                model
            )

        _, whole = run("whole")
        with pytest.raises(KeyboardInterrupt):
            run("killed", Kill(step))
        result, resumed = run("killed")
        assert (result.resumed_step, result.steps) == (step // 4 * 4, 16)
        assert same(whole, resumed)

    @KINDS
    @pytest.mark.parametrize("save_steps", [3, 4], ids=["inside an epoch", "at its last step"])
    def test_the_stock_trainer_goes_on_from_any_step(self, averaging, save_steps, build, rows, tmp_path):
        def run(folder, *callbacks, resume=None):
            model = build()
            callbacks = [*callbacks, AverageWeights(averaging)]
            saved = {"save_strategy": "steps", "save_steps": save_steps}
            stock_trainer(model, rows, tmp_path / folder, *callbacks, **saved).train(resume_from_checkpoint=resume)
            return values(model)

        whole = run("whole")
        with pytest.raises(KeyboardInterrupt):
            run("killed", Kill(10))
        step = {3: 9, 4: 8}[save_steps]
        assert same(whole, run("killed", resume=str(tmp_path / "killed" / f"checkpoint-{step}")))

    @KINDS
    def test_a_finished_run_gives_the_average_again(self, averaging, build, rows, tmp_path):
        first, second = build(), build()
        train(first, rows, recipe(averaging), tmp_path, epochs=4)
        result = train(second, rows, recipe(averaging), tmp_path, epochs=4)
        assert result.resumed_step == result.steps == 16
        assert same(values(first), values(second))

    @KINDS
    def test_an_epoch_cut_short_counts_once(self, averaging, build, rows, tmp_path):
        """Ten steps are two epochs and a half."""
        model, again, history = build(), build(), History()
        train(model, rows, recipe(averaging), tmp_path, steps=10, callbacks=[history])
        if averaging.kind == "uniform":
            mean = {name: (history.epochs[1][name] + last) / 2 for name, last in history.epochs[2].items()}
            torch.testing.assert_close(values(model), mean, rtol=0, atol=3e-7)
        result = train(again, rows, recipe(averaging), tmp_path, steps=10)
        assert result.resumed_step == result.steps == 10
        assert same(values(model), values(again))

    def test_a_kill_while_a_checkpoint_is_written(self, build, rows, tmp_path, monkeypatch):
        def run(folder):
            model = build()
            return train(model, rows, recipe(GAUSSIAN), tmp_path / folder, epochs=4).resumed_step, values(model)

        def killed(trainer, *args, **kwargs):
            if trainer.state.global_step == 8:
                raise KeyboardInterrupt
            return Trainer.save_model(trainer, *args, **kwargs)

        _, whole = run("whole")
        with monkeypatch.context() as patched:
            patched.setattr(RecipeTrainer, "save_model", killed, raising=False)
            with pytest.raises(KeyboardInterrupt):
                run("killed")
        assert not list((tmp_path / "killed").rglob("checkpoint-8"))  # the stock Trainer would resume from it
        step, resumed = run("killed")
        assert step == 4 and same(whole, resumed)

    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_a_kill_around_the_trainers_part_of_a_checkpoint(self, moment, build, rows, tmp_path, monkeypatch):
        """The stock Trainer resumes from the newest folder, whatever is in it."""

        def run(folder, resume=None):
            model = build()
            saved = {"save_strategy": "epoch", "save_total_limit": 1}
            stock_trainer(model, rows, tmp_path / folder, AverageWeights(GAUSSIAN), **saved).train(resume)
            return values(model)

        save = Trainer._save_checkpoint

        def killed(trainer, *args):
            if moment == "after" or trainer.state.global_step < 8:
                save(trainer, *args)
            if trainer.state.global_step == 8:
                raise KeyboardInterrupt

        whole = run("whole")
        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "_save_checkpoint", killed)
            with pytest.raises(KeyboardInterrupt):
                run("killed")
        assert same(whole, run("killed", resume=True))
        assert not list((tmp_path / "killed").glob(f".*{AVERAGE_FILE}"))

    def test_the_weights_in_a_checkpoint_are_the_trained_ones(self, build, rows, tmp_path):
        history = History()
        train(build(), rows, recipe(UNIFORM), tmp_path, epochs=4, callbacks=[history])
        (folder,) = tmp_path.rglob("checkpoint-16")
        saved = {value.double().sum().item() for value in load_file(folder / "adapter_model.safetensors").values()}
        last = {value.double().sum().item() for value in history.epochs[-1].values()}
        assert saved == last

    def test_a_checkpoint_without_the_average_is_passed_over(self, build, rows, tmp_path):
        train(build(), rows, recipe(EMA), tmp_path, epochs=2)
        (file,) = tmp_path.rglob(AVERAGE_FILE)
        folder = file.parents[1]
        assert last_checkpoint(folder, averaged=True) == file.parent
        file.unlink()
        assert last_checkpoint(folder, averaged=True) is None and last_checkpoint(folder) == file.parent
        assert train(build(), rows, recipe(EMA), tmp_path, epochs=2).resumed_step == 0

    def test_a_missing_average_is_named(self, build, rows, tmp_path):
        saved = {"save_strategy": "epoch"}
        stock_trainer(build(), rows, tmp_path, **saved).train()
        trainer = stock_trainer(build(), rows, tmp_path, AverageWeights(EMA), **saved)
        with pytest.raises(ValueError, match=f"no file .*checkpoint-8.{AVERAGE_FILE}.*start afresh"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))

    def test_the_average_of_another_run_is_refused(self, build, rows, tmp_path):
        for name, rate in (("fast", 0.5), ("slow", 0.05)):
            saved = {"save_strategy": "epoch", "learning_rate": rate}
            stock_trainer(build(), rows, tmp_path / name, AverageWeights(EMA), **saved).train()
        checkpoint = str(tmp_path / "slow" / "checkpoint-8")
        trainer = stock_trainer(build(), rows, tmp_path / "fast", AverageWeights(EMA), save_strategy="epoch")
        with pytest.raises(ValueError, match="Received: that of another run, .*fast.*Set output_dir to the folder"):
            trainer.train(resume_from_checkpoint=checkpoint)

    def test_the_average_of_another_model_is_refused(self, build, rows, tmp_path):
        stock_trainer(build(), rows, tmp_path, AverageWeights(EMA), save_strategy="epoch").train()
        average = AverageWeights(EMA)
        arguments = SimpleNamespace(output_dir=str(tmp_path), load_best_model_at_end=False, fsdp=None, deepspeed=None)
        state = SimpleNamespace(global_step=16, num_train_epochs=4)
        with pytest.raises(ValueError, match=f"the 1 values that are trained. Received: others in .*{AVERAGE_FILE}"):
            average.on_train_begin(arguments, state, None, model=Scalar())


class TestRuns:
    def test_a_second_training_starts_afresh(self, build, rows, tmp_path):
        average = AverageWeights(GAUSSIAN)
        results = []
        for _ in range(2):
            model = build()
            stock_trainer(model, rows, tmp_path, average).train()
            results.append(values(model))
        assert same(*results)

    @pytest.mark.parametrize("step", [8, 9], ids=["last step of an epoch", "first step of an epoch"])
    @KINDS
    def test_a_diverged_run_leaves_the_last_finite_values(self, averaging, step, build, rows, tmp_path):
        model, history = build(), History()
        with pytest.raises(TrainingDivergedError, match="Training diverged in epoch"):
            train(model, rows, recipe(averaging), tmp_path, epochs=4, callbacks=[history, Diverge(step)])
        assert same(values(model), history.epochs[(step - 1) // 4 - 1])
        assert train(build(), rows, recipe(averaging), tmp_path, epochs=4).resumed_step == (step - 1) // 4 * 4

    def test_one_process_writes(self, tmp_path):
        average = AverageWeights(EMA)
        model, control = Scalar(), SimpleNamespace(should_save=True)
        state = SimpleNamespace(global_step=0, num_train_epochs=4, epoch=0.25, max_steps=16)
        for writes in (False, True):
            arguments = SimpleNamespace(
                output_dir=str(tmp_path), should_save=writes, load_best_model_at_end=False, fsdp=None, deepspeed=None
            )
            state.global_step = 0
            average.on_train_begin(arguments, state, control, model=model)
            state.global_step = 1
            model.number.data.fill_(1.0)
            average.on_step_end(arguments, state, control, model=model)
            average.on_save(arguments, state, control, model=model)
            assert (tmp_path / "checkpoint-1" / AVERAGE_FILE).is_file() == writes
            model.number.data.zero_()
        assert load_file(tmp_path / "checkpoint-1" / AVERAGE_FILE)["number"] == pytest.approx(0.2)

    def test_a_checkpoint_that_a_later_callback_asks_for_has_the_average(self, build, rows, tmp_path):
        class SaveNow(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_save = state.global_step == 3

        stock_trainer(build(), rows, tmp_path, AverageWeights(EMA), SaveNow()).train()
        assert (tmp_path / "checkpoint-3" / AVERAGE_FILE).is_file()

    def test_the_best_checkpoint_is_no_average(self, build, rows, tmp_path):
        trainer = stock_trainer(build(), rows, tmp_path, AverageWeights(EMA))
        trainer.args.load_best_model_at_end = True
        with pytest.raises(ValueError, match="load_best_model_at_end=True.*leave out AverageWeights"):
            trainer.train()

    def test_sharded_weights_are_refused(self):
        arguments = SimpleNamespace(load_best_model_at_end=False, fsdp="full_shard", deepspeed=None)
        with pytest.raises(ValueError, match="fsdp='full_shard'.*DistributedDataParallel"):
            AverageWeights(EMA).on_train_begin(arguments, SimpleNamespace(), None, model=Scalar())

    def test_no_epoch_to_average(self, build, rows, tmp_path):
        averaging = Averaging("uniform", from_epoch=5)
        with pytest.raises(ValueError, match="one of the 4 epochs. Received: from_epoch=5"):
            train(build(), rows, recipe(averaging), tmp_path, epochs=4, checkpoints=False)


class TestData:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"kind": "median"}, "Expected kind to be one of .*'gaussian', 'ema', 'uniform'.*kind='median'"),
            ({"kind": "gaussian", "mean": 3}, "Expected mean and std for kind='gaussian'.*Received: mean=3"),
            ({"kind": "ema"}, "Expected decay for kind='ema'.*Received: none"),
            ({"kind": "ema", "decay": 0.9, "std": 1}, "Received: std=1, decay=0.9"),
            ({"kind": "gaussian", "mean": 3, "std": 0}, "Expected std to be a finite number > 0. Received: std=0"),
            (
                {"kind": "gaussian", "mean": math.nan, "std": 1},
                "Expected mean to be a finite number. Received: mean=nan",
            ),
            ({"kind": "ema", "decay": 1}, r"Expected decay in \[0, 1\). Received: decay=1"),
            (
                {"kind": "uniform", "from_epoch": 0},
                "Expected from_epoch to be an integer >= 1. Received: from_epoch=0",
            ),
        ],
    )
    def test_refused(self, fields, message):
        with pytest.raises(ValueError, match=message):
            Averaging(**fields)
