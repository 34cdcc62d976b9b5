"""The page of results on real images says what its JSON says."""

import json

import pytest

from tests.support.pages import check_page, load_page


@pytest.fixture(scope="module")
def page():
    return load_page("render/real_data")


def test_page_is_rendered_from_the_results(page):
    check_page(page)


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
