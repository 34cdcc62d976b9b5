"""`vprompt train --method promptkd`: a teacher, images without labels, a student."""

import json
import shutil

import pytest
from transformers import CLIPModel

from peft_vprompt.data import find_task
from peft_vprompt.experiments.models import as_published, build_model
from peft_vprompt.experiments.teacher import load_teacher
from tests.support.command_line import QUICK, train, vprompt


DISTIL = ("--method", "promptkd", "--epochs", 2, "--batch-size", 4, "--lr", "0.0001")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A folder of its own for the teacher's answers."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "vprompt-features"


def test_a_trained_teacher(clip_path, colours, tmp_path, cache):
    train(tmp_path / "teacher", clip_path, colours, "--method", "coop", *QUICK)
    shown = train(tmp_path / "a", clip_path, colours, *DISTIL, "--teacher", tmp_path / "teacher", "--views", 2)
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    expected = json.loads((tmp_path / "teacher" / "results.json").read_text())["accuracy"]
    assert results["teacher"] == expected
    assert f"The teacher: all {expected['all']:.2f} %" in shown
    assert results["steps"] == 2 * 7  # all 28 images
    assert len(list(cache.iterdir())) == 1
    vprompt("evaluate", "--adapter", tmp_path / "a", "--output", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["accuracy"] == results["accuracy"]
    vprompt("evaluate", "--adapter", tmp_path / "a", "--subset", "novel", "--output", tmp_path / "novel.json")
    assert json.loads((tmp_path / "novel.json").read_text())["classes"] == ["red", "white"]


@pytest.mark.parametrize(
    "file", ["preprocessor_config.json", pytest.param("adapter_model.safetensors", marks=pytest.mark.nightly)]
)
def test_another_teacher_at_the_same_path_is_another_run(file, clip_path, colours, tmp_path, cache):
    """Its adapter was trained anew, or its base model's images are made in another way."""
    base = shutil.copytree(clip_path, tmp_path / "base")
    train(tmp_path / "teacher", base, colours, "--method", "coop", *QUICK)
    distil = (tmp_path / "a", clip_path, colours, *DISTIL, "--teacher", tmp_path / "teacher")
    train(*distil)
    train(*distil)
    assert json.loads((tmp_path / "a" / "results.json").read_text())["resumed_step"] > 0
    if file == "adapter_model.safetensors":
        train(tmp_path / "teacher", base, colours, "--method", "coop", *QUICK, "--lr", 0.5)
    else:
        processor = json.loads((base / file).read_text()) | {"do_normalize": False}
        (base / file).write_text(json.dumps(processor))
    train(*distil)
    assert (tmp_path / "a" / "previous").is_dir()
    assert json.loads((tmp_path / "a" / "results.json").read_text())["resumed_step"] == 0


def test_a_base_model_as_it_is(clip_path, colours, tmp_path, cache):
    train(tmp_path / "a", clip_path, colours, *DISTIL, "--teacher", clip_path)
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert results["teacher"] == results["zero_shot"]
    size = CLIPModel.from_pretrained(clip_path).config.projection_dim
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["teacher_dim"] == size


def test_a_base_model_reads_the_template_of_the_run(clip_path, tmp_path):
    about = (clip_path, None, ["cat", "dog"], "cpu")
    task, given = "vtab-1k/eurosat", {"template": "a drawing of {}."}
    published = load_teacher(*about, "coop-11/eurosat").model.active_peft_config.template
    assert published == find_task("coop-11/eurosat").template
    assert load_teacher(*about, "coop-11/eurosat", given).model.active_peft_config.template == given["template"]
    plain, as_task = (load_teacher(*about, each).bundle.image_processor.to_dict() for each in (None, task))
    assert (
        as_task
        == as_published(build_model(clip_path, "zero-shot", ["a", "b"]), task).image_processor.to_dict()
        != plain
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "promptkd"), "Expected a teacher (--teacher) with method promptkd"),
        (("--method", "coop", "--teacher", "x"), "and with no other. Received: method coop"),
        (("--method", "coop", "--teacher-model", "x"), "A base model of the teacher needs a teacher"),
        (
            ("--method", "promptkd", "--teacher", "x", "--shots", 4),
            "reads no label (shots=None, --shots 0). Received: shots",
        ),
        (("--method", "promptkd", "--teacher", "x", "--loss", "gce"), "Received: a loss"),
        (("--method", "promptkd", "--teacher", "gone/no"), "Cannot load the model 'gone/no'"),
    ],
)
def test_what_contradicts_itself_is_refused(arguments, message, clip_path, colours, tmp_path):
    assert message in train(tmp_path, clip_path, colours, *arguments, code=2)
