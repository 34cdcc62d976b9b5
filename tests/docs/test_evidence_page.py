"""The page of claims says what its JSON says; verdicts follow from the intervals; recipes are chosen by the scores."""

import json
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from peft_vprompt.tuners.base.registry import METHODS
from tests.support.pages import check_page, load_page


@pytest.fixture(scope="module")
def page():
    return load_page("render/evidence")


@pytest.fixture(scope="module")
def study():
    return load_page("../examples/studies/evidence")


def test_page_is_rendered_from_the_results(page, study):
    results = check_page(page)
    chosen = json.loads(study.RECIPES.read_text(encoding="utf-8"))
    for world in results["worlds"].values():
        assert world["recipes"] == chosen
        assert {claim["text"] for claim in world["claims"]} == {claim.text for claim in study.CLAIMS}


def test_every_method_that_learns_from_class_names_was_run(page, study):
    results = json.loads(page.RESULTS.read_text(encoding="utf-8"))
    expected = {*study.learning_from_names(study.PROTOCOL), study.ACCUMULATE, study.ZERO_SHOT}
    for name, world in results["worlds"].items():
        assert {row["method"] for row in world["rows"] if row["shots"] in (None, 16)} == expected, name
        trained = [row for row in world["rows"] if row["shots"] is not None]
        assert {row["seeds"] for row in trained} == {3}
        few = expected if name == "embedded" else {claim.method for claim in study.CLAIMS}
        for shots in (1, 2, 4, 8):
            assert few <= {row["method"] for row in world["rows"] if row["shots"] in (None, shots)}, (name, shots)


@pytest.mark.parametrize(
    ("sign", "low", "high", "mark"), [(1, 0.5, 2, "✔"), (1, -1, 2, ""), (1, -2, -0.5, "✘"), (-1, -2, -0.5, "✔")]
)
def test_a_claim_holds_where_its_whole_interval_does(page, sign, low, high, mark):
    shown = page.difference({"sign": sign, "difference": (low + high) / 2, "low": low, "high": high})
    assert shown.endswith("]" + (f" {mark}" if mark else ""))


def test_accuracies_in_bf16_that_are_lower_by_more_than_the_seeds_differ_are_marked(page):
    accuracy = lambda base, novel, std=1.0: {"base": {"mean": base, "std": std}, "novel": {"mean": novel, "std": std}}  # noqa: E731
    one = {"base": {"mean": 70.0, "std": 0.5}}
    rows = {
        "CoOp": {"float32": accuracy(80.0, 50.0), "bf16": accuracy(78.5, 51.5)},
        "Classifier-R": {"float32": one, "bf16": {"base": {"mean": 69.6, "std": 0.1}}},
        "Zero-shot": {"float32": accuracy(40.0, 60.0, None), "bf16": accuracy(39.0, 60.0, None)},
    }
    found = {"rows": rows, "seeds": 3, "tasks": {"shapes": "Shapes"}, "environment": {"machine": {"cpu": "A CPU"}}}
    shown = page.precision_text({"embedded": found})
    assert "| CoOp | 80.0 ± 1.0 | 78.5 ± 1.0 ◆ | 50.0 ± 1.0 | 51.5 ± 1.0 |" in shown
    assert "| Classifier-R | 70.0 ± 0.5 | 69.6 ± 0.1 | – | – |" in shown
    assert "| Zero-shot | 40.0 | 39.0 | 60.0 | 60.0 |" in shown
    assert "(1 of 5 accuracies;\n1 are higher" in shown
    assert (
        "--tasks shapes --precision bf16 --output runs/embedded-bf16\npython -m examples.studies.evidence precision"
        in shown
    )
    assert page.precision_text({}) == ""


@pytest.mark.nightly
def test_recipes_are_chosen_and_a_bench_is_collected(study, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "FACTORS", (1, 100))
    torch.set_num_threads(1)
    run = lambda *arguments: CliRunner().invoke(study.app, [str(each) for each in arguments], catch_exceptions=False)  # noqa: E731
    chosen = tmp_path / "recipes.json"
    options = ("--methods", "coop,tip-adapter", "--shots", 2, "--max-steps", 4)
    assert run("recipes", tmp_path / "runs", "--output", chosen, *options).exit_code == 0
    scores = json.loads((tmp_path / "runs/scores.json").read_text())
    assert scores.keys() == {"coop"} and scores["coop"].keys() == {"1", "100"}  # Tip-Adapter trains nothing
    best = max(scores["coop"], key=scores["coop"].get)
    rate = METHODS["coop"].recipe.learning_rate * int(best)
    assert json.loads(chosen.read_text()) == ({} if best == "1" else {"coop": {"learning_rate": pytest.approx(rate)}})
    output = tmp_path / "evidence.json"
    assert run("collect", "one", tmp_path / "runs", "--recipes", chosen, "--output", output).exit_code == 0
    assert run("collect", "two", tmp_path / "runs", "--recipes", chosen, "--output", output).exit_code == 0
    results = tmp_path / "runs"
    assert run("precision", "one", results, results, "--output", output).exit_code == 0
    by = json.loads(output.read_text())["precision"]["one"]["rows"]["CoOp"]
    assert by["float32"] == by["bf16"] and by["bf16"]["base"]["mean"] > 0
    worlds = json.loads(output.read_text())["worlds"]
    assert worlds["one"] == worlds["two"] and {row["method"] for row in worlds["one"]["rows"]} >= {"zero-shot"}


def test_a_score_is_the_harmonic_mean_or_base(study):
    values = {"base": {1: 80.0}, "novel": {1: 40.0}}
    results = SimpleNamespace(values=lambda task, method, shots, test: values.get(test, {}))
    assert study.score_of(results, "coop", 16, 1) == pytest.approx(53.33)
    del values["novel"]
    assert study.score_of(results, "clap", 16, 1) == 80
