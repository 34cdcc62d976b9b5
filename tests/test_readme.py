"""The README's block runs as it stands, and learns."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open


ROOT = Path(__file__).resolve().parents[1]


def python_blocks(page):
    """The Python blocks of a page of the documentation."""
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    (block,) = python_blocks("README.md")
    block += """
model.set_class_names(base)
trainer = Trainer(model=model, args=trainer.args, compute_metrics=compute_metrics)
print(f"loaded: {trainer.evaluate(test)['eval_accuracy']:.0f}")
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, done.stdout


def test_the_block_trains_and_the_loaded_adapter_is_as_good(run):
    _, output = run
    before, after = map(int, re.search(r"(\d+) % zero-shot, (\d+) % with MaPLe", output).groups())
    assert after > before + 10
    assert int(re.search(r"loaded: (\d+)", output).group(1)) == after


def test_the_block_saves_the_prompts_alone_under_the_trained_classes(run):
    adapter = run[0] / "runs/readme/adapter"
    with safe_open(adapter / "adapter_model.safetensors", "pt") as weights:
        assert all("prompt" in key for key in weights.keys())  # noqa: SIM118 - safe_open is no dict
    assert (adapter / "adapter_model.safetensors").stat().st_size < 300_000
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert len(config["class_names"]) == 16
