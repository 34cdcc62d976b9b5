"""The grid search: every pair once, the best chosen on validation images, resumed where it was stopped."""

import json
import os
import sys
from contextlib import nullcontext

import pytest

from examples.studies.reliability import contents, in_child
from peft_vprompt.data import DataOptions, load_images
from peft_vprompt.errors import FailedCellsError, TrainingDivergedError
from peft_vprompt.experiments import grid_search
from peft_vprompt.experiments import run as module
from peft_vprompt.experiments.grid_search import BASE_RATES, WEIGHT_DECAYS, Grid, Trial, _name, best_trial
from peft_vprompt.experiments.models import METHODS
from peft_vprompt.experiments.settings import Settings
from peft_vprompt.experiments.sweep import sweep
from tests.support.command_line import vprompt
from tests.support.labelled_images import write_vtab
from tests.support.models import often
from tests.support.saved_models import COLOURS


GRID = Grid((2.5, 0.5), (0.01, 0.0))


@pytest.fixture(scope="module")
def data(colours):
    return load_images(DataOptions(colours, label_column="colour"))


@pytest.fixture
def settings(vit_path):
    return Settings(method="linear", model=vit_path, shots=None, epochs=2, batch_size=8)


@pytest.fixture
def counted(monkeypatch):
    """The settings and sizes of every training that a search makes, in order."""
    runs, plain = [], module.run_experiment

    def run(settings, data, output, **options):
        report = plain(settings, data, output, **options)
        runs.append(
            (settings.learning_rate, settings.weight_decay, settings.seed, len(data["train"]), len(data["test"]))
        )
        return report

    monkeypatch.setattr(module, "run_experiment", run)
    return runs


def test_the_papers_grid():
    assert Grid().axes == {
        "base_rate": [50, 25, 10, 5, 2.5, 1, 0.5, 0.25, 0.1, 0.05],
        "weight_decay": [0.01, 0.001, 0.0001, 0],
    }
    assert len(BASE_RATES) * len(WEIGHT_DECAYS) == 40


