"""The page on image encoders under wrong labels says what its JSON says, and its verdicts follow from the numbers."""

import re
import subprocess
import sys

import pytest

from peft_vprompt.utils.io import read_json
from tests.support.pages import DOCS, check_page, load_page


@pytest.fixture(scope="module")
def page():
    return load_page("render/noise_on_backbones")


def test_page_is_rendered_from_the_results(page):
    results = check_page(page)
    assert list(results["models"]) == ["vit", "resnet"]
    embedded = read_json(DOCS / "results/methods.json")["tasks"]["embedded"]["zero_shot"]
    shown = {name: f"{embedded[name]:.1f}" for name in ("base", "novel")}  # the same measurement as on other pages
    assert {name: f"{value:.1f}" for name, value in results["models"]["vit"]["task_accuracy"].items()} == shown
    for model in results["models"].values():
        assert {run["noise"] for run in model["runs"]} == {None, *page.KINDS}
        assert {run["loss"] for run in model["runs"]} == set(page.LOSSES)
        assert len({run["seed"] for run in model["runs"]}) >= 3


def test_check_finds_a_page_that_is_another(tmp_path):
    script = (DOCS / "render/noise_on_backbones.py").read_text()
    copy = tmp_path / "render" / "noise_on_backbones.py"
    for path in (copy, tmp_path / "results" / "noise_on_backbones.json"):
        path.parent.mkdir()
    copy.write_text(script)
    (tmp_path / "results" / "noise_on_backbones.json").write_bytes(
        (DOCS / "results/noise_on_backbones.json").read_bytes()
    )
    text = (DOCS / "noise_on_backbones.md").read_text()
    for shown, code in ((text, 0), (text + "more", 1)):
        (tmp_path / "noise_on_backbones.md").write_text(shown)
        run = subprocess.run([sys.executable, copy, "--check"], capture_output=True, text=True)
        assert run.returncode == code, run.stderr
    assert "run `python docs/render/noise_on_backbones.py`" in run.stderr


def row(method, loss, noise, rate, mean):
    titles = {"coop": "CoOp", "classifier-c": "Classifier-C"}
    return {"method": method, "title": titles[method], "loss": loss, "noise": noise, "rate": rate,
            "unlabelled": None, "mean": mean, "std": 1.0, "seeds": 3, "diverged": 0}  # fmt: skip


def summary(clean: float, coop: float, classifier: float, gce: float) -> list[dict]:
    """Rows of one CLIP: random noise alone, half of the labels wrong."""
    rows = [row(method, "ce", None, 0.0, clean) for method in ("coop", "classifier-c")]
    rows += [row("coop", "gce", None, 0.0, clean), row("coop", "gce", "symmetric", 0.5, gce)]
    return [*rows, row("coop", "ce", "symmetric", 0.5, coop), row("classifier-c", "ce", "symmetric", 0.5, classifier)]


def claims(page, vit: list[dict], resnet: list[dict]) -> dict[str, str]:
    lines = page.claims({"models": {"vit": {"summary": vit}, "resnet": {"summary": resnet}}})
    return {line.partition("*: ")[0].partition(" (")[0].strip("*"): line for line in lines}


def test_verdicts_follow_from_the_numbers(page):
    good, bad = summary(80.0, 70.0, 60.0, 75.0), summary(80.0, 50.0, 60.0, 40.0)
    for vit, resnet, verdict in (
        (good, good, "Holds on both"),
        (good, bad, "Holds on the ViT alone"),
        (bad, good, "Holds on the ResNet alone"),
        (bad, bad, "Holds on neither"),
    ):
        found = claims(page, vit, resnet)
        assert all(
            f"**{verdict}.**" in found[name]
            for name in ("Prompt tuning degrades least", "GCE helps CoOp at 50 % random noise")
        )
    least = claims(page, good, bad)["Prompt tuning degrades least"]
    assert re.findall(r"[\d.]+(?=[,;.] )", least.partition("%): ")[2]) == ["10.0", "20.0", "20.0", "30.0"]
    assert "ViT +5.0, ResNet -10.0" in claims(page, good, bad)["GCE helps CoOp at 50 % random noise"]


def test_the_order_of_the_encoders_is_counted(page):
    better, worse = summary(80.0, 70.0, 40.0, 75.0), summary(70.0, 60.0, 50.0, 65.0)
    (line,) = [text for text in claims(page, better, worse).values() if text.startswith("The encoder")]
    assert "in 2 of 3 settings" in line  # Classifier-C is the one that changes sides
