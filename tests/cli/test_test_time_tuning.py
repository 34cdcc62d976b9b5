"""`vprompt evaluate --test-time`: with an adapter's context and with one of words."""

import json

import pytest

from tests.support.command_line import QUICK, train, vprompt


FEW = ("--test-time", "--test-time-set", "views=8", "--test-time-set", "confident=0.5")


@pytest.mark.parametrize("method", ["coop", pytest.param("cocoop", marks=pytest.mark.nightly)])
def test_an_adapter_is_tuned_on_each_image(method, clip_path, colours, tmp_path):
    train(tmp_path / "a", clip_path, colours, "--method", method, "--lr", 0.05, "--base-novel", *QUICK)
    plain = json.loads((tmp_path / "a" / "results.json").read_text())
    output = tmp_path / "out.json"
    shown = vprompt("evaluate", "--adapter", tmp_path / "a", "--subset", "novel", *FEW, "--output", output)
    result = json.loads(output.read_text())
    assert result["untuned_accuracy"]["novel"] == plain["accuracy"]["novel"]
    assert result["zero_shot_accuracy"]["novel"] == plain["zero_shot"]["novel"]
    assert result["test_time"] == {
        **{"views": 8, "confident": 0.5, "steps": 1, "learning_rate": 0.005},
        **{"weight_decay": 0.01, "augmix": False, "seed": 0},
    }
    assert f"without tuning {result['untuned_accuracy']['novel']:.2f} %" in shown


def test_words_are_tuned_without_an_adapter(clip_path, colours, tmp_path):
    data = ("--model", clip_path, "--data", colours, "--label-column", "colour", "--split", "test")
    words = ("--words", "a photo of a", "--test-time-set", "augmix=true", "--test-time-set", "steps=2")
    vprompt("evaluate", *data, *words, *FEW, "--output", tmp_path / "out.json")
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["adapter"] is None and result["words"] == "a photo of a"
    assert result["untuned_accuracy"] == result["zero_shot_accuracy"]
    assert result["images"] == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Expected --adapter, or --words with --test-time. Received neither or both"),
        (("--words", "a"), "--words need --test-time"),
        (("--adapter", "x", "--test-time-set", "views=8"), "--test-time-set need --test-time"),
        (("--adapter", "x", "--test-time", "--zero-shot"), "Expected --test-time alone"),
        (("--adapter", "x", "--test-time", "--test-time-set", "crops=8"), "no option crops. It has: confident"),
        (("--adapter", "x", "--test-time", "--test-time-set", "views=4"), "Use at least 10 views"),
        (("--adapter", "x", "--test-time", "--test-time-set", "views=many"), "Expected views to be an integer"),
        (("--words", "a", "--test-time", "--data", "x"), "Received: --data without --model"),
    ],
)
def test_what_contradicts_itself_is_refused(arguments, message):
    assert message in vprompt("evaluate", *arguments, code=2)


def test_an_adapter_without_a_context_is_refused(clip_path, colours, tmp_path):
    train(tmp_path, clip_path, colours, "--method", "maple", *QUICK)
    assert "Take a CoOp adapter" in vprompt("evaluate", "--adapter", tmp_path, "--test-time", code=2)
