"""Text around class names: CLIP's ensembles, published templates, and evaluation on tasks that were not trained on."""

import json

import pytest
import torch
from peft import get_peft_model

from peft_vprompt import VisualPromptConfig
from peft_vprompt.core.prompt_templates import ENSEMBLES
from peft_vprompt.data import find_task
from peft_vprompt.experiments.templates import NAMES, read_templates, set_templates
from peft_vprompt.tuners.base.class_name_checks import check_templates
from peft_vprompt.tuners.promptsrc.templates import TEMPLATES
from peft_vprompt.tuners.tcp import TCP
from tests.data.test_prompting_tasks import write_split_file
from tests.support.command_line import QUICK, train, vprompt
from tests.support.models import CLASS_NAMES, tiny_clip, tiny_vit


pytestmark = pytest.mark.filterwarnings("ignore:.*classes; the published files name")


def test_ensembles_are_those_of_clips_authors():
    seven, eighty = ENSEMBLES["ensemble-7"], ENSEMBLES["ensemble-80"]
    assert (len(seven), len(eighty)) == (7, 80) == (len(set(seven)), len(set(eighty)))
    assert set(seven) < set(eighty)  # they were chosen among the eighty
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 60 and set(TEMPLATES) < set(eighty)
    check_templates("templates", seven + eighty)


def test_names_texts_and_both_together():
    pets = "a photo of a {}, a type of pet."
    assert read_templates(None) is None and read_templates([]) is None
    assert read_templates(["single"]) == "a photo of a {}."
    assert read_templates(["dataset"], "coop-11/oxford_pets") == pets
    assert read_templates(["ensemble-80"]) == ENSEMBLES["ensemble-80"]
    # CoOp's ensemble for other data sets than ImageNet (`trainers/zsclip.py`), each text once.
    assert read_templates(["ensemble-7", "dataset", "art of the {}."], "coop-11/oxford_pets") == [
        *ENSEMBLES["ensemble-7"],
        pets,
    ]
    assert NAMES == ("single", "dataset", "ensemble-7", "ensemble-80")


@pytest.mark.parametrize(
    ("given", "options", "match"),
    [
        (["ensemble-8"], {}, "or one of single, dataset, ensemble-7, ensemble-80. Received: 'ensemble-8'"),
        (["dataset"], {}, "for --template dataset. Received: no --benchmark"),
        (["dataset"], {"benchmark": "vtab-1k/cifar"}, "Received: vtab-1k/cifar"),
        (["single"], {"described": True}, "--template or --class-descriptions"),
    ],
)
def test_what_is_no_template_is_refused(given, options, match):
    with pytest.raises(ValueError, match=match):
        read_templates(given, **options)


def test_a_head_reads_no_text():
    model = get_peft_model(tiny_vit(), VisualPromptConfig())
    with pytest.raises(ValueError, match="a classification head, which reads no text"):
        set_templates(model, "a {}.")


@pytest.mark.parametrize(
    ("method", "case", "reads"),
    [
        ("visual_prompt", "shallow", True),
        ("read_only_prompt", "rpo", True),
        ("mrpo", "replace", True),
        ("tcp", "random", True),
        ("tip_adapter", "trained", True),
        ("mmrl", "one-layer", True),
        ("text_encoder", "whole", True),
        ("context_opt", "end", False),
        ("kgcoop", "random", False),
        ("maple", "maple", False),
    ],
)
def test_the_text_of_an_adapter_is_replaced(method, case, reads, make):
    """As if it had been made with it, where it is read at all; a learned context stays. Zero-shot always reads it."""
    model, other = (get_peft_model(tiny_clip(), make(method, case, template=text)) for text in ("{}", "an art of {}."))
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        before = model.eval().encode_classes()
        set_templates(model, "an art of {}.")
        assert torch.equal(before, model.encode_classes()) != reads
        torch.testing.assert_close(model.encode_classes(), other.eval().encode_classes(), rtol=0, atol=1e-6)
        with model.disable_adapter(), other.disable_adapter():
            torch.testing.assert_close(model.encode_classes(), other.encode_classes(), rtol=0, atol=1e-6)
    assert model.class_names == CLASS_NAMES


