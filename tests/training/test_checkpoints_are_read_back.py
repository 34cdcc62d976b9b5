"""A checkpoint or an adapter takes the place of an older one after it was read back, and not before."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import TrainerCallback

from peft_vprompt import ContextOptConfig
from peft_vprompt.training.recipes import Recipe
from peft_vprompt.training.trainer import train
from tests.support.models import CLASS_NAMES, images, tiny_clip


pytestmark = pytest.mark.usefixtures("forgetful")

RECIPE = Recipe(learning_rate=0.1, batch_size=4, epochs=3, source="test")


class Damage(TrainerCallback):
    """Cuts a file of the checkpoint of one step off, as a full disk may."""

    def __init__(self, step: int, name: str):
        self.step, self.name = step, name

    def on_save(self, args, state, control, **kwargs):
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / self.name
        if state.global_step == self.step:
            path.write_bytes(path.read_bytes()[:-20])


@pytest.fixture
def model(tokenizer_path):
    torch.manual_seed(0)
    names = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": tokenizer_path}
    return get_peft_model(tiny_clip(), ContextOptConfig(num_virtual_tokens=2, **names))


@pytest.fixture
def rows():
    return [{"pixel_values": x, "labels": index % 5} for index, x in enumerate(images(8))]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoints/*/checkpoint-*"))


def test_the_last_checkpoint_stays_alone(model, rows, tmp_path):
    train(model, rows, RECIPE, tmp_path, epochs=3)
    assert checkpoints(tmp_path) == ["checkpoint-6"]


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_a_damaged_checkpoint_leaves_the_older_one(name, model, rows, tmp_path):
    with pytest.raises(OSError, match=f"checkpoint-4 cannot be read back: {name}: .*goes on from there"):
        train(model, rows, RECIPE, tmp_path, epochs=3, callbacks=[Damage(4, name)])
    assert checkpoints(tmp_path) == ["checkpoint-2"]
    assert train(model, rows, RECIPE, tmp_path, epochs=3).resumed_step == 2


def test_a_damaged_adapter_does_not_replace_a_good_one(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    whole = PeftModel.save_pretrained

    def cut_off(self, folder, *args, **kwargs):
        whole(self, folder, *args, **kwargs)
        path = Path(folder) / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-8])

    monkeypatch.setattr(PeftModel, "save_pretrained", cut_off)
    with pytest.raises(OSError, match="cannot be read back from where it was written: adapter_model.safetensors"):
        model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert load_file(tmp_path / "adapter_model.safetensors")
