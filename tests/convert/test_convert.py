"""`vprompt convert`: a checkpoint on disk becomes an adapter that PEFT loads."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import CLIPModel
from typer.testing import CliRunner

from peft_vprompt.convert import convert_checkpoint
from peft_vprompt.convert.checkpoint import load_base_model
from tests.support.models import CLASS_NAMES, images, tiny_clip, tiny_tokenizer
from vprompt import app


@pytest.fixture
def base(tmp_path) -> str:
    folder = tmp_path / "base"
    tiny_clip().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def run(*arguments):
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def test_a_checkpoint_becomes_an_adapter(base, tmp_path):
    context = torch.randn(4, 32)
    torch.save({"state_dict": {"ctx": context}, "epoch": 50}, tmp_path / "model.pth.tar-50")
    (tmp_path / "names.txt").write_text("\n".join(CLASS_NAMES))
    arguments = ["--method", "coop", "--model", base, "--class-names", tmp_path / "names.txt"]
    arguments += ["--set", "class_token_position=front", "--output", tmp_path / "adapter"]
    result = run(tmp_path / "model.pth.tar-50", *arguments)
    assert result.exit_code == 0, result.output
    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(base), str(tmp_path / "adapter"))
    assert torch.equal(model.base_model.text_encoder.active_prompts.tokens[0], context)
    assert model.active_peft_config.class_token_position == "front"
    assert model(pixel_values=images()).logits.shape == (4, 5)


@pytest.mark.parametrize("with_model", [True, False])
def test_a_foreign_adapter_is_kept_with_a_word(with_model, base, tmp_path):
    output = tmp_path / "adapter"

    def convert(value):
        model = {"base_model": base} if with_model else {}
        convert_checkpoint({"ctx": torch.full((4, 32), value)}, "coop", output, class_names=CLASS_NAMES, **model)
        return (output / "adapter_model.safetensors").read_bytes()

    first = convert(1.0)
    assert convert(1.0) == first and not (output / "previous").exists()
    with pytest.warns(
        UserWarning, match="holds an adapter, a model, a card or results of something else. They are now in"
    ):
        assert convert(2.0) != first
    (kept,) = (output / "previous").iterdir()
    assert (kept / "adapter_model.safetensors").read_bytes() == first


def test_what_does_not_fit_is_one_line(base, tmp_path):
    torch.save({"ctx": torch.zeros(4, 48)}, tmp_path / "wide.pth")
    result = run(tmp_path / "wide.pth", "--method", "coop", "--model", base, "--output", tmp_path / "adapter")
    assert result.exit_code == 2
    assert "has shape" in result.output and "Traceback" not in result.output
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("said", [["pipeline"], ["CLIPConfig"], ["Nothing"], [5], "CLIPModel", 5, None, []], ids=str)
def test_a_base_model_is_of_the_class_that_its_config_names(said, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "architectures": said}))
    with pytest.raises((ValueError, TypeError), match="to name a class of models of transformers|architectures"):
        load_base_model(str(tmp_path))
