"""A recipe of two stages: encoders first, then the class head, in one run that goes on where it was killed."""

import json

import pytest
import torch
from safetensors.torch import load_file

from peft_vprompt.data import DataOptions, load_images
from peft_vprompt.experiments import run
from peft_vprompt.experiments.run import run_experiment
from peft_vprompt.experiments.settings import Settings
from peft_vprompt.tuners.base.registry import METHODS


pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def start(clip_path, colours, tmp_path):
    data = load_images(DataOptions(colours, label_column="colour"))

    def start(name, **changes):
        settings = Settings(
            **{"method": "2sfs", "model": clip_path, "shots": 2, "epochs": 4, "batch_size": 4} | changes
        )
        report = run_experiment(settings, data, tmp_path / name, quiet=True)
        return report, load_file(tmp_path / name / "adapter_model.safetensors")

    return start


def test_the_length_is_shared(start, tmp_path):
    report, _ = start("run")
    steps = [entry["step"] for entry in report["history"]]
    assert len(steps) == 4 and steps == [*steps[:2], *steps[:2]]  # int(0.6 * 4) epochs, and the rest
    assert report["steps"] == sum(steps[1::2])
    head = json.loads((tmp_path / "run/adapter_config.json").read_text())["head_classes"]
    assert head == report["classes"]["base"]
    assert report["trainable_parameters"] == len(head) * 16


def test_a_run_that_was_killed_in_its_second_stage_goes_on(start, monkeypatch, tmp_path):
    _, expected = start("whole")
    train = run.train
    lengths = []

    def killed(model, **options):
        if options["epochs"] and lengths:
            raise KeyboardInterrupt
        lengths.append(options["epochs"])
        return train(model, **options)

    monkeypatch.setattr(run, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        start("killed")
    monkeypatch.setattr(run, "train", train)
    report, found = start("killed")
    assert report["resumed_step"] > 0
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def test_too_short_for_two_stages(start):
    with pytest.raises(
        ValueError, match="Expected a length that two stages can share.*Received: epochs=1. Train for longer"
    ):
        start("short", epochs=1)


def test_shares_of_steps():
    recipe = METHODS["2sfs"].recipe
    assert recipe.stages(None, recipe.steps_for(16)) == [(None, 2880), (None, 1920)]
    assert METHODS["ln-tuning"].recipe.stages(None, 10) == [(None, 10)]
