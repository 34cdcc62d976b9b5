"""The page that builds a method from nothing runs from top to bottom."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command_line import vprompt


ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(
    importlib.util.find_spec("peft_vprompt.tuners.base.method") is None, reason="PromptMethod is not there yet"
)
def test_the_page_builds_a_method_that_trains_saves_and_loads(tmp_path):
    page = (ROOT / "docs/add_a_method.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    script = tmp_path / "page.py"
    script.write_text("\n\n".join(blocks), encoding="utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    loss, regulariser = map(float, re.search(r"loss (\S+), of which (\S+) is the regulariser", run.stdout).groups())
    assert 0 < regulariser < loss
    saved = tmp_path / "runs/guided_context"
    assert (saved / "adapter_model.safetensors").stat().st_size < 20_000
    said = vprompt("inspect", saved, code=2)  # here nothing has registered it
    assert (
        "peft_type='GUIDED_CONTEXT', which is none of" in said
        and "Import the module that registers the method" in said
    )
