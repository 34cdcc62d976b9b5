"""Commands under `torchrun` and `accelerate launch`: several processes are one, and end together."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from peft_vprompt.training.checkpoints import last_checkpoint
from tests.support.command_line import vprompt
from tests.support.launching import Launched, accelerate_launch, run_in, torchrun
from tests.support.saved_models import save_colours


#: 16 images in batches of 6 in two processes: fresh augmentation, full batches alone.
RECIPE = ("--method", "coop", "--shots", 4, "--epochs", 3, "--batch-size", 6)
CLOSE = {"rtol": 0, "atol": 2e-6}


@pytest.fixture
def data(clip_path, tmp_path) -> tuple:
    """Options that name a model and images, of which there are batches for several processes."""
    return ("--model", clip_path, "--data", save_colours(tmp_path / "many.parquet", 120), "--label-column", "colour")


def commands(folder, data) -> dict[str, tuple]:
    """One command after the other, each on what the ones before it left."""
    same = ("--adapter", folder / "coop", *data)
    few = ("--method", "kgcoop", "--shots", 2, "--epochs", 2, "--batch-size", 5, "--no-report")
    return {
        "train": ("train", "--output", folder / "coop", *data, *RECIPE, "--watch", "--no-report"),
        # Batches that cannot be shared out evenly, regularisers, classes shared out.
        "uneven": ("train", "--output", folder / "uneven", *data, *few, "--set", "shard_classes=true"),
        "evaluate": ("evaluate", *same, "--output", folder / "result.json"),
        "predict": ("predict", *same[:4], "--data", data[3], "--output", folder / "all.jsonl", "--batch-size", 64),
        "pseudo-label": ("pseudo-label", *data, "--output", folder / "labels.safetensors", "--per-class", 3),
    }


def adapter(folder) -> dict:
    return load_file(folder / "adapter_model.safetensors")


def results(folder) -> dict:
    """What must be the same of a run."""
    report = json.loads((folder / "results.json").read_text())
    logged = [
        {k: v for k, v in entry.items() if "runtime" not in k and "second" not in k} for entry in report["history"]
    ]
    return {name: report[name] for name in ("accuracy", "zero_shot", "steps", "classes")} | {"history": logged}


def all_close(left: list[dict], right: list[dict], tolerance: float) -> None:
    assert len(left) == len(right)
    for mine, other in zip(left, right, strict=True):
        assert mine == pytest.approx(other, abs=tolerance)


def one_and_several(launcher, tmp_path, data) -> tuple:
    shown = run_in(launcher, tmp_path, *commands(tmp_path / "several", data).values())
    for command in commands(tmp_path / "one", data).values():
        vprompt(*command)
    return tmp_path / "one", tmp_path / "several", shown


def check_equal(one, several, shown) -> None:
    for name in ("coop", "uneven"):
        torch.testing.assert_close(adapter(several / name), adapter(one / name), **CLOSE)
        left, right = results(one / name), results(several / name)
        all_close(left.pop("history"), right.pop("history"), 1e-4)
        assert left == right, name
    answers = [json.loads((folder / "result.json").read_text()) for folder in (one, several)]
    assert answers[0]["images"] == 144
    for name in ("accuracy", "zero_shot_accuracy", "images", "classes"):
        assert answers[0][name] == answers[1][name]
    rows = [
        [json.loads(line) for line in (folder / "all.jsonl").read_text().splitlines()] for folder in (one, several)
    ]
    assert len(rows[0]) == 480
    all_close(*rows, 1e-5)
    labels = [load_file(folder / "labels.safetensors") for folder in (one, several)]
    torch.testing.assert_close(labels[0], labels[1], **CLOSE)
    # The first process alone prints.
    assert shown.count("Saved in") == 4


def test_two_processes_are_one(tmp_path, data):
    check_equal(*one_and_several(torchrun(2), tmp_path, data))


@pytest.mark.nightly
@pytest.mark.parametrize("launcher", [torchrun, accelerate_launch])
def test_four_processes_are_one(launcher, tmp_path, data):
    check_equal(*one_and_several(launcher(4), tmp_path, data))


#: An hour of epochs, of which each takes a moment: who watches ends it.
LONG = ("--method", "coop", "--shots", 2, "--epochs", 100_000, "--batch-size", 4)
MINUTE = 60


class Ending:
    """What happens to a long training in two processes."""

    def __init__(self, tmp_path, data):
        self.output = tmp_path / "long"
        self.command = ("train", "--output", self.output, *data, *LONG)

    def __call__(self, strike) -> str:
        with Launched(torchrun(2), *self.command) as launched:
            launched.until(lambda: [*self.output.glob("checkpoints/*/checkpoint-*/complete.json")], 240)
            strike(launched, launched.workers())
            launched.until(lambda: not launched.workers(), MINUTE)
            launched.launcher.wait(MINUTE)
            assert launched.launcher.returncode
            return launched.launcher.stdout.read()


@pytest.fixture
def ending(tmp_path, data):
    return Ending(tmp_path, data)


def kill_one(number):
    return lambda launched, workers: os.kill(workers[number], signal.SIGKILL)


STRIKES = {
    "killed": kill_one(1),
    "first killed": kill_one(0),
    "stopped": lambda launched, workers: os.kill(workers[1], signal.SIGSTOP),
    "launcher killed": lambda launched, workers: launched.launcher.kill(),
    "launcher ended": lambda launched, workers: launched.launcher.terminate(),
}


@pytest.mark.nightly
@pytest.mark.parametrize("strike", STRIKES)
def test_the_end_of_one_process_is_the_end_of_all(strike, ending):
    shown = ending(STRIKES[strike])
    assert shown.count("the training goes on from") == 1, shown
    checkpoint = last_checkpoint(next((ending.output / "checkpoints").iterdir()))
    assert checkpoint is not None


@pytest.mark.nightly
def test_a_killed_training_goes_on_to_the_same_end(tmp_path, data):
    command = ("train", *data, "--method", "coop", "--shots", 4, "--epochs", 60, "--batch-size", 6, "--output")
    with Launched(torchrun(2), *command, tmp_path / "killed") as launched:
        launched.until(lambda: [*(tmp_path / "killed").glob("checkpoints/*/checkpoint-*/complete.json")], 240)
        os.kill(launched.workers()[1], signal.SIGKILL)
        launched.until(lambda: not launched.workers(), MINUTE)
    run_in(torchrun(2), tmp_path, (*command, tmp_path / "killed"))
    vprompt(*command, tmp_path / "whole")
    assert json.loads((tmp_path / "killed" / "results.json").read_text())["resumed_step"] > 0
    torch.testing.assert_close(adapter(tmp_path / "killed"), adapter(tmp_path / "whole"), rtol=0, atol=1e-4)


@pytest.mark.nightly
def test_an_error_is_said_once_and_ends_all(tmp_path, data):
    with Launched(torchrun(2), "train", "--output", tmp_path, *data, "--shots", 1, "--batch-size", 1) as launched:
        launched.launcher.wait(240)
        shown = launched.launcher.stdout.read()
    assert shown.count("Expected a row of each batch for each of 2 processes. Received: batches of 1.") == 1


#: Methods in several stages, with averages of weights, with features of the training images, labelled by zero-shot.
METHODS = {
    "2sfs": (),
    "promptsrc": (),
    "tip-adapter-f": (),
    "coop": ("--unlabelled", "--cache-features", "--views", 2),
    "cocoop": ("--loss", "gce"),
}


@pytest.mark.nightly
def test_what_methods_do_beside_their_steps_is_one(tmp_path, data):
    def command(folder, method):
        options = ("--shots", 4, "--epochs", 3, "--batch-size", 6, "--no-report", *METHODS[method])
        return ("train", *data, "--method", method, *options, "--output", folder / method)

    run_in(torchrun(2), tmp_path, *(command(tmp_path / "two", method) for method in METHODS))
    for method in METHODS:
        vprompt(*command(tmp_path / "one", method))
        torch.testing.assert_close(adapter(tmp_path / "two" / method), adapter(tmp_path / "one" / method), **CLOSE)
