"""`torch.export` and ONNX: the classification call of every method, with any number of images, equal to the eager model's."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn

from tests.support.models import CLASS_NAMES, CONFIGS, disturb, images, logits, often, tiny_vit
from tests.support.training_cases import FIRST_CASES, OWN_FEATURES, built, every_subject, first_cases


CLOSE = {"rtol": 0, "atol": 1e-4}
TESTED = [c for c in FIRST_CASES if c.method in ("maple", "cocoop") or c.backbone.startswith("ViT")]


class Logits(nn.Module):
    """What is deployed: images in, logits out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values=pixel_values).logits


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


def export(model, strict=False):
    shapes = {"pixel_values": {0: torch.export.Dim("images", min=1, max=64)}}
    return torch.export.export(Logits(model), (images(2),), dynamic_shapes=shapes, strict=strict)


def check(model, strict=False):
    """Export a model that was never called, and compare; return the exported program."""
    model = disturb(model)
    program = export(model, strict)
    for count in (1, 3):
        with torch.no_grad():
            expected = model(pixel_values=images(count)).logits
        torch.testing.assert_close(program.module()(images(count)), expected, **CLOSE)
    return program


@pytest.mark.parametrize("case", often(FIRST_CASES, TESTED), ids=str)
def test_export(case, tokenizer_path):
    program = check(case.build(tokenizer_path))
    if case.backbone == "CLIPModel" and case.method not in ("cocoop", *OWN_FEATURES):
        # Class features are constants: nothing reads the text encoder.
        read = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
        parameters = program.graph_signature.inputs_to_parameters
        assert not [
            name for argument, name in parameters.items() if argument in read and "text_model.base_layer" in name
        ]
        constants = [value for value in program.constants.values() if isinstance(value, torch.Tensor)]
        assert any(value.shape[:1] == (len(CLASS_NAMES),) for value in constants)


@pytest.mark.nightly
@every_subject
def test_export_of_every_row(subject, tokenizer_path):
    check(built(subject, tokenizer_path).eval())


@pytest.mark.parametrize("variant", ["border", "channels"])
def test_export_of_pixels(variant):
    check(get_peft_model(tiny_vit(), CONFIGS["visual_prompt"][variant]()))


@pytest.mark.nightly
@first_cases
def test_strict_export(case, tokenizer_path):
    check(case.build(tokenizer_path), strict=True)


def case_of(method):
    return next(case for case in FIRST_CASES if case.method == method and case.backbone == "CLIPModel")


def test_export_leaves_the_model_as_it_was(tokenizer_path):
    model = disturb(case_of("context_opt").build(tokenizer_path))
    expected = logits(copy.deepcopy(model))
    export(model)
    assert torch.equal(logits(model), expected)
    model.train()(pixel_values=images(), labels=torch.arange(4)).loss.backward()


def check_onnx(model, path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnx, onnxscript and onnxruntime are not installed")
    pytest.importorskip("onnxscript", reason="onnx, onnxscript and onnxruntime are not installed")
    model = disturb(model)
    shapes = {"pixel_values": {0: torch.export.Dim("images", min=1, max=64)}}
    program = torch.onnx.export(
        Logits(model), (images(2),), dynamo=True, dynamic_shapes=shapes, input_names=["pixel_values"], verbose=False
    )
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path))
    for count in (1, 3):
        with torch.no_grad():
            expected = model(pixel_values=images(count)).logits
        (value,) = session.run(None, {"pixel_values": images(count).numpy()})
        torch.testing.assert_close(torch.tensor(value), expected, **CLOSE)


@pytest.mark.nightly
@every_subject
def test_onnx(subject, tokenizer_path, tmp_path):
    check_onnx(built(subject, tokenizer_path).eval(), tmp_path / "model.onnx")
