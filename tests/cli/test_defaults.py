"""What commands do when little is said: all classes, a model for images of one's own, and what comes next."""

import json

import pytest

from tests.support.command_line import QUICK, next_command, train, vprompt


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("train", ("--output", "x")),
        ("sweep", ("--output", "x", "--method", "coop")),
        ("noise-study", ("--output", "x")),
        ("pseudo-label", ("--output", "x.safetensors")),
    ],
)
def test_images_of_ones_own_need_a_model(command, arguments, colours):
    shown = vprompt(command, *arguments, "--data", colours, "--label-column", "colour", code=2)
    assert "--model openai/clip-vit-base-patch16 or --model google/siglip-base-patch16-224" in shown
    assert len(shown.strip().splitlines()) == 1


def test_a_baseline_is_told_of_classifiers(colours):
    shown = vprompt("train", "--output", "x", "--method", "linear", "--data", colours, code=2)
    assert "--model google/vit-base-patch16-224-in21k" in shown


def test_all_classes_are_learned_unless_asked(clip_path, colours, tmp_path):
    train(tmp_path / "all", clip_path, colours, "--method", "coop", *QUICK)
    train(tmp_path / "halves", clip_path, colours, "--method", "coop", "--base-novel", *QUICK)
    read = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("all", "halves")]
    assert [list(results["classes"]) for results in read] == [["all"], ["base", "novel"]]
    assert read[0]["chance"] == {"all": 25} and read[1]["chance"] == {"base": 50, "novel": 50, "hm": 50}
    assert read[0]["zero_shot"].keys() == {"all"} and read[1]["zero_shot"].keys() == {"base", "novel", "hm"}


@pytest.mark.parametrize(
    ("options", "classes"),
    [((), ["base", "novel"]), (("--all-classes",), ["all"]), (("--unlabelled",), ["all"])],
)
def test_the_embedded_task_is_about_novel_classes(options, classes, embedded, tmp_path):
    vprompt("train", "--output", tmp_path, "--method", "coop", *QUICK, *options)
    assert list(json.loads((tmp_path / "results.json").read_text())["classes"]) == classes


def test_methods_that_learn_their_classes_take_all_of_the_embedded_task(embedded, tmp_path):
    vprompt("train", "--output", tmp_path, "--method", "classifier-r", *QUICK)
    assert list(json.loads((tmp_path / "results.json").read_text())["classes"]) == ["all"]


@pytest.mark.parametrize("method", ["coop", "vpt"])
def test_zero_shot_beside_the_result_is_that_of_the_plain_model(method, clip_path, colours, tmp_path):
    shown = train(tmp_path / "a", clip_path, colours, "--method", method, "--lr", 0.1, *QUICK)
    train(tmp_path / "z", clip_path, colours, "--method", "zero-shot")
    results, plain = (json.loads((tmp_path / name / "results.json").read_text()) for name in "az")
    assert results["zero_shot"] == plain["accuracy"] == plain["zero_shot"]
    assert "Chance" in shown and "Zero-shot" in shown and "all: every class" in shown
    evaluated = vprompt("evaluate", "--adapter", tmp_path / "a", "--output", tmp_path / "e.json")
    assert f"zero-shot {plain['accuracy']['all']:.2f} %, chance 25.00 %" in evaluated
    again = json.loads((tmp_path / "e.json").read_text())
    assert again["accuracy"] == results["accuracy"] and again["zero_shot_accuracy"] == plain["accuracy"]


def test_what_comes_next_can_be_typed(clip_path, colours, tmp_path):
    folder = tmp_path / "with space"
    shown = train(folder, clip_path, colours, "--method", "coop", "--base-novel", *QUICK)
    diagnose = next_command(shown)
    shown = vprompt(*diagnose)
    assert "estimate assumes" in shown and (folder / "diagnosis" / "diagnosis.json").is_file()
    shown = vprompt(*next_command(shown))
    assert "Accuracy on novel" in shown and "Next: " not in shown
    shown = train(tmp_path / "z", clip_path, colours, "--method", "zero-shot")
    vprompt(*next_command(shown), *QUICK)
    assert (tmp_path / "maple" / "adapter_model.safetensors").is_file()


def test_what_comes_after_labels_and_studies_can_be_typed(clip_path, colours, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    same = ("--model", clip_path, "--data", colours, "--label-column", "colour")
    labels = tmp_path / "labels.safetensors"
    shown = vprompt("pseudo-label", "--output", labels, *same, "--per-class", 2)
    vprompt(*next_command(shown), *QUICK)
    study = ("--methods", "coop:num_virtual_tokens=2,classifier-r", "--losses", "gce", "--rates", "0.25", "--seeds", 1)
    shown = vprompt("noise-study", "--output", tmp_path / "study", *same, *study, *QUICK)
    assert "Chance 25.0 %, zero-shot" in shown
    vprompt(*next_command(shown), *QUICK)
    results = json.loads((tmp_path / "study" / "best" / "results.json").read_text())
    assert results["settings"]["loss"] == "gce" and results["settings"]["shots"] == 4


def test_methods_say_what_comes_next(embedded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vprompt(*next_command(vprompt("methods")), *QUICK)
    assert (tmp_path / "runs" / "maple" / "results.json").is_file()


def test_another_image_size_is_remembered(clip_path, colours, tmp_path):
    train(tmp_path, clip_path, colours, "--method", "vpt", "--image-size", 48, *QUICK)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["settings"]["image_size"] == 48
    vprompt("evaluate", "--adapter", tmp_path, "--output", tmp_path / "e.json", "--device", "cpu")
    again = json.loads((tmp_path / "e.json").read_text())
    assert again["image_size"] == 48
    vprompt("evaluate", "--adapter", tmp_path, "--output", tmp_path / "e.json")
    assert json.loads((tmp_path / "e.json").read_text())["accuracy"] == results["accuracy"]


def test_a_tracker_that_is_not_installed(clip_path, colours, tmp_path, monkeypatch):
    monkeypatch.setattr("peft_vprompt.training.trackers.find_spec", lambda package: None)
    shown = train(tmp_path / "a", clip_path, colours, "--method", "coop", *QUICK, "--report-to", "trackio", code=2)
    assert "pip install trackio" in shown and not (tmp_path / "a").exists()
