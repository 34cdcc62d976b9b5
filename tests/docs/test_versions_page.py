"""The page on versions is what its results give, and what ran has passed tests."""

import json
import re
import tomllib

from examples.studies import versions
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


def test_extras_that_are_installed_are_the_package_s(monkeypatch):
    commands = []
    monkeypatch.setattr(versions.subprocess, "run", lambda command, **_: commands.append(" ".join(command)))
    versions.environment("python3.11", "3.11", "newest")
    assert any(f"-e {versions.ROOT}" in command for command in commands)
    project = tomllib.loads((versions.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(re.findall(r"\[(\w+)\]", " ".join(commands))) <= set(project["optional-dependencies"])


def test_the_lowest_releases_are_those_that_the_package_asks_for():
    assert lowest() == ["peft==0.21.0", "torch==2.6.0", "transformers==5.9.0"]
