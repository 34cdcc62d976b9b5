"""What lies beside a trained adapter: its card, whose snippet runs, and the page of the run; and what `inspect` says."""

import json
import math
import re
from pathlib import Path

from PIL import Image

from peft_vprompt.experiments.models import METHODS
from tests.support.command_line import vprompt


#: Methods that learn among the words of a text: those whose tokens have nearest words.
IN_WORDS = {
    "class-name", "cocoop", "coop", "full-prompt", "ivlp", "kgcoop", "maple", "prograd", "promptsrc", "rpo", "tcp",
}  # fmt: skip


def run_snippet(card: str, adapter: Path | str, monkeypatch) -> dict:
    """Run the first snippet of a card as it stands, beside an image; return its names."""
    snippet = card.split("```python\n")[1].split("```")[0]
    Image.new("RGB", (40, 30), "red").save(Path(adapter).parent / "image.jpg")
    monkeypatch.chdir(Path(adapter).parent)
    scope = {}
    exec(snippet.replace("path/or/hub-id-of-this-adapter", str(adapter)), scope)
    return scope


def check_page(page, results):
    """The page of a run needs nothing else, and says what was measured and what is wrong."""
    text = page.read_text(encoding="utf-8")
    assert results["title"] in text and not re.search(r"(src|href)=.(?!data:)|url\\(|@import|<script", text)
    assert all(f"{value:.2f}" in text for value in results["accuracy"].values())
    assert text.count("Confused most") == len(results["classes"]) == text.count("<strong>Calibration</strong>")
    wrong = any(value < 100 for value in results["accuracy"].values())
    assert ("data:image/jpeg;base64," in text) == wrong


def check_inspection(method, folder, results):
    """Every method has a description; what does not apply is said."""
    found = json.loads(vprompt("inspect", folder, "--json"))
    spec = METHODS[method]
    assert found["bytes"] == results["adapter_bytes"]
    assert sum(math.prod(each["shape"]) for each in found["tensors"]) == found["parameters"] > 0
    assert found["classes"] == next(iter(results["classes"].values()))
    if spec.tuner_class is not None or spec.config_class.__module__.startswith("peft_vprompt"):
        assert (found["title"], found["paper"]) == (spec.title, spec.paper.citation)
    assert "base_model_error" not in found
    assert isinstance(found["similar"], str) == (method == "cocoop"), found["similar"]
    if method != "cocoop":
        assert -1.001 <= found["similar"][0]["cosine"] <= 1.001
    assert isinstance(found["words"], str) == (method not in IN_WORDS), found["words"]
