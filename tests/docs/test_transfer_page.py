"""The page that compares the fine-tuning baselines says what its JSON says."""

import copy
import json
import re

import pytest
import torch
from transformers import CLIPVisionModel

from peft_vprompt.demo import demo_model_path
from peft_vprompt.experiments.models import load_base
from tests.support.pages import check_page, load_page
from tests.support.published_counts import COUNTS


@pytest.fixture(scope="module")
def page():
    return load_page("render/transfer")


def test_the_vit_starts_from_the_embedded_clip_and_takes_new_classes(tmp_path):
    pretraining = load_page("../examples/studies/pretrain_vit")
    clip, vit = CLIPVisionModel.from_pretrained(demo_model_path()), pretraining.build()
    last, ours = clip.encoder.layers[-1], vit.vit.layers[-1]
    hidden = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(hidden), last(hidden, None), rtol=0, atol=1e-5)
    assert torch.equal(vit.vit.layernorm.weight, clip.post_layernorm.weight)
    assert torch.equal(vit.vit.embeddings.position_embeddings[0], clip.embeddings.position_embedding.weight)
    record = pretraining.pretrain(tmp_path, steps=2, batch_size=4, pictures=8)
    assert set(record["accuracy"]) == {"shape", "fill", "colour"} and len(record["loss"]) == 2
    model = load_base(str(tmp_path), ["red", "green", "blue"])
    output = model(torch.zeros(2, 3, 48, 48), labels=torch.tensor([0, 2]))
    assert output.logits.shape == (2, 3) and output.loss > 0


@pytest.fixture
def results(page):
    return json.loads(page.RESULTS.read_text(encoding="utf-8"))


def test_page_is_rendered_from_the_results_which_name_machine_and_versions_and_no_path(page):
    check_page(page)


def test_the_picture_shows_the_results(page, results, figures, tmp_path):
    page.draw(results, tmp_path / "picture.png")
    panels = figures[0].axes
    assert len(panels) == len(results["rows"][0]["shots"])
    for panel, shots in zip(panels, results["rows"][0]["shots"], strict=True):
        drawn = {bars.get_label(): bars[0].get_xydata().tolist() for bars in panel.containers}
        assert drawn == {
            row["title"]: [[row["trainable_parameters"], row["shots"][shots]["accuracy"]["mean"]]]
            for row in results["rows"]
        }


def parts(results):
    """Every method at every number of shots."""
    return [part for row in results["rows"] for part in row["shots"].values()]


def test_every_row_has_every_run(results):
    numbers = {
        (tuple(row["shots"]), *(len(part["runs"]) for part in row["shots"].values())) for row in results["rows"]
    }
    assert len(numbers) == 1 and set(next(iter(numbers))[1:]) == {3}
    for part in parts(results):
        assert part["best"] in part["trials"]
        assert part["best"]["accuracy"] == max(trial["accuracy"] for trial in part["trials"])


def test_counts_are_the_published_ones(results):
    published = {name: count for (name, options), count in COUNTS.items() if not options}
    counted = {row["name"]: row["parameters"] for row in results["vit_b16"]}
    assert published.items() <= counted.items()
    assert counted["adapter"] == COUNTS["adapter", (("reduction_factor", 8),)]


def claim(text, better, worse):
    """The verdict on a claim, and its numbers: difference, shots, seeds in which the first is better, seeds."""
    verdict, rest = re.search(rf"\({better} against {worse}\): \*\*(.+?)\*\*(.*)", text).groups()
    return verdict, re.findall(r"([+-][\d.]+) at (\d+) \((\d) of (\d)\)", rest)


def test_verdicts_follow_from_the_numbers(page, results):
    changed = copy.deepcopy(results)
    for row in changed["rows"]:
        level = {"VPT-deep": 90.0, "VPT-shallow": 80.0, "Linear": 70.0, "Full": 95.0}.get(row["title"], 60.0)
        for part in row["shots"].values():
            for run in part["runs"]:
                run["accuracy"] = level
            part["accuracy"]["mean"] = level
    first, *others = changed["rows"][0]["shots"]
    verdict, differences = claim(page.render(changed), "VPT-deep", "VPT-shallow")
    assert verdict == "holds" and differences == [("+10.0", shots, "3", "3") for shots in (first, *others)]
    verdict, differences = claim(page.render(changed), "VPT-deep", "Full")
    assert verdict == "does not hold" and differences[0] == ("-5.0", first, "0", "3")
    for run in next(row for row in changed["rows"] if row["title"] == "Full")["shots"][others[0]]["runs"]:
        run["accuracy"] = 10.0
    assert claim(page.render(changed), "VPT-deep", "Full")[0] == f"holds at {others[0]} shots only"


def test_the_rate_was_chosen_inside_the_grid_and_the_lengths_are_those_of_the_runs(page, results):
    rates = sorted({trial["base_rate"] for part in parts(results) for trial in part["trials"]})
    for part in parts(results):
        tried = sorted(trial["base_rate"] for trial in part["trials"])
        best = part["best"]["base_rate"]
        assert tried[0] < best or best == rates[0]
        assert best < tried[-1] or best == rates[-1]
    epochs, steps = re.search(
        r"(\d+) epochs \((\d+) steps\) at 4 shots", page.PAGE.read_text(encoding="utf-8")
    ).groups()
    assert int(steps) == int(epochs) * 4 * results["classes"] // results["batch_size"]