COLOURS = ("red", "blue", "green", "white")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Two published tasks with different classes: eurosat and oxford_pets."""
    root = tmp_path_factory.mktemp("tasks")
    write_split_file(root, "eurosat", classes=COLOURS)
    write_split_file(root, "oxford_pets", classes=("cat", "sea_lion", "dog"))
    return root


def evaluated(folder, tasks, *options):
    file = folder / "found.json"
    said = vprompt("evaluate", "--adapter", folder, "--output", file, "--data", tasks, *options)
    return json.loads(file.read_text()), " ".join(said.split())


@pytest.mark.parametrize("method", ["coop", "rpo"])
def test_another_task_brings_its_classes_and_its_template(method, tasks, clip_path, tmp_path):
    train(tmp_path, clip_path, tasks, "--method", method, "--benchmark", "coop-11/eurosat", *QUICK)
    other = ("--benchmark", "coop-11/oxford_pets")
    pets = find_task(other[1]).template
    moved, said = evaluated(tmp_path, tasks, *other)
    assert moved["classes"] == ["cat", "sea_lion", "dog"] and moved["template"] == pets
    assert (
        f"coop-11/oxford_pets is not what was trained on: the task's own classes are told apart, in the template '{pets}'"
        in said
    )
    same, said = evaluated(tmp_path, tasks, "--benchmark", "coop-11/eurosat")
    assert same["classes"] == [*COLOURS] and "template" not in same and "not what was trained on" not in said
    own, _ = evaluated(tmp_path, tasks, *other, "--template", find_task("coop-11/eurosat").template)
    named, _ = evaluated(tmp_path, tasks, *other, "--template", "dataset")
    assert (named["accuracy"], named["zero_shot_accuracy"]) == (moved["accuracy"], moved["zero_shot_accuracy"])
    assert own["template"] != moved["template"]
    if method == "coop":  # the learned context stands for the template
        assert own["accuracy"] == moved["accuracy"]


def test_the_text_of_vpt_is_the_same_on_all_tasks_and_zero_shot_reads_the_tasks(tasks, clip_path, tmp_path):
    train(tmp_path, clip_path, tasks, "--method", "vpt", "--benchmark", "coop-11/oxford_pets", *QUICK)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["template"] == "a photo of a {}."
    (tmp_path / "z").mkdir()
    train(tmp_path / "z", clip_path, tasks, "--method", "zero-shot", "--benchmark", "coop-11/oxford_pets")
    run, plain = (json.loads((folder / "results.json").read_text()) for folder in (tmp_path, tmp_path / "z"))
    assert run["zero_shot"] == plain["accuracy"]
    found, _ = evaluated(tmp_path, tasks, "--benchmark", "coop-11/oxford_pets")
    assert found["zero_shot_accuracy"] == plain["accuracy"]
    taken, _ = evaluated(tmp_path, tasks)  # the run's task, as nothing else is said
    assert taken["zero_shot_accuracy"] == plain["accuracy"]
    moved, _ = evaluated(tmp_path, tasks, "--benchmark", "coop-11/eurosat")
    assert "template" not in moved


def test_another_task_brings_the_text_behind_tcps_context(tasks, clip_path, tmp_path, monkeypatch):
    train(tmp_path, clip_path, tasks, "--method", "tcp", "--benchmark", "coop-11/oxford_pets", *QUICK)
    read, sequences = set(), TCP.class_sequences
    monkeypatch.setattr(
        TCP,
        "class_sequences",
        lambda tcp, config, *names: read.add(config.prompt_template) or sequences(tcp, config, *names),
    )
    evaluated(tmp_path, tasks, "--benchmark", "coop-11/eurosat")
    assert read == {"{}."}  # and not "{}, a type of pet."


def test_zero_shot_by_ensembles(colours, clip_path, tmp_path):
    options = ("--method", "zero-shot", "--template", "ensemble-7", "--template", "a {} square")
    train(tmp_path / "z", clip_path, colours, *options)
    config = json.loads((tmp_path / "z" / "results.json").read_text())
    assert config["settings"]["config"]["template"] == [*ENSEMBLES["ensemble-7"], "a {} square"]
    train(tmp_path / "a", clip_path, colours, "--method", "coop", *QUICK)
    found, _ = evaluated(tmp_path / "a", colours, "--label-column", "colour", *options[2:])
    assert found["zero_shot_accuracy"] == config["accuracy"]
    refused = ("--template", "single", "--class-descriptions", "x.json")
    said = vprompt("evaluate", "--adapter", tmp_path / "a", *refused, code=2)
    assert "Expected --template or --class-descriptions" in " ".join(said.split())


def test_predictions_of_zero_shot(colours, clip_path, tmp_path):
    import numpy as np
    import pyarrow.parquet as pq

    from peft_vprompt.data import DataOptions, load_images
    from peft_vprompt.experiments.models import build_model
    from peft_vprompt.experiments.zero_shot_scores import zero_shot

    names = ["red", "blue", "green", "white"]
    (tmp_path / "names.txt").write_text("\n".join(names))
    images = ("--data", colours, "--class-names", tmp_path / "names.txt")
    output = tmp_path / "found.parquet"
    vprompt("predict", "--model", clip_path, *images, "--template", "ensemble-7", "--top-k", 4, "--output", output)
    bundle = build_model(clip_path, "zero-shot", names, template=ENSEMBLES["ensemble-7"])
    every = load_images(DataOptions(colours, label_column="colour", test_fraction=0))["train"]
    table = zero_shot(bundle, every, names)
    rows = pq.read_table(output).to_pylist()
    assert len(rows) == len(table)
    labels = [row["label"] for row in rows]
    assert labels == [names[index] for index in table.argmax(1)]
    np.testing.assert_allclose([row["probability"] for row in rows], table.max(1), atol=1e-5)
    described = {name: [text.format(name) for text in ENSEMBLES["ensemble-7"]] for name in names}
    (tmp_path / "described.json").write_text(json.dumps(described))
    vprompt(
        "predict",
        "--model",
        clip_path,
        *images,
        "--class-descriptions",
        tmp_path / "described.json",
        "--output",
        output,
    )
    again = pq.read_table(output).to_pylist()
    np.testing.assert_allclose([row["probability"] for row in again], table.max(1), atol=1e-5)
    said = vprompt("predict", "--model", clip_path, "--data", colours, "--output", output, code=2)
    assert "Expected --adapter, or --model and --class-names" in " ".join(said.split())
