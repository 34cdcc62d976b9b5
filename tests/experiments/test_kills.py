"""Commands that are killed at random moments and started again end as if nobody had killed them; full disks are one line."""

import pytest

from examples.studies.reliability import contents, full_disks, in_child, kill_trials, memory, vprompt
from peft_vprompt.data import EvalTransform
from peft_vprompt.experiments.models import build_model
from peft_vprompt.training.cached_features import cache_features
from peft_vprompt.utils.io import write_json
from tests.support.labelled_images import pictures
from tests.support.models import CLASS_NAMES, often


SHORT = ("--shots", 2, "--epochs", 3, "--batch-size", 4)


def cached_features(clip_path):
    def work(output):
        clip = build_model(clip_path, "coop", CLASS_NAMES)
        found = cache_features(clip.model, pictures(200), EvalTransform(clip.image_processor), cache_dir=output)
        write_json({"features": found["image_features"][:]}, output / "features.json")

    return work


@pytest.fixture
def commands(clip_path, colours, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data = ("--model", clip_path, "--data", colours, "--label-column", "colour")
    grid = ("--rates", "1,0.5", "--weight-decays", 0, "--seeds", 1)
    one = ("--rates", "0,0.5", "--losses", "ce", "--seeds", 1)
    return {
        "train": vprompt("train", *data, "--method", "coop", *SHORT),
        "kgcoop": vprompt("train", *data, "--method", "kgcoop", *SHORT),
        "sweep": vprompt("sweep", *data, "--method", "coop", *grid, *SHORT[:2], "--epochs", 2, "--batch-size", 4),
        "noise-study": vprompt("noise-study", *data, "--methods", "coop", *one, *SHORT[:2], "--epochs", 2),
        "demo": vprompt("demo", "--methods", "zero-shot,coop", "--shots", 1),
        "pseudo-label": lambda output: vprompt("pseudo-label", *data, "--check")(output / "labels.safetensors"),
        "features": cached_features(clip_path),
    }


NAMES = ["train", "sweep", "noise-study", "demo", "pseudo-label", "features"]


def check(command, commands, tmp_path, kills):
    result = kill_trials(commands[command], tmp_path / "runs", kills)
    assert result["broken"] == 0 and result["kills"] == kills
    assert result["equal"] == result["chains"]


@pytest.mark.parametrize("command", often(NAMES, ["train", "features"]))
def test_killed_runs_end_like_whole_ones(command, commands, embedded, tmp_path):
    check(command, commands, tmp_path, kills=2)


@pytest.mark.nightly
@pytest.mark.parametrize("command", NAMES)
def test_many_killed_runs_end_like_whole_ones(command, commands, embedded, tmp_path):
    check(command, commands, tmp_path, kills=20)


@pytest.mark.parametrize("command", often(["train", "sweep", "pseudo-label"], ["train"]))
def test_a_full_disk_is_one_line_and_the_next_start_goes_on(command, commands, tmp_path):
    limits = [0, 2000]
    result = full_disks(commands[command], tmp_path / "runs", limits)
    assert result["clear"] == result["went_on"] == len(limits)


def test_what_is_compared_is_what_matters(tmp_path):
    for name, accuracy, seconds in (("a", 1.0, 2.0), ("b", 1.0, 3.0), ("c", 2.0, 2.0)):
        write_json({"accuracy": accuracy, "train_seconds": seconds}, tmp_path / name / "results.json")
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b != c
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"Broken file adapter_model\.safetensors"):
        contents(tmp_path / "a")


def test_a_child_says_how_it_ended():
    assert in_child(lambda: None) == 0
    assert in_child(lambda: 1 / 0) == 1
    assert in_child(lambda: (_ for _ in ()).throw(SystemExit(2))) == 2
    assert in_child(lambda: __import__("time").sleep(9), kill_after=0.05) is None


@pytest.mark.nightly
def test_memory_stays_flat():
    used = memory(1000, 2000)
    for before, after in (used["switches_mb"], used["lists_mb"]):
        assert after - before < 20
