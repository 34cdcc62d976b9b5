"""A saved adapter is the old one or the new one, whatever happens meanwhile; damaged weights are known."""

import errno
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from peft_vprompt import AutoPeftModelForImageClassification, ClassHeadConfig
from peft_vprompt.errors import AdapterMismatchError, CannotWriteError
from peft_vprompt.utils.io import PENDING, atomic_files, finish_saving
from tests.support.kills import every_kill
from tests.support.models import CONFIGS, tiny_clip


OLD, NEW = ["cat", "dog"], ["dog", "cat"]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def made(tokenizer_path):
    """An adapter whose values are all the same number."""

    def build(names, value, kind=ClassHeadConfig):
        model = get_peft_model(tiny_clip(), kind(class_names=names, tokenizer_name_or_path=tokenizer_path))
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.constant_(parameter, value)
        return model

    return build


def what_is_in(folder):
    """Class names, the one value of the weights, and the names in the card, as a reader finds them."""
    model = PeftModel.from_pretrained(tiny_clip(), str(folder))
    (value,) = {v.flatten()[0].item() for v in model.adapter_state("default").values()}
    return list(model.class_names), value


def test_a_kill_at_any_moment_leaves_the_old_adapter_or_the_new(made, tmp_path):
    new, folder, before = made(NEW, 2.0), tmp_path / "adapter", tmp_path / "before"
    made(OLD, 1.0).save_pretrained(before)
    shutil.copytree(before, folder)
    found = []
    for _ in every_kill(lambda: new.save_pretrained(folder)):
        found.append(what_is_in(folder))
        assert found[-1] in ((OLD, 1.0), (NEW, 2.0))
        new.save_pretrained(folder)  # the next start goes on, and leaves nothing behind
        assert what_is_in(folder) == (NEW, 2.0)
        assert sorted(path.name for path in folder.iterdir()) == ["README.md", "adapter_config.json", WEIGHTS]
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
    assert [value for _, value in found] == sorted(value for _, value in found)  # once it is the new one, it stays
    assert {value for _, value in found} == {1.0, 2.0}


def test_what_was_cut_off_is_finished_by_whoever_reads_it(made, tmp_path):
    """The config has its place and the weights have not: the moment at which they would be mixed."""
    made(OLD, 1.0).save_pretrained(tmp_path)
    made(NEW, 2.0).save_pretrained(tmp_path / "new")
    pending = tmp_path / PENDING
    shutil.move(tmp_path / "new", pending)
    shutil.copy(pending / "adapter_config.json", tmp_path)
    assert (json.loads((tmp_path / "adapter_config.json").read_text())["class_names"]) == NEW
    finish_saving(tmp_path, began_with="adapter_config.json")
    assert what_is_in(tmp_path)[1] == 1.0  # not yet begun, as its config is still on the way
    (pending / "adapter_config.json").unlink()
    assert what_is_in(tmp_path) == (NEW, 2.0) and not pending.exists()


def test_named_adapters_change_together_with_their_configs(made, tmp_path):
    model = made(OLD, 1.0)
    model.add_adapter("other", made(OLD, 1.0).peft_config["default"])
    model.save_pretrained(tmp_path)
    kept = tmp_path / "other" / "adapter_config.json"
    shutil.copytree(tmp_path / "other", tmp_path / PENDING / "other")
    changed = load_file(tmp_path / "other" / WEIGHTS)
    save_file({name: v + 1 for name, v in changed.items()}, tmp_path / PENDING / "other" / WEIGHTS)
    (tmp_path / PENDING / "other" / kept.name).unlink()
    before = what_is_in(tmp_path / "other")[1]
    assert before == changed[next(iter(changed))].flatten()[0] + 1
    assert not (tmp_path / PENDING).exists()


def test_weights_of_another_kind_of_file_go(made, tmp_path):
    made(OLD, 1.0).save_pretrained(tmp_path)
    made(NEW, 2.0).save_pretrained(tmp_path, safe_serialization=False)
    assert what_is_in(tmp_path) == (NEW, 2.0) and not (tmp_path / WEIGHTS).exists()
    made(OLD, 1.0).save_pretrained(tmp_path)
    assert what_is_in(tmp_path) == (OLD, 1.0) and not (tmp_path / "adapter_model.bin").exists()


def test_a_flipped_bit_is_seen(tokenizer_path, tmp_path):
    config = CONFIGS["maple"]["maple"](class_names=OLD, tokenizer_name_or_path=tokenizer_path)
    get_peft_model(tiny_clip(), config).save_pretrained(tmp_path)
    path = tmp_path / WEIGHTS
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(start, len(whole), (40,), generator=generator).tolist():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(AdapterMismatchError, match="damaged.*Save or download it again"):
            PeftModel.from_pretrained(tiny_clip(), str(tmp_path))
    path.write_bytes(whole)
    PeftModel.from_pretrained(tiny_clip(), str(tmp_path))


def test_the_same_weights_give_the_same_bytes(made, tmp_path):
    model = made(OLD, 1.0)
    saved = set()
    for name in "abcdef":
        model.save_pretrained(tmp_path / name)
        saved.add((tmp_path / name / WEIGHTS).read_bytes())
    assert len(saved) == 1
    assert len(saved.pop()) % 8 == 0


def test_a_file_without_a_digest_loads(made, tmp_path):
    made(OLD, 1.0).save_pretrained(tmp_path)
    save_file(load_file(tmp_path / WEIGHTS), tmp_path / WEIGHTS)
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        assert not file.metadata()
    assert what_is_in(tmp_path) == (OLD, 1.0)


def test_the_auto_class_reads_an_adapter_that_was_cut_off(made, tmp_path):
    tiny_clip().save_pretrained(tmp_path / "base")
    model = made(NEW, 2.0)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    pending = tmp_path / "adapter" / PENDING
    pending.mkdir()
    shutil.move(tmp_path / "adapter" / WEIGHTS, pending)
    loaded = AutoPeftModelForImageClassification.from_pretrained(str(tmp_path / "adapter"))
    assert loaded.class_names == NEW


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=repr,
)
def test_a_full_disk_is_one_error_and_changes_nothing(error, made, tmp_path, monkeypatch):
    made(OLD, 1.0).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(tensors, path, metadata=None):
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr("peft.peft_model.safe_save_file", fail)
    with pytest.raises(CannotWriteError, match="^Cannot write '.*': .*What was there before stays") as caught:
        made(NEW, 2.0).save_pretrained(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    with (
        pytest.raises(CannotWriteError, match=re.escape(f"Cannot write '{tmp_path}': ")),
        atomic_files(tmp_path) as new,
    ):
        made(NEW, 2.0).save_pretrained(new)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
