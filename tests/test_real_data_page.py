"""The page of results on real images says what its JSON says."""

import importlib.util
import json
from pathlib import Path

import pytest


DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("render_real_data", DOCS / "render_real_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_rendered_from_the_results(page):
    results = json.loads(page.RESULTS.read_text(encoding="utf-8"))
    assert page.PAGE.read_text(encoding="utf-8") == page.render(results)


def test_results_name_machine_and_versions_and_no_path(page):
    text = page.RESULTS.read_text(encoding="utf-8")
    environment = json.loads(text)["environment"]
    assert environment["machine"]["cpu"] and environment["versions"]["torch"]
    assert not any(place in text + page.PAGE.read_text(encoding="utf-8") for place in ("/work", "/tmp", "/home"))


def test_collect_reads_what_train_wrote(page, tmp_path):
    run = {
        "title": "CoOp",
        "settings": {"method": "coop", "seed": 3, "shots": 16, "model": "/secret/place"},
        "data": {"path": "/secret/place"},
        "recipe": {"epochs": 2},
        "classes": {"base": ["a"], "novel": ["b"]},
        "test_images": {"base": 1, "novel": 2},
        "accuracy": {"base": 50.0, "novel": 25.0, "hm": 33.3},
        "environment": {"machine": {}},
    }
    run |= dict.fromkeys(("trainable_parameters", "adapter_bytes", "steps", "seconds_per_step", "train_seconds"), 1)
    for task in page.TASKS:
        folder = tmp_path / task / "coop-words-3"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(run))
    collected = page.collect(tmp_path)
    assert collected["tasks"]["emoji"]["runs"][0]["variant"] == "words"
    assert "secret" not in json.dumps(collected)
    with pytest.raises(FileNotFoundError, match="No runs"):
        page.collect(tmp_path / "nothing")