def test_every_pair_is_rated_and_the_best_is_tested(settings, data, counted, tmp_path):
    report = sweep(settings, data, tmp_path, grid=GRID, seeds=(3, 4))
    rates = [rate * 8 / 256 for rate in GRID.base_rates]
    validation = report["images"]["validation"]
    assert sorted(counted[:4]) == sorted(
        (rate, decay, 1, report["images"]["train"], validation) for rate in rates for decay in GRID.weight_decays
    )
    best = report["best"]
    assert best["accuracy"] == max(trial["accuracy"] for trial in report["trials"])
    both = report["images"]["train"] + validation
    assert counted[4:] == [
        (best["learning_rate"], best["weight_decay"], seed, both, len(data["test"])) for seed in (3, 4)
    ]
    values = [run["accuracy"] for run in report["runs"]]
    assert report["accuracy"]["mean"] == pytest.approx(sum(values) / 2)
    assert report["accuracy"]["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert report["trainable_parameters"] == 4 * 25
    assert json.loads((tmp_path / "sweep.json").read_text())["trials"] == report["trials"]
    assert not list(tmp_path.glob("trials/**/checkpoints"))


def test_a_search_that_was_stopped_goes_on(settings, data, counted, tmp_path, monkeypatch):
    counting, started = module.run_experiment, []

    def killed(*arguments, **options):
        if len(started) == 2:
            raise KeyboardInterrupt
        started.append(arguments)
        return counting(*arguments, **options)

    monkeypatch.setattr(module, "run_experiment", killed)
    with pytest.raises(KeyboardInterrupt):
        sweep(settings, data, tmp_path, grid=GRID, seeds=(1,))
    monkeypatch.setattr(module, "run_experiment", counting)
    report = sweep(settings, data, tmp_path, grid=GRID, seeds=(1,))
    assert len(counted) == 5 and len(set(counted)) == 5  # four pairs and the last run, none twice
    assert sweep(settings, data, tmp_path, grid=GRID, seeds=(1,)) == report | {"environment": report["environment"]}
    assert len(counted) == 5


def test_a_search_that_failed_again_and_again_goes_on(settings, data, counted, tmp_path, monkeypatch):
    counting = module.run_experiment

    def failing(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(module, "run_experiment", failing)
    for _ in range(3):
        with pytest.warns(UserWarning, match="MemoryError"), pytest.raises(FailedCellsError, match="4 of 4 cells"):
            sweep(settings, data, tmp_path, grid=GRID, seeds=(1,))
    monkeypatch.setattr(module, "run_experiment", counting)
    report = sweep(settings, data, tmp_path, grid=GRID, seeds=(1,))
    assert len(report["trials"]) == len(GRID.pairs) and len(set(counted)) == len(counted) == 5


def test_images_that_are_augmented_once_are_another_search(settings, data, counted, tmp_path):
    grid = Grid((0.5,), (0.0,))
    sweep(settings, data, tmp_path, grid=grid, seeds=(1,))
    sweep(settings, data, tmp_path, grid=grid, seeds=(1,), cached=True)
    sweep(settings, data, tmp_path, grid=grid, seeds=(1,), cached=True)
    assert len(counted) == 4


def test_an_extended_grid_keeps_what_is_done(settings, data, counted, tmp_path):
    sweep(settings, data, tmp_path, grid=Grid((0.5,), (0.0,)), seeds=(1,))
    report = sweep(settings, data, tmp_path, grid=Grid((0.5, 1e-6), (0.0,)), seeds=(1,))
    assert len(counted) == 3 + (report["best"]["base_rate"] != 0.5)
    assert [trial["base_rate"] for trial in report["trials"]] == [0.5, 1e-6]


def test_another_search_in_the_same_folder_is_its_own(settings, data, counted, tmp_path):
    small = Grid((0.5,), (0.0,))
    sweep(settings, data, tmp_path, grid=small, seeds=(1,))
    sweep(Settings(**vars(settings) | {"epochs": 3}), data, tmp_path, grid=small, seeds=(1,))
    assert len(counted) == 4


def test_what_another_grid_found_is_kept(settings, data, tmp_path):
    for grid in (Grid((0.5,), (0.0,)), Grid((0.5, 1.0), (0.0,))):
        with pytest.warns(UserWarning, match="holds an adapter") if len(grid.base_rates) > 1 else nullcontext():
            sweep(settings, data, tmp_path, grid=grid, seeds=(1,))
    (old,) = tmp_path.glob("previous/*/sweep.json")
    assert [len(json.loads(path.read_text())["trials"]) for path in (old, tmp_path / "sweep.json")] == [1, 2]


def test_a_method_with_two_recipes_is_searched_by_that_of_the_model(vit_path, clip_path):
    for model, spec in ((vit_path, METHODS["vpt"].classifier_recipe), (clip_path, METHODS["vpt"].recipe)):
        assert grid_search._recipe(Settings("vpt", model=model)) == spec
    assert METHODS["vpt"].recipe != METHODS["vpt"].classifier_recipe


def test_the_validation_split_of_the_data_is_used(settings, data, counted, tmp_path):
    splits = data["train"].train_test_split(6, seed=0)
    own = {"train": splits["train"], "validation": splits["test"], "test": data["test"]}
    report = sweep(settings, type(data)(own), tmp_path, grid=Grid((0.5,), (0.0,)), seeds=(1,))
    assert report["images"] == {"train": len(splits["train"]), "validation": 6, "test": len(data["test"])}


def test_with_few_shots_the_last_runs_train_on_the_shots_alone(settings, data, counted, tmp_path):
    few = Settings(**vars(settings) | {"shots": 2, "batch_size": 4})
    report = sweep(few, data, tmp_path, grid=Grid((0.5,), (0.0,)), seeds=(1,))
    saved = json.loads((tmp_path / "final" / "seed-1" / "results.json").read_text())
    assert saved["steps"] == 2 * (2 * len(COLOURS) // 4) and report["settings"]["shots"] == 2


def test_the_smaller_rate_wins_a_tie():
    trials = [
        Trial(5.0, 5.0, 0.0, 80.0),
        Trial(1.0, 1.0, 0.01, 80.0),
        Trial(1.0, 1.0, 0.0, 80.0),
        Trial(0.1, 0.1, 0, 9),
    ]
    assert best_trial(trials) == trials[2]


def test_errors(settings, data, tmp_path):
    with pytest.raises(
        ValueError, match=r"each of base_rates to be a finite number > 0. Received: base_rates=\(0.5, 0\)"
    ):
        Grid((0.5, 0))
    with pytest.raises(ValueError, match="each of weight_decays to be a finite number >= 0"):
        Grid((0.5,), (-1.0,))
    with pytest.raises(ValueError, match="at least one of seeds"):
        sweep(settings, data, tmp_path, seeds=())
    with pytest.raises(ValueError, match="Expected seeds that differ, as each counts once. Received twice: 1"):
        sweep(settings, data, tmp_path, seeds=(1, 2, 1))
    with pytest.raises(ValueError, match="Zero-shot trains nothing"):
        sweep(Settings(method="zero-shot"), data, tmp_path)


QUICK = ("--rates", "2.5,0.5", "--weight-decays", "0", "--seeds", "1,2", "--epochs", 2, "--batch-size", 4)


def test_command(vit_path, colours, figures, tmp_path):
    arguments = ("--model", vit_path, "--data", colours, "--label-column", "colour", "--method", "linear")
    shown = vprompt("sweep", "--output", tmp_path, *arguments, *QUICK)
    assert "over 2 runs, 100 trained parameters" in " ".join(shown.split())
    report = json.loads((tmp_path / "sweep.json").read_text())
    grid = figures[0].axes[0]
    drawn = dict(zip([label.get_text() for label in grid.get_yticklabels()], grid.images[0].get_array(), strict=True))
    assert {float(rate): values.tolist() for rate, values in drawn.items()} == {
        trial["base_rate"]: [trial["accuracy"]] for trial in report["trials"]
    }
    assert (tmp_path / "sweep.png").is_file()
    assert "--rates takes numbers" in vprompt("sweep", "--output", tmp_path, *arguments, "--rates", "fast", code=2)


def test_train_sweep_and_evaluate_a_task(vit_path, tmp_path):
    write_vtab(tmp_path / "data" / "patch_camelyon")
    arguments = ("--model", vit_path, "--data", tmp_path / "data", "--benchmark", "vtab-1k/patch_camelyon")
    vprompt("sweep", "--output", tmp_path / "sweep", *arguments, "--method", "bias", *QUICK)
    report = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert report["images"] == {"train": 6, "validation": 2, "test": 4}
    training = ("--all-classes", "--shots", 0, "--train-split", "trainval", "--epochs", 2, "--batch-size", 4)
    vprompt("train", "--output", tmp_path / "run", *arguments, "--method", "bias", *training)
    run = json.loads((tmp_path / "run" / "results.json").read_text())
    assert run["recipe"]["crop"] == "none" and run["steps"] == 4
    vprompt("evaluate", "--adapter", tmp_path / "run", "--output", tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text())["accuracy"] == run["accuracy"]


def test_a_lock_of_optuna_that_a_dead_search_left_is_not_waited_for(settings, data, counted, tmp_path):
    (tmp_path / "journal.log.lock").touch()
    sweep(settings, data, tmp_path, grid=Grid((0.5,), (0.0,)), seeds=(1,))
    assert len(counted) == 2


@pytest.mark.parametrize("damage", often(["cut", "zeros", "middle"], ["middle"]))
def test_a_damaged_journal_loses_no_trial(damage, settings, data, counted, tmp_path):
    grid = Grid((2.5, 0.5), (0.0,))
    first = sweep(settings, data, tmp_path, grid=grid, seeds=(1,))
    path = tmp_path / "journal.log"
    whole = path.read_bytes()
    if damage == "middle":
        path.write_bytes(whole[:40] + bytes(10) + whole[50:])
        with pytest.warns(UserWarning, match="journal.log' is damaged. It is now 'journal.damaged'"):
            again = sweep(settings, data, tmp_path, grid=grid, seeds=(1,))
    else:
        path.write_bytes(whole[:-7] if damage == "cut" else whole + bytes(30))
        again = sweep(settings, data, tmp_path, grid=grid, seeds=(1,))
    assert again["trials"] == first["trials"] and len(counted) == 3


def test_a_whole_benchmark(vit_path, tmp_path, monkeypatch):
    from peft_vprompt.data import find_tasks

    shown = []

    def fake(settings, data, place, **options):
        shown.append(options["data_description"]["benchmark"])
        report = {"title": "Linear", "trainable_parameters": 1, "runs": [{}], "accuracy": {"mean": 50.0, "std": 0.0}}
        trial = {"base_rate": 1.0, "weight_decay": 0.0, "accuracy": 1.0}
        return report | {"trials": [trial], "best": trial}

    monkeypatch.setattr("peft_vprompt.experiments.sweep.sweep", fake)
    monkeypatch.setattr(sys.modules["vprompt.sweep"], "read_data", lambda *_, **__: None)
    arguments = (
        "--model",
        vit_path,
        "--data",
        tmp_path,
        "--benchmark",
        "fgvc",
        "--method",
        "linear",
        "--output",
        tmp_path / "out",
    )
    assert "fgvc/fgvc" in vprompt("sweep", *arguments)
    assert shown == [task.full_name for task in find_tasks("fgvc")]
    means = json.loads((tmp_path / "out" / "benchmark.json").read_text())["means"]
    assert means == {"fgvc/fgvc": 50.0}


def test_a_trial_that_diverged_is_rated_0_and_not_made_again(settings, data, counted, tmp_path, monkeypatch):
    counting = module.run_experiment

    def diverging(tried, *arguments, **options):
        if tried.learning_rate > 0.05:
            counted.append(tried)
            raise TrainingDivergedError("Training diverged in epoch 1.", 1)
        return counting(tried, *arguments, **options)

    monkeypatch.setattr(module, "run_experiment", diverging)
    with pytest.warns(UserWarning, match="rate-2.5-decay-0: Training diverged in epoch 1."):
        report = sweep(settings, data, tmp_path, grid=Grid((2.5, 0.5), (0.0,)), seeds=(1,))
    assert [trial["accuracy"] > 0 for trial in report["trials"]] == [False, True] and len(counted) == 3
    (tmp_path / "journal.log").unlink()
    assert sweep(settings, data, tmp_path, grid=Grid((2.5, 0.5), (0.0,)), seeds=(1,))["trials"] == report["trials"]
    assert len(counted) == 3


def test_names_of_trials_tell_them_apart():
    assert _name((2.5, 0.0)) == "rate-2.5-decay-0" and _name((50.0, 0.0001)) == "rate-50-decay-0.0001"
    assert _name((0.1234567, 0.0)) != _name((0.1234568, 0.0))


def test_two_workers_are_one(settings, data, tmp_path):
    def work(output):
        return lambda: sweep(settings, data, output, grid=Grid((2.5, 0.5), (0.0,)), seeds=(1,))

    assert in_child(work(tmp_path / "one")) == 0
    other = os.fork()
    if other == 0:
        os._exit(in_child(work(tmp_path / "two")))
    assert in_child(work(tmp_path / "two")) == 0
    assert os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "one") and len(contents(tmp_path / "one")) >= 4


def test_the_state_of_a_sweep(vit_path, colours, tmp_path, monkeypatch):
    arguments = ("--output", tmp_path, "--model", vit_path, "--data", colours, "--label-column", "colour")
    assert "No grid in" in vprompt("sweep", *arguments, "--status")
    vprompt("sweep", *arguments, "--method", "linear", *QUICK)
    monkeypatch.setattr(module, "run_experiment", None)
    shown = vprompt("sweep", "--output", tmp_path, "--status")
    assert "rate-0.5-decay-0" in shown and "seed-2" in shown and "Last runs" in shown
    assert "0 waiting, 0 running, 4 done, 0 failed" in shown
