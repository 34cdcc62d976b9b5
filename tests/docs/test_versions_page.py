"""The page on versions is what its results give, and what ran has passed tests."""

import json

from examples.studies.versions import PYTHONS, SETS, lowest
from tests.support.pages import ABSOLUTE_PATH, load_page


def test_the_page_is_what_its_results_give():
    page = load_page("render/versions")
    text, shown = (path.read_text(encoding="utf-8") for path in (page.RESULTS, page.PAGE))
    results = json.loads(text)
    assert shown == page.render(results)
    assert not ABSOLUTE_PATH.search(text + shown)
    assert set(results["runs"]) <= {f"{python} {name}" for python in PYTHONS for name in SETS}
    ran = [run for run in results["runs"].values() if "not_run" not in run]
    assert all(run["passed"] for run in ran)


def test_the_lowest_releases_are_those_that_the_package_asks_for():
    assert lowest() == ["peft==0.21.0", "torch==2.6.0", "transformers==5.9.0"]
