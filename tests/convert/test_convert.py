"""`vprompt convert`: a checkpoint on disk becomes an adapter that PEFT loads."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import CLIPModel
from typer.testing import CliRunner

from peft_vprompt import ContextOptConfig
from peft_vprompt.convert import convert_checkpoint
from peft_vprompt.convert.checkpoint import load_base_model
from peft_vprompt.errors import AdapterMismatchError, ClassNamesError
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


@pytest.mark.parametrize(("method", "length"), [("prograd", 2), ("prograd", 16), ("kgcoop", 2), ("kgcoop", 4)])
def test_a_context_of_any_length(method, length, base, tmp_path):
    context = torch.randn(length, 32)
    convert_checkpoint({"ctx": context}, method, tmp_path, class_names=CLASS_NAMES, base_model=base)
    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(base), str(tmp_path))
    assert torch.equal(model.base_model.text_encoder.active_prompts.tokens[0], context)
    assert model(pixel_values=images()).logits.isfinite().all()


@pytest.mark.parametrize("method", ["prograd", "kgcoop"])
def test_contexts_of_single_classes_predict_as_coops(method, base, tmp_path):
    state = {"ctx": torch.randn(len(CLASS_NAMES), 4, 32)}
    logits = []
    for name in (method, "coop"):
        config = convert_checkpoint(state, name, tmp_path / name, class_names=CLASS_NAMES, base_model=base)
        assert config.class_specific and config.prompt_init == "random"
        model = PeftModel.from_pretrained(CLIPModel.from_pretrained(base), str(tmp_path / name))
        logits.append(model(pixel_values=images()).logits)
    assert torch.equal(*logits)
    with pytest.raises(ClassNamesError, match="one context for each of its 5 classes.*class_specific=False"):
        model.set_class_names(["a plane"])


@pytest.mark.parametrize("with_model", [True, False])
def test_a_foreign_adapter_is_kept_with_a_word(with_model, base, tmp_path):
    output = tmp_path / "adapter"

    def convert(value):
        model = {"base_model": base} if with_model else {}
        convert_checkpoint({"ctx": torch.full((4, 32), value)}, "coop", output, class_names=CLASS_NAMES, **model)
        return (output / "adapter_model.safetensors").read_bytes()

    first = convert(1.0)
    assert convert(1.0) == first and not (output / "previous").exists()
    (output / "results.json").write_text("{}")
    with pytest.warns(
        UserWarning, match="holds an adapter, a model, a card or results of something else. They are now in"
    ):
        assert convert(2.0) != first
    (kept,) = (output / "previous").iterdir()
    assert (kept / "adapter_model.safetensors").read_bytes() == first
    assert (kept / "results.json").is_file() and not (output / "results.json").exists()


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


def student(size: int = 16) -> dict[str, torch.Tensor]:
    """A PromptKD student's checkpoint, as its trainer saves it, of a teacher with features of some size."""
    shapes = {"image_encoder.VPT": (4, 24), "image_encoder.transformer.resblocks.1.VPT_shallow": (4, 24)}
    projector = {"0.weight": (size, 16, 1, 1), "0.bias": (size,), "3.weight": (size, size, 1, 1), "3.bias": (size,)}
    projector |= {f"1.{name}": (size,) for name in ("weight", "bias", "running_mean", "running_var")}
    shapes |= {f"VPT_image_trans.conv1.{name}": shape for name, shape in projector.items()}
    shapes |= {"image_encoder.class_embedding": (24,), "logit_scale": ()}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def teacher(clip_path):
    """A CLIP as it is."""
    return get_peft_model(CLIPModel.from_pretrained(clip_path), ContextOptConfig()).eval()


def test_a_student_is_given_its_teachers_class_features(clip_path, teacher, tmp_path):
    torch.save({"state_dict": student(), "epoch": 20}, tmp_path / "model-best.pth.tar")
    (tmp_path / "names.txt").write_text("\n".join(CLASS_NAMES))
    arguments = ["--method", "promptkd", "--model", clip_path, "--teacher", clip_path]
    arguments += ["--class-names", tmp_path / "names.txt"]
    result = run(tmp_path / "model-best.pth.tar", *arguments, "--output", tmp_path / "adapter")
    assert result.exit_code == 0, result.output
    model = PeftModel.from_pretrained(CLIPModel.from_pretrained(clip_path), str(tmp_path / "adapter")).eval()
    config = model.active_peft_config
    assert (config.num_virtual_tokens, config.prompt_depth, config.teacher_dim) == (4, 2, 16)
    teacher.set_class_names(CLASS_NAMES)
    with torch.no_grad(), teacher.disable_adapter():
        assert torch.equal(model.encode_classes(), teacher.encode_classes())
    first = model.class_name_classifier.adapted.vision.active_prompts.projector[0]
    assert torch.equal(first.weight, student()["VPT_image_trans.conv1.0.weight"].flatten(1))
    assert model(pixel_values=images()).logits.isfinite().all()


def test_a_student_and_its_teacher_have_to_fit(teacher, tmp_path):
    output, names = tmp_path / "adapter", {"class_names": CLASS_NAMES}
    with pytest.raises(ValueError, match="have no class features, .*Received: method='promptkd'. Pass teacher="):
        convert_checkpoint(student(), "promptkd", output, **names)
    with pytest.raises(ValueError, match="Received: method='coop' with a teacher. Leave it out"):
        convert_checkpoint({"ctx": torch.zeros(4, 32)}, "coop", output, **names, teacher=teacher)
    with pytest.raises(AdapterMismatchError, match="features of size 20.*Received: 16. Pass the model"):
        convert_checkpoint(student(20), "promptkd", output, **names, teacher=teacher)
    with pytest.raises(ClassNamesError, match="one feature of the teacher for each class"):
        convert_checkpoint(student(), "promptkd", output, teacher=teacher)
    own = {"prompt_learner.ctx": torch.zeros(4, 32), "image_encoder.VPT": torch.zeros(4, 24)}
    with pytest.raises(AdapterMismatchError, match="Use method='promptsrc'"):
        convert_checkpoint(own, "promptkd", output, **names, teacher=teacher)
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--teacher", "x"), "Expected --class-names with --teacher"),
        (("--teacher-model", "x"), "needs a teacher. Received: --teacher-model x alone"),
    ],
)
def test_a_teacher_on_the_command_line(arguments, message, tmp_path):
    result = run(tmp_path / "x", "--method", "promptkd", "--output", tmp_path / "adapter", *arguments)
    assert result.exit_code == 2 and message in " ".join(result.output.split())
