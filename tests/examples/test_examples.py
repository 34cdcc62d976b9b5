"""Every script in `examples/` runs as it stands, on the embedded model and on another one."""

import json
import os
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoImageProcessor, CLIPImageProcessorPil, CLIPModel

from peft_vprompt.data import base_novel_split
from peft_vprompt.demo import demo_model_path, demo_task
from peft_vprompt.experiments.eval_sets import eval_sets
from peft_vprompt.training.evaluation import evaluate
from tests.support.labelled_images import save_image
from tests.support.models import IMAGE_SIZE, often, tiny_clip, tiny_tokenizer


pytestmark = pytest.mark.usefixtures("forgetful")


FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(path for path in FOLDER.rglob("*.py") if path.parent.name not in ("benchmarks", "space", "studies"))
TINY = ("--shots", "1", "--epochs", "1")

#: Those that run whole on the embedded model in every run; all others run on a model of three layers.
USUAL = [path for path in EXAMPLES if path.stem in ("maple", "several_adapters", "train_with_trainer")]

every_example = pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> str:
    """A CLIP with tokenizer and image processor on disk, as one would download it."""
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a script in this process, as `python script arguments` would; what it printed."""

    def call(script: Path, *arguments) -> str:
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(script), run_name="__main__")
        assert not stop.value.code
        return capsys.readouterr().out

    return call


def launch(*command) -> str:
    """Run a command in processes of its own; what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER.parent)}
    result = subprocess.run(
        [sys.executable, "-m", *map(str, command)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def percentages(output: str) -> list[float]:
    """The accuracies that a script printed."""
    return [
        float(number) for number in re.findall(r"([\d.]+) %|(?<=': )([\d.]+)", output) for number in number if number
    ]


def measured(folder: Path) -> list[float]:
    """Accuracies on base and novel classes and their harmonic mean, without the adapter in `folder` and with it."""
    names, path = demo_task("train").features["label"].names, demo_model_path()
    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(path), folder)
    base, novel = base_novel_split(names)
    processor = AutoImageProcessor.from_pretrained(path, backend="pil")
    sets = eval_sets(demo_task("test"), {"base": base, "novel": novel}, processor)
    accuracies = [evaluate(model, sets, zero_shot=zero_shot) for zero_shot in (True, False)]
    return [round(accuracy, 1) for half in accuracies for accuracy in half.values()]


@pytest.mark.parametrize("script", often(EXAMPLES, USUAL), ids=lambda path: path.stem)
def test_runs_on_the_embedded_model(script, run, tmp_path):
    output = run(script, *TINY, "--output", tmp_path)
    accuracies = percentages(output)
    if script.parent.name == "by_method":
        assert accuracies == measured(tmp_path), output
    elif script.stem not in ("visual_prompt_vit", "distillation"):  # whose head or projector starts at random
        names, _ = base_novel_split(demo_task("train").features["label"].names)
        assert accuracies and min(accuracies) > 3 * 100 / len(names), output  # three times what guesses give
    adapters = list(tmp_path.rglob("adapter_model.safetensors"))
    assert adapters
    for adapter in adapters:
        config = PeftConfig.from_pretrained(adapter.parent)
        assert json.loads((adapter.parent / "adapter_config.json").read_text())["peft_type"] == config.peft_type
        assert all(torch.isfinite(tensor).all() for tensor in load_file(adapter).values())


@every_example
def test_help_explains_every_option(script, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    output = run(script, "--help")
    options = [line for line in output.splitlines() if re.search(r"│ +--", line)]
    assert {"--model", "--output", "--shots", "--epochs", "--seed"} <= set(re.findall(r"--[a-z][a-z-]+", output))
    assert all(re.search(r"[a-z]{3}.*[.\]]", line.split("  ", 2)[-1]) for line in options), output


@every_example
def test_says_how_it_is_called(script):
    assert f"    python {script.relative_to(FOLDER.parent)}\n" in script.read_text()


@pytest.mark.parametrize("name", ["train_with_trainer", "train_with_accelerate", "several_adapters"])
def test_takes_another_model(name, run, clip_folder, tmp_path):
    run(FOLDER / f"{name}.py", *TINY, "--model", clip_folder, "--output", tmp_path)
    adapter = next(tmp_path.rglob("adapter_model.safetensors")).parent
    assert PeftConfig.from_pretrained(adapter).base_model_name_or_path == clip_folder


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory) -> str:
    """Images of four classes, one folder each, as one has them."""
    folder = tmp_path_factory.mktemp("images")
    for value, name in enumerate(("cat", "dog", "fish", "owl")):
        for index in range(6):
            save_image(folder / name / f"{index}.png", 60 * value)
    return str(folder)


@every_example
def test_takes_images_of_ones_own(script, run, clip_folder, vit_path, image_folder, tmp_path):
    # IVLP's prompts are four layers deep, and the tiny CLIP has three.
    model = {"visual_prompt_vit": vit_path, "ivlp": demo_model_path()}.get(script.stem, clip_folder)
    output = run(script, *TINY, "--model", model, "--data", image_folder, "--output", tmp_path)
    assert percentages(output) and list(tmp_path.rglob("adapter_model.safetensors"))


def test_trainer_example_saves_an_adapter_that_loads(run, tmp_path):
    run(FOLDER / "train_with_trainer.py", *TINY, "--output", tmp_path)
    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(demo_model_path()), tmp_path / "adapter")
    base, _ = base_novel_split(demo_task("train").features["label"].names)
    assert model.class_names == base  # not the novel ones of the evaluation


def test_trainer_example_resumes(run, tmp_path):
    script = FOLDER / "train_with_trainer.py"
    run(script, *TINY, "--output", tmp_path)
    run(script, "--shots", "1", "--epochs", "2", "--resume", "--output", tmp_path)
    states = [json.loads(path.read_text()) for path in tmp_path.glob("checkpoint-*/trainer_state.json")]
    assert max(state["epoch"] for state in states) == 2
    last = max(states, key=lambda state: state["global_step"])
    assert [entry["epoch"] for entry in last["log_history"] if "loss" in entry] == [1, 2]


def test_vit_example_loads_what_it_saved(run, tmp_path):
    trained, loaded = percentages(run(FOLDER / "visual_prompt_vit.py", *TINY, "--output", tmp_path))
    assert trained == loaded


def test_several_adapters_are_loaded_as_they_were_saved(run, tmp_path):
    maple, coop, zero_shot, *loaded = percentages(run(FOLDER / "several_adapters.py", *TINY, "--output", tmp_path))
    assert loaded == [maple, coop]


@pytest.mark.nightly
def test_accelerate_example_on_two_processes_with_accumulation_is_one_with_the_joint_batch(tmp_path):
    script, settings = FOLDER / "train_with_accelerate.py", ("--cpu", "--shots", 2, "--epochs", 1)
    launcher = ("accelerate.commands.launch", "--cpu", "--num_processes", 1)
    one = launch(*launcher, script, *settings, "--batch-size", 8, "--output", tmp_path / "one")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # An address, not the name of this machine, which need not resolve.
    launcher = ("torch.distributed.run", "--nproc_per_node", 2, "--master_addr", "127.0.0.1", "--master_port", port)
    two = launch(*launcher, script, *settings, "--batch-size", 2, "--accumulate", 2, "--shard-classes",
                 "--output", tmp_path / "two")  # fmt: skip
    assert "processes: 1" in one and "processes: 2" in two
    assert percentages(one) == percentages(two)
    expected, value = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)
