"""The scripts of examples/protocols run as they stand, on the embedded model, and print what their protocol is about."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from peft import PeftConfig

from tests.support.models import often


pytestmark = pytest.mark.usefixtures("forgetful")

FOLDER = Path(__file__).parents[2] / "examples" / "protocols"
#: Script -> what it prints an accuracy of, beside which the adapter lies.
SCRIPTS = {
    "base_to_novel": ("base", "novel", "harmonic mean"),
    "few_shot_curve": ("1 shots", "2 shots", "zero-shot"),
    "cross_dataset": ("source", "toys", "signs"),
    "domain_generalization": ("source", "dusk", "mosaic", "sketch"),
    "with_accelerate": ("base", "novel", "harmonic mean"),
}
TINY = {"shots": [1], "max_steps": 1, "num_train_epochs": 1, "per_device_eval_batch_size": 100, "use_cpu": True, "disable_tqdm": True}  # fmt: skip


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a script in this process with these arguments; the accuracies that it printed, by name."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def call(name: str, *arguments) -> dict[str, float]:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        shown = re.findall(r"^([\w -]+): ([\d.]+) %$", capsys.readouterr().out, re.M)
        return {what: float(value) for what, value in shown}

    yield call
    sys.modules.pop("common", None)


@pytest.fixture
def few_images(monkeypatch):
    """A part of the embedded tasks' test images: two of each class."""
    from peft_vprompt import demo

    whole = demo.demo_task

    def some(split, name="shapes"):
        rows = whole(split, name)
        return rows.select(range(0, len(rows), 10)) if split == "test" else rows

    monkeypatch.setattr(demo, "demo_task", some)


@pytest.mark.parametrize("name", often(list(SCRIPTS), ["base_to_novel"]))
def test_scripts_print_their_protocol(name, run, few_images, tmp_path):
    file = tmp_path / ("arguments.json" if name == "cross_dataset" else "arguments.yaml")
    shots = {"shots": [1, 2]} if name == "few_shot_curve" else {}
    arguments = TINY | shots | {"output_dir": str(tmp_path / "out")}
    file.write_text(json.dumps(arguments) if file.suffix == ".json" else yaml.safe_dump(arguments))
    found = run(name, file)
    assert tuple(found) == SCRIPTS[name] and all(0 <= value <= 100 for value in found.values())
    if "harmonic mean" in found and found["base"]:
        base, novel = found["base"], found["novel"]
        assert found["harmonic mean"] == pytest.approx(2 * base * novel / (base + novel), abs=0.2)
    place = tmp_path / "out" / ("2-shots" if name == "few_shot_curve" else "")
    assert len(PeftConfig.from_pretrained(str(place)).class_names) in (16, 32)


def test_every_script_is_run():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*SCRIPTS, "common"}


def test_the_file_of_arguments_is_one(monkeypatch):
    """The YAML file beside the script says what the script takes."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", ["base_to_novel.py", str(FOLDER / "base_to_novel.yaml")])
    common = runpy.run_path(str(FOLDER / "common.py"))
    arguments, training = common["parse"](learning_rate=1.0, num_train_epochs=1)
    assert (arguments.shots, training.learning_rate, training.num_train_epochs) == ([16], 0.001, 5)
    assert training.report_to == [] and not training.remove_unused_columns
