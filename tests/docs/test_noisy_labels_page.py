"""The page on noisy labels says what its JSON says, and its verdicts follow from the numbers."""

import json

import pytest

from tests.support.pages import check_page, load_page


@pytest.fixture(scope="module")
def page():
    return load_page("render/noisy_labels")


def test_page_is_rendered_from_the_results(page):
    results = check_page(page)
    assert all(len({run["seed"] for run in task["runs"]}) >= 3 for task in results["tasks"].values())


def run(method, loss, rate, accuracy, unlabelled=None, gradients=None):
    titles = {
        "coop": "CoOp",
        "classifier-r": "Classifier-R",
        "full-prompt": "Full",
        "class-name": "CLS",
        "zero-shot": "Zero-shot",
    }
    return {
        "method": method, "title": titles[method.split(":")[0]], "loss": loss, "rate": rate, "seed": 1,
        "noise": "symmetric" if rate else None, "unlabelled": unlabelled, "accuracy": accuracy, "gradients": gradients,
        "recipe": {"learning_rate": 0.1, "batch_size": 32, "epochs": 2}, "achieved_rate": rate, "train_seconds": 1.0,
    }  # fmt: skip


def results(page, coop_at_half):
    probe = [{"epoch": 0, "clean_norm": 1.0, "noisy_norm": 2.0, "cosine": -0.5}]
    runs = [
        run("coop", "ce", 0.0, 80.0), run("coop", "ce", 0.5, coop_at_half, gradients=probe),
        run("coop", "gce", 0.0, 79.0), run("coop", "gce", 0.5, 75.0),
        run("coop:num_virtual_tokens=1", "ce", 0.0, 70.0), run("coop:num_virtual_tokens=1", "ce", 0.5, 69.0),
        run("classifier-r", "ce", 0.0, 90.0), run("classifier-r", "ce", 0.5, 60.0),
        run("classifier-r", "gce", 0.0, 85.0), run("classifier-r", "gce", 0.5, 65.0),
        run("full-prompt", "ce", 0.5, 60.0), run("class-name", "ce", 0.5, 61.0),
        run("zero-shot", "ce", 0.0, 50.0, "zero-shot"), run("coop", "ce", 0.0, 55.0, "top-k"),
        run("coop", "gce", 0.0, 54.0, "random-k"),
    ]  # fmt: skip
    return {"runs": runs, "summary": page.summarise(runs)}


def test_verdicts_follow_from_the_numbers(page):
    good, bad = ("\n".join(page.claims(results(page, accuracy))) for accuracy in (70.0, 30.0))
    assert "CoOp 10.0, Classifier-R 30.0. **Holds here.**" in good
    assert "Classifier-R 30.0, CoOp 50.0. **Does not hold here.**" in bad
    assert (
        "GCE helps at 50 % wrong labels* (GCE minus cross-entropy): CoOp +5.0, Classifier-R +5.0. **Holds here.**"
        in good
    )
    assert "methods above zero-shot): CoOp 4.0, Classifier-R 20.0. **Holds here.**" in good
    assert (
        "GCE costs little on clean labels* (GCE minus cross-entropy, within 2 points): CoOp -1.0, Classifier-R -5.0. **Holds for 1 of 2 methods here.**"
        in good
    )
    assert "fixed names 70.0, with tuned names 60.0, names alone 61.0. **Holds here.**" in good
    assert "1 tokens 1.0, 16 tokens 10.0" in good
    assert "Below zero-shot" not in good
    assert "UPL beats zero-shot*: 55.0 against 50.0. **Holds here.**" in good
    assert "54.0 against 55.0, zero-shot 50.0. **Does not hold here.**" in good
    assert "norm of wrong over right 2.00, cosine -0.50" in good


def test_methods_that_learned_nothing_are_named(page):
    result = results(page, 70.0)
    for row in result["summary"]:
        row["mean"] = 75.0 if row["unlabelled"] == "zero-shot" else row["mean"]
    shown = "\n".join(page.claims(result))
    assert "Below zero-shot (75.0) with clean labels" in shown and "CoOp, num_virtual_tokens=1 70.0." in shown


def test_collect_reads_what_the_study_wrote(page, tmp_path):
    study = results(page, 70.0) | {"environment": {"machine": {"cpu": "x", "cores": 1}}, "data": {"path": "/secret"}}
    (tmp_path / "embedded-ce").mkdir()
    (tmp_path / "embedded-ce" / "study.json").write_text(json.dumps(study))
    collected = page.collect(tmp_path)
    assert "secret" not in json.dumps(collected) and list(collected["tasks"]) == ["embedded"]
    text = page.render(collected)
    assert "| CoOp | ce | 80.0 | 70.0 |" in text and "| random 16 per class | gce | 54.0 |" in text
    with pytest.raises(FileNotFoundError, match="No study.json"):
        page.collect(tmp_path / "nothing")
