"""Data with several labels for an image, and descriptions of classes, through the commands."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from peft_vprompt.export import Classifier
from tests.support.command_line import vprompt
from tests.support.saved_models import COLOURS


NAMES = sorted(COLOURS)[:3]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Images of one to three stripes of colours, as two tables."""
    root = tmp_path_factory.mktemp("scenes")
    semicolons, columns = ["image,label"], ["image," + ",".join(NAMES)]
    for index in range(28):
        of_image = [name for i, name in enumerate(NAMES) if (index % 7 + 1) >> i & 1]
        stripes = [np.full((8, 24, 3), COLOURS[name], np.uint8) for name in of_image]
        Image.fromarray(np.concatenate(stripes)).save(root / f"{index}.png")
        semicolons.append(f"{index}.png,{';'.join(of_image)}")
        columns.append(f"{index}.png,{','.join(str(int(name in of_image)) for name in NAMES)}")
    (root / "scenes.csv").write_text("\n".join(semicolons))
    (root / "columns.csv").write_text("\n".join(columns))
    return root


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    file = tmp_path_factory.mktemp("described") / "colours.json"
    file.write_text(json.dumps({name: [f"a {name} square", f"paint of {name}"] for name in COLOURS}))
    return file


QUICK = ("--multi-label", "--shots", 0, "--epochs", 2, "--batch-size", 8)


@pytest.fixture(scope="module")
def trained(scenes, clip_path, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "coop"
    said = vprompt(
        "train", "--output", output, "--model", clip_path, "--data", scenes / "scenes.csv", *QUICK, "--method", "coop"
    )
    return output, said


def test_training_and_evaluation_say_what_they_measure(trained, scenes, tmp_path):
    output, said = trained
    assert "Mean average precision in percent" in said and "--diagnose" not in said
    results = json.loads((output / "results.json").read_text())
    assert results["metric"] == "mean average precision" and results["classes"] == {"all": NAMES}
    assert json.loads((output / "adapter_config.json").read_text())["problem_type"] == "multi_label_classification"
    again = vprompt("evaluate", "--adapter", output, "--output", tmp_path / "a.json")
    assert "Mean average precision on all (3 classes" in again
    assert json.loads((tmp_path / "a.json").read_text())["accuracy"] == pytest.approx(results["accuracy"])
    # Other data, with a column for each class, of which one is left out.
    columns = (
        "--data",
        scenes / "columns.csv",
        "--multi-label",
        "--label-columns",
        NAMES[0],
        "--label-columns",
        NAMES[2],
    )
    vprompt("evaluate", "--adapter", output, *columns, "--output", tmp_path / "b.json")
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["classes"] == NAMES and found["images"] == 28
    assert found["chance"]["all"] == pytest.approx(100 * 4 / 7)  # each colour is in four of seven images


@pytest.mark.parametrize("method", ["vpt", "linear", "lora"])
def test_heads_are_trained_by_the_sigmoid_loss(method, scenes, vit_path, tmp_path):
    vprompt(
        *(
            "train",
            "--output",
            tmp_path,
            "--model",
            vit_path,
            "--data",
            scenes / "scenes.csv",
            *QUICK,
            "--method",
            method,
        )
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["metric"] == "mean average precision" and results["zero_shot"] is None
    first_loss = results["history"][0]["loss"]
    assert first_loss == pytest.approx(np.log(2), abs=0.25)  # of a head that knows nothing
    classifier = Classifier.from_pretrained(tmp_path, device="cpu")
    image = str(scenes / "6.png")  # of all three
    logits = classifier.logits_of(classifier.preprocess([image]))
    assert classifier.multi_label
    assert torch.equal(classifier.probabilities(image), logits.sigmoid())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--loss", "gce"), "loss='gce', which takes one"),
        (("--noise", "symmetric", "--noise-rate", 0.5), "labels that are noisy or not read"),
        (("--unlabelled",), "--multi-label or --unlabelled"),
    ],
)
def test_what_takes_one_class_for_each_image_is_refused(options, match, scenes, clip_path, tmp_path):
    said = vprompt(
        *("train", "--output", tmp_path, "--model", clip_path, "--data", scenes / "scenes.csv", *QUICK, *options),
        *("--method", "coop"),
        code=2,
    )
    assert match in " ".join(said.split())


def test_a_diagnosis_is_refused(trained, tmp_path):
    said = vprompt("evaluate", "--adapter", trained[0], "--diagnose", tmp_path, code=2)
    assert "Leave --diagnose and --test-time out" in " ".join(said.split())


def test_several_labels_have_to_be_in_the_data(colours, clip_path, tmp_path):
    options = ("--data", colours, "--label-column", "colour", "--method", "coop")
    several = ("--set", "problem_type=multi_label_classification")
    said = vprompt("train", "--output", tmp_path, "--model", clip_path, *options, *several, code=2)
    assert "Read them with multi_label=True (--multi-label)" in " ".join(said.split())


def test_descriptions_are_the_zero_shot_baseline(colours, clip_path, described, tmp_path):
    options = ("--model", clip_path, "--data", colours, "--label-column", "colour", "--class-descriptions", described)
    vprompt("train", "--output", tmp_path / "plain", *options, "--method", "zero-shot")
    train = ("--method", "kgcoop", "--shots", 2, "--epochs", 2, "--batch-size", 4)
    vprompt("train", "--output", tmp_path / "kgcoop", *options, *train)
    plain, trained = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("plain", "kgcoop"))
    assert trained["zero_shot"] == plain["accuracy"]
    saved = json.loads((tmp_path / "kgcoop" / "adapter_config.json").read_text())["class_descriptions"]
    assert saved == json.loads(described.read_text())
    # Without a word on descriptions, then with others: only the zero-shot row changes.
    other = tmp_path / "other.json"
    other.write_text(json.dumps({name: [name[::-1]] for name in COLOURS}))
    found = []
    for more in ((), ("--class-descriptions", other)):
        vprompt("evaluate", "--adapter", tmp_path / "kgcoop", *more, "--output", tmp_path / "found.json")
        found.append(json.loads((tmp_path / "found.json").read_text()))
    assert found[0]["accuracy"] == found[1]["accuracy"] == trained["accuracy"]
    assert found[0]["zero_shot_accuracy"] == plain["accuracy"]


def test_a_file_that_leaves_classes_out_is_refused(colours, clip_path, tmp_path):
    few = tmp_path / "few.json"
    few.write_text(json.dumps({"red": ["a red square"]}))
    options = ("--data", colours, "--label-column", "colour", "--class-descriptions", few, "--method", "coop")
    said = vprompt("train", "--output", tmp_path / "run", "--model", clip_path, *options, code=2)
    assert "Classes without a description" in said and "--class-descriptions" in said
    baseline = ("--method", "linear", "--model", clip_path, "--data", colours, "--label-column", "colour")
    said = vprompt("train", "--output", tmp_path / "run", *baseline, "--class-descriptions", few, code=2)
    assert "has no option class_descriptions" in " ".join(said.split())
