"""`vprompt convert`: a checkpoint on disk becomes an adapter that PEFT loads."""

import pytest
import torch
from peft import PeftModel
from transformers import CLIPModel
from typer.testing import CliRunner

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


def test_what_does_not_fit_is_one_line(base, tmp_path):
    torch.save({"ctx": torch.zeros(4, 48)}, tmp_path / "wide.pth")
    result = run(tmp_path / "wide.pth", "--method", "coop", "--model", base, "--output", tmp_path / "adapter")
    assert result.exit_code == 2
    assert "has shape" in result.output and "Traceback" not in result.output
    assert not (tmp_path / "adapter").exists()
