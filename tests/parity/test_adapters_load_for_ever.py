"""Adapters that were saved once load for ever: tiny ones of every configuration are kept in `adapters/`.

A file that is there is never written again. `python -m tests.parity.test_adapters_load_for_ever` adds those of new
configurations, which is all that it ever does. The weights of their base models are kept in `bases/`, since libraries
change what a seed gives.
"""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from peft_vprompt.tuners.base.registry import METHODS, PROMPT_METHODS
from tests.support.models import CLASS_NAMES, CONFIGS, disturb, images, tiny_clip, tiny_tokenizer, tiny_vit


FOLDER = Path(__file__).with_name("adapters")
BASES = Path(__file__).with_name("bases")
BASELINES = [name for name, spec in METHODS.items() if spec.is_baseline and spec.tuner_class is not None]
CASES = [f"{method}-{case}" for method in PROMPT_METHODS for case in CONFIGS[method]] + BASELINES


def base_of(name: str):
    base, weights = (tiny_vit(), "vit") if name in BASELINES else (tiny_clip(), "clip")
    base.load_state_dict(load_file(BASES / f"{weights}.safetensors"))
    return base


def make(name: str, tokenizer: str) -> PeftModel:
    base = base_of(name)
    if name in BASELINES:
        return disturb(get_peft_model(base, METHODS[name].configure(base)))
    method, case = next((m, c) for m in PROMPT_METHODS for c in CONFIGS[m] if f"{m}-{c}" == name)
    config = CONFIGS[method][case](class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer)
    return disturb(get_peft_model(base, config))


def logits(model: PeftModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(pixel_values=images()).logits


@pytest.mark.core
@pytest.mark.parametrize("name", CASES)
def test_it_loads_bit_for_bit_and_says_the_same(name, tokenizer_path):
    saved = load_file(FOLDER / name / "adapter_model.safetensors")
    config = PeftConfig.from_pretrained(str(FOLDER / name))
    if name not in BASELINES:
        config.tokenizer_name_or_path = tokenizer_path
    model = PeftModel.from_pretrained(base_of(name), str(FOLDER / name), config=config)
    state = model.adapter_state("default")
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[key], saved[key]) for key in saved)
    expected = load_file(FOLDER / name / "expected.safetensors")["logits"]
    torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=0)


def test_nothing_is_kept_that_is_not_tried():
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(CASES)


def add_missing() -> None:
    """Save the adapters of configurations that have none yet."""
    with tempfile.TemporaryDirectory() as tokenizer:
        tiny_tokenizer().save_pretrained(tokenizer)
        for name in CASES:
            folder = FOLDER / name
            if folder.exists():
                continue
            torch.manual_seed(0)
            model = make(name, tokenizer)
            model.save_pretrained(folder)
            (folder / "README.md").unlink()
            config = folder / "adapter_config.json"
            config.write_text(config.read_text().replace(json.dumps(tokenizer), "null"))
            save_file({"logits": logits(model)}, folder / "expected.safetensors")


if __name__ == "__main__":
    add_missing()
