"""What the folder of a stranger's adapter may not do while it is loaded: last for ever, or change files outside of it."""

import json
from contextlib import suppress

import pytest
from peft import PeftModel, get_peft_model

from peft_vprompt import AutoPeftModelForImageClassification, ClassHeadConfig, CLIPLoraConfig
from peft_vprompt.errors import AdapterMismatchError
from peft_vprompt.experiments.models import adapter_config
from peft_vprompt.tuners.base.patterns import check_patterns
from peft_vprompt.utils.io import PENDING
from tests.support.models import CLASS_NAMES, tiny_clip


N = {"class_names": ["a", "b"]}

ENDLESS = [
    *("([a-z_]+\\.?)+!", "(([a-z_.0-9])+)+!", "(a|a)*b", "(x{2,}){9,}", ".*.*.*.*!", "a?" * 30 + "a" * 30, "x" * 3000),
    *(r"(\(a+\))+", r"[]+]*(b)+", "(?:a+)+"),
]


@pytest.mark.parametrize("pattern", ENDLESS, ids=lambda pattern: str(pattern)[:20])
@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"])
def test_a_pattern_that_never_ends_is_refused_at_once(field, pattern):
    value = {pattern: 4} if field.endswith("pattern") else pattern
    with pytest.raises(
        AdapterMismatchError, match=f"Expected {field} of the adapter in 'them' to be .* plain patterns"
    ):
        check_patterns({field: value}, "them")


def test_adapters_with_plain_patterns_load_and_others_are_refused_by_every_reader(tokenizer_path, tmp_path):
    options = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": tokenizer_path}
    get_peft_model(tiny_clip(), CLIPLoraConfig(**options)).save_pretrained(tmp_path)
    PeftModel.from_pretrained(tiny_clip(), str(tmp_path))
    file = tmp_path / "adapter_config.json"
    for change in ({}, {"peft_type": "LORA"}):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": "(([a-z_.0-9])+)+!"} | change))
        for read in (AutoPeftModelForImageClassification.from_pretrained, adapter_config):
            with pytest.raises(AdapterMismatchError, match="plain patterns"):
                read(str(tmp_path))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": "CLIP_LORA"}))
    for load in (PeftModel.from_pretrained, lambda base, adapter: base.load_adapter(adapter)):
        with pytest.raises(AdapterMismatchError, match="plain patterns"):
            load(tiny_clip(), str(tmp_path))


@pytest.mark.parametrize("how", ["absolute", "above", "by a link", "a link to a folder", "no list"])
def test_a_saving_that_a_stranger_left_half_done_changes_nothing_outside(how, tmp_path):
    adapter, outside = tmp_path / "adapter", tmp_path / "outside"
    get_peft_model(tiny_clip(), ClassHeadConfig(**N)).save_pretrained(adapter)
    outside.mkdir()
    (outside / "kept").write_text("mine")
    pending = adapter / PENDING
    if how == "a link to a folder":
        pending.symlink_to(outside)
    else:
        pending.mkdir()
        removed = {"absolute": [str(outside / "kept")], "above": ["../outside/kept"], "no list": {"a": 1}}
        (pending / ".removed").write_text(json.dumps(removed.get(how, [])))
    if how == "by a link":
        (adapter / "inside").symlink_to(outside)
        (pending / "inside").mkdir()
        (pending / "inside" / "kept").write_text("theirs")
    for load in (
        lambda: PeftModel.from_pretrained(tiny_clip(), str(adapter)),
        lambda: get_peft_model(tiny_clip(), ClassHeadConfig(**N)).save_pretrained(adapter),
    ):
        with suppress(ValueError, OSError):
            load()
        assert (outside / "kept").read_text() == "mine" and len(list(outside.iterdir())) == 1
