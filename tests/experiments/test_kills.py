"""Commands that are killed at random moments and started again end as if nobody had killed them; full disks are one line."""

import pytest
import torch

from examples.studies.reliability import contents, full_disks, in_child, kill_trials, memory, vprompt
from peft_vprompt.data import EvalTransform
from peft_vprompt.experiments.models import build_model
from peft_vprompt.training.cached_features import cache_features
from peft_vprompt.training.distillation import teacher_logits
from peft_vprompt.utils.io import write_json
from tests.support.labelled_images import pictures
from tests.support.models import CLASS_NAMES, often
from tests.support.open_clip import build, published


SHORT = ("--shots", 2, "--epochs", 3, "--batch-size", 4)


def cached_features(clip_path):
    def work(output):
        clip = build_model(clip_path, "coop", CLASS_NAMES)
        found = cache_features(clip.model, pictures(200), EvalTransform(clip.image_processor), cache_dir=output)
        write_json({"features": found["image_features"][:]}, output / "features.json")

    return work


def kept_answers(clip_path):
    def work(output):
        teacher = build_model(clip_path, "zero-shot", CLASS_NAMES)
        options = {"class_names": CLASS_NAMES, "cache_dir": output}
        answers = teacher_logits(teacher.model, pictures(8), EvalTransform(teacher.image_processor), **options)
        write_json({"answers": answers.tolist()}, output / "answers.json")

    return work


def saved_often(clip_path):
    def work(output):
        model = build_model(clip_path, "coop", CLASS_NAMES).model
        for turn in range(20):
            with torch.no_grad():
                [parameter.fill_(turn % 2) for parameter in model.parameters() if parameter.requires_grad]
            model.save_pretrained(output)

    return work


@pytest.fixture
def others(clip_path, tmp_path):
    """Commands that read what another one left: an adapter, checkpoints of other people's code."""
    colours = ["blue", "green", "red", "white"]
    adapter, context, clip = (tmp_path / "read" / name for name in ("adapter", "coop.pth", "RN.pt"))
    build_model(clip_path, "coop", colours).model.save_pretrained(adapter)
    torch.save({"ctx": torch.zeros(4, 32)}, context)
    torch.save(published(build("resnet")), clip)

    def evaluate(data):
        def work(output):
            given = ("--adapter", adapter, *data, "--diagnose", output / "diagnosis")
            vprompt("evaluate", *given)(output / "result.json")

        return work

    return {
        "evaluate": evaluate,
        "convert": vprompt("convert", context, "--method", "coop"),
        "convert-clip": vprompt("convert-clip", clip),
    }


@pytest.fixture
def commands(others, clip_path, colours, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data = ("--model", clip_path, "--data", colours, "--label-column", "colour")
    grid = ("--rates", "1,0.5", "--weight-decays", 0, "--seeds", 1)
    one = ("--rates", "0,0.5", "--losses", "ce", "--seeds", 1)
    return {
        "train": vprompt("train", *data, "--method", "coop", *SHORT),
        "kgcoop": vprompt("train", *data, "--method", "kgcoop", *SHORT),
        "sweep": vprompt("sweep", *data, "--method", "coop", *grid, *SHORT[:2], "--epochs", 2, "--batch-size", 4),
        "noise-study": vprompt("noise-study", *data, "--methods", "coop", *one, *SHORT[:2], "--epochs", 2),
        "bench": vprompt("bench", "few-shot", *data, "--methods", "coop", *one[4:], *SHORT[:2], "--max-steps", 4),
        "demo": vprompt("demo", "--methods", "zero-shot,coop", "--shots", 1),
        "pseudo-label": lambda output: vprompt("pseudo-label", *data, "--check")(output / "labels.safetensors"),
        "features": cached_features(clip_path),
        "answers": kept_answers(clip_path),
        "save": saved_often(clip_path),
        **(others | {"evaluate": others["evaluate"](data)}),
    }


NAMES = ["train", "sweep", "noise-study", "bench", "demo", "pseudo-label", "features", "answers", "save"]
READERS = ["evaluate", "convert", "convert-clip"]


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


@pytest.mark.parametrize("command", often([*NAMES, *READERS], ["train", "convert-clip"]))
def test_a_full_disk_is_one_line_and_the_next_start_goes_on(command, commands, embedded, tmp_path):
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
