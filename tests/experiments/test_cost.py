"""What a training costs, on tiny models: counted as it would be trained, written cell by cell, and told."""

import json
from dataclasses import replace

import pytest

from peft_vprompt.experiments import cost
from peft_vprompt.experiments.cost import CostCell, CostTask, class_names, measure_cell, training_costs
from peft_vprompt.experiments.cost_tables import HEADINGS, cost_row, duration, quickest
from peft_vprompt.tuners.base.registry import METHODS
from tests.support.command_line import next_command, vprompt


@pytest.fixture
def task(clip_path):
    return CostTask(model=clip_path, shots=2, seconds=0.0)


@pytest.mark.parametrize(
    ("method", "classes", "steps", "of_features"),
    [
        ("coop", 20, 100 * 1, True),  # 100 epochs for up to 4 shots, of 40 images in batches of 32, the last left out
        ("maple", 6, 5 * 3, False),
        ("cocoop", 3, 10 * 6, True),
        ("2sfs", 3, 600, False),
        ("tip-adapter", 3, 0, False),
        ("clap", 3, None, False),
    ],
)
def test_a_training_is_counted_as_it_would_be_made(method, classes, steps, of_features, task):
    cell = measure_cell(CostCell(method, classes), task)
    assert steps is None or cell["steps"] == steps
    assert cell["can_cache"] == of_features
    assert cell["peak_bytes"] >= cell["model_bytes"] > 10**7
    assert (cell["encode_seconds"] > 0) == (METHODS[method].support is not None)
    told = 3600 * cell["hours"]
    assert told == pytest.approx(cell["encode_seconds"] + cell["steps"] * (cell["seconds_per_step"] or 0)) and told > 0
    assert len(
        cost_row(cell | {"method": method, "classes": classes, "cached": False, "precision": "float32"})
    ) == len(HEADINGS)


def test_features_are_encoded_once(task):
    cell = measure_cell(CostCell("coop", 20, cached=True), task)
    assert cell["encode_seconds"] > 0 and not cell["can_cache"] and cell["steps"] == 100


def test_an_image_classifier(vit_path):
    task = CostTask(model=vit_path, shots=2, seconds=0.0)
    cell = measure_cell(CostCell("vpt", 4), task)
    assert cell["steps"] == 100 and not cell["can_cache"]


def test_cells_of_the_same_task_are_kept(task, tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(
        cost, "measure_cell", lambda cell, task: measured.append(cell.key) or {"can_cache": cell.method == "coop"}
    )
    file = tmp_path / "cost.json"
    options = {"output": file, "isolated": False, "name": "tiny"}
    training_costs(task, ["coop"], [3], **options)
    assert measured == ["coop/3 classes/float32/images", "coop/3 classes/float32/features"]
    report = training_costs(task, ["coop", "maple"], [3], **options)
    assert measured[2:] == ["maple/3 classes/float32/images"] and len(report["cells"]) == 3
    assert json.loads(file.read_text()) == report and report["about"]["model"] == "tiny"


def test_cells_of_another_task_are_not_lost(task, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "measure_cell", lambda cell, task: {"can_cache": False})
    file = tmp_path / "cost.json"
    options = {"output": file, "isolated": False}
    training_costs(replace(task, shots=1), [], [], **options)  # nothing was measured, and nothing can be lost
    training_costs(task, ["coop"], [3], **options)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=rf"shots was {task.shots}, now {task.shots + 1}\. Measure as there, or"):
        training_costs(replace(task, shots=task.shots + 1), ["coop"], [3], **options)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("methods", "classes", "said"),
    [
        (["zero-shot"], [3], "trains nothing"),
        (["promptkd"], [3], "needs a teacher"),
        (["nothing"], [3], "No method"),
        (["coop"], [1], "Expected classes to be an integer >= 2"),
    ],
)
def test_what_has_no_cost(methods, classes, said, task, tmp_path):
    with pytest.raises(ValueError, match=said):
        training_costs(task, methods, classes, output=tmp_path / "cost.json")
    assert not list(tmp_path.iterdir())


def test_names_differ_however_many():
    assert [len(set(class_names(count))) for count in (2, 37, 5000)] == [2, 37, 5000]


def test_times_are_told_in_their_unit():
    assert [duration(seconds) for seconds in (3.2, 300, 7200)] == ["3 s", "5 min", "2.0 h"]
    assert quickest({"cells": {"a": {"skipped": "for want of memory"}}}) is None


def test_command(clip_path, tmp_path):
    file = tmp_path / "cost.json"
    shown = vprompt(
        *("cost", "--model", clip_path, "--method", "coop,maple", "--classes", 3, "--shots", 2, "--seconds", 0),
        *("--output", file),
    )
    assert "CoOp" in shown and "features" in shown and "Saved in" in shown
    cells = json.loads(file.read_text())["cells"].values()
    assert [(cell["method"], cell["cached"]) for cell in cells] == [("coop", False), ("coop", True), ("maple", False)]
    assert all(cell["peak_bytes"] > cell["model_bytes"] for cell in cells)
    assert next_command(shown)[:3] == ["train", "--model", clip_path]
    (tmp_path / "mine.json").write_text("{}")
    shown = vprompt("cost", "--model", clip_path, "--output", tmp_path / "mine.json", code=2)
    assert "which holds something else" in shown
