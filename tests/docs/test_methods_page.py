"""The page that compares the methods says what its JSON says, of every method; the study makes only what is missing."""

import copy
import json
import re
import sys

import pytest

from peft_vprompt.tuners.base.recipe import Recipe
from peft_vprompt.tuners.base.registry import METHODS
from tests.support.pages import DOCS, check_page, load_page


@pytest.fixture(scope="module")
def page():
    return load_page("render/methods")


@pytest.fixture(scope="module")
def study():
    return load_page("../examples/studies/compare_methods")


@pytest.fixture
def results(page):
    return json.loads(page.RESULTS.read_text(encoding="utf-8"))


def test_page_is_rendered_from_the_results(page):
    check_page(page)


def test_every_method_of_the_table_has_a_row(page, study, results):
    expected = {spec.title for spec in METHODS.values() if not spec.is_baseline and spec.name not in study.LEFT_OUT}
    titles = {row["title"].partition(" (")[0] for row in results["rows"].values()}
    assert titles == expected
    text = page.PAGE.read_text(encoding="utf-8")
    for row in page.trained(results).values():
        assert f"| {row['title']} |" in text
    for name in study.LEFT_OUT:
        assert f"{METHODS[name].title} is left out" in text


def test_no_run_is_longer_than_the_rule(results):
    """By more than the shortest length."""
    for run in results["runs"]:
        recipe = results["rows"][run["method"]]["recipe"]
        if recipe is not None:
            assert run["steps"] <= results["rule"]["most_steps"] or run["epochs"] == results["rule"]["least_epochs"]
    keys = [tuple(run[name] for name in ("task", "method", "shots", "seed")) for run in results["runs"]]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("length", "epochs"),
    [({"epochs": 5}, 5), ({"epochs": 200}, 10), ({"epochs": None, "steps_per_shot": 500}, 10)],
)
def test_lengths_are_cut_to_whole_epochs(study, monkeypatch, length, epochs):
    monkeypatch.setattr(study, "MOST_STEPS", 80)
    recipe = Recipe(learning_rate=1.0, batch_size=32, source="", **length)
    assert study.epochs_of(recipe, 16, 256) == epochs
    assert study.epochs_of(Recipe(1.0, 1, 10, ""), 16, 256) == study.LEAST_EPOCHS
    assert study.epochs_of(Recipe(1.0, 128, 100, ""), 16, 192) == 80  # full batches only: one step per epoch


def test_only_what_is_missing_is_run(study, monkeypatch, tmp_path):
    monkeypatch.setattr(study, "RESULTS", tmp_path / "methods.json")
    monkeypatch.setattr(study, "SEEDS", (1, 2))
    made = []

    class Task:
        name = "embedded"

        def run(self, row, shots, seed, folder):
            made.append((row.title, seed))
            splits = ("base", "novel", "hm") if row.spec.new_classes else ("all",)
            numbers = dict.fromkeys(("trainable_parameters", "adapter_bytes", "steps", "train_seconds"), 1)
            named = {
                "classes": {"base": ["a"], "novel": ["b"]},
                "test_images": {},
                "chance": {},
                "environment": {"machine": {"cpu": "one"}},
            }
            return {"accuracy": dict.fromkeys(splits, 50.0), "recipe": {"epochs": 2}, **numbers, **named}

    assert not study.compare(Task(), (4,), tmp_path, deadline=0.0)
    assert made == [("Zero-shot", 1)]
    later = sys.float_info.max
    assert study.compare(Task(), (4,), tmp_path, later)
    count = len(study.rows()) - 1
    assert len(made) == len(set(made)) == 1 + 2 * count
    assert study.compare(Task(), (4,), tmp_path, later) and len(made) == 1 + 2 * count
    runs = study.read_results()["runs"]
    assert {run["base"] for run in runs} == {50.0} and any("novel" not in run for run in runs)
    monkeypatch.setattr(study, "MOST_STEPS", study.MOST_STEPS + 1)
    assert not study.read_results()["runs"]  # of another rule


def test_the_reading_follows_from_the_numbers(page, results):
    """Two methods with all seeds in one setting: one that helps, one that does not."""
    changed = copy.deepcopy(results)
    changed["tasks"] = {"embedded": changed["tasks"]["embedded"]}
    changed["shots"] = [16]
    zero_shot = changed["tasks"]["embedded"]["zero_shot"]
    changed["runs"] = [
        {"task": "embedded", "method": name, "shots": 16, "seed": seed, "epochs": 2, "steps": 9}
        | {"trainable_parameters": 5, "adapter_bytes": 6, "seconds": 1.0}
        | {part: zero_shot[part] + change for part in ("base", "novel", "hm")}
        for name, change in (("coop", 3.0), ("maple", -2.0))
        for seed in changed["seeds"]
    ]
    text = page.render(changed)
    assert re.search(r"\*\*Better in the harmonic mean\*\* there: CoOp \(\+3\.0\)\.\n", text)
    assert re.search(r"\*\*Worse in the harmonic mean\*\* there: MaPLe \(-2\.0\)\.\n", text)
    assert re.search(r"\| MaPLe \| [\d.]+ ± 0\.0 \(-2\.0\) ▼ \|", text) and "Not all cells were run" in text
    changed["runs"].pop()
    assert "2 of 3 seeds of MaPLe" in page.render(changed)


def test_the_picture_shows_the_results(page, results, figures, tmp_path):
    page.draw(results, tmp_path / "picture.png")
    panels = figures[0].axes
    assert len(panels) == len({(run["task"], run["shots"]) for run in results["runs"]})
    drawn = {line.get_label(): line for line in panels[0].lines}
    runs = page.runs_of(results, next(iter(results["tasks"])), results["shots"][0], "maple")
    assert drawn["MaPLe"].get_xydata().tolist() == [[page.mean(runs, "base"), page.mean(runs, "novel")]]
    assert (DOCS / "results" / "methods.png").is_file()
