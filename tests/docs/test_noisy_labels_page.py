"""The page on noisy labels says what its JSON says, and its verdicts follow from the numbers."""

import json
import re

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


def claim(lines, *words):
    """The numbers of the one claim with these words, and its verdict: true, false, or as it is written."""
    (line,) = [line for line in lines if all(word in line for word in words)]
    numbers = [float(number) for number in re.findall(r"[+-]?\d+\.\d+", line.partition(": ")[2])]
    verdict = re.search(r"\*\*(.+)\.\*\*", line)
    return numbers, verdict and {"Holds here": True, "Does not hold here": False}.get(verdict[1], verdict[1])


def test_verdicts_follow_from_the_numbers(page):
    good, bad = (page.claims(results(page, accuracy)) for accuracy in (70.0, 30.0))
    assert claim(good, "degrades least", "cross-entropy") == ([10.0, 30.0], True)
    assert claim(bad, "degrades least", "cross-entropy") == ([30.0, 50.0], False)
    assert claim(good, "degrades least", "GCE") == ([4.0, 20.0], True)
    assert claim(good, "GCE helps") == ([5.0, 5.0], True)
    assert claim(good, "GCE costs") == ([-1.0, -5.0], "Holds for 1 of 2 methods here")
    assert claim(good, "class names regularise") == ([70.0, 60.0, 61.0], True)
    assert claim(bad, "class names regularise") == ([30.0, 60.0, 61.0], False)
    assert claim(good, "Context length") == ([1.0, 10.0], None)
    assert claim(good, "UPL beats zero-shot") == ([55.0, 50.0], True)
    assert claim(good, "beats UPL") == ([54.0, 55.0, 50.0], False)
    assert claim(good, "Gradients") == ([2.0, -0.5], None)
    assert not [line for line in good if "Below zero-shot" in line]


def test_methods_that_learned_nothing_are_named(page):
    result = results(page, 70.0)
    for row in result["summary"]:
        row["mean"] = 75.0 if row["unlabelled"] == "zero-shot" else row["mean"]
    (line,) = [line for line in page.claims(result) if "Below zero-shot" in line]
    assert "75.0" in line and re.findall(r"([^:,]+, num_virtual_tokens=1) ([\d.]+)\.", line) == [
        (" CoOp, num_virtual_tokens=1", "70.0")
    ]


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
