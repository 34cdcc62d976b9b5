"""The page that compares the ways to transfer says what its JSON says."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest
from test_transfer import COUNTS


DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("render_transfer", DOCS / "render_transfer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def results(page):
    return json.loads(page.RESULTS.read_text(encoding="utf-8"))


def test_page_is_rendered_from_the_results(page, results):
    assert page.PAGE.read_text(encoding="utf-8") == page.render(results)
    assert page.PICTURE.read_bytes().startswith(b"\x89PNG")


def test_results_name_machine_and_versions_and_no_path(page, results):
    assert results["environment"]["machine"]["cpu"] and results["environment"]["versions"]["torch"]
    text = page.RESULTS.read_text(encoding="utf-8") + page.PAGE.read_text(encoding="utf-8")
    assert not any(place in text for place in ("/work", "/tmp", "/home"))


def test_every_row_has_every_run(results):
    numbers = {
        (tuple(row["shots"]), *(len(part["runs"]) for part in row["shots"].values())) for row in results["rows"]
    }
    assert len(numbers) == 1 and set(next(iter(numbers))[1:]) == {3}
    for row in results["rows"]:
        assert row["best"] in row["trials"]
        assert row["best"]["accuracy"] == max(trial["accuracy"] for trial in row["trials"])


def test_counts_are_the_published_ones(results):
    published = {name: count for (name, options), count in COUNTS.items() if not options}
    counted = {row["name"]: row["parameters"] for row in results["vit_b16"]}
    assert published.items() <= counted.items()
    assert counted["adapter"] == COUNTS["adapter", (("reduction_factor", 8),)]


def test_verdicts_follow_from_the_numbers(page, results):
    changed = copy.deepcopy(results)
    for row in changed["rows"]:
        level = {"VPT-deep": 90.0, "VPT-shallow": 80.0, "Linear": 70.0, "Full": 95.0}.get(row["title"], 60.0)
        for part in row["shots"].values():
            for run in part["runs"]:
                run["accuracy"] = level
            part["accuracy"]["mean"] = level
    text = page.render(changed)
    assert "VPT-deep against VPT-shallow: **holds**: +10.0 at 1 (3 of 3)" in text
    assert "VPT-deep against Full: **does not hold**" in text
    for run in next(row for row in changed["rows"] if row["title"] == "Full")["shots"]["4"]["runs"]:
        run["accuracy"] = 10.0
    assert "VPT-deep against Full: **holds at 4 shots only**" in page.render(changed)
