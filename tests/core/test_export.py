"""`torch.export` and ONNX: the classification call of every method, with any number of images, equal to the eager model's."""

import copy

import pytest
import torch
from torch import nn

from tests.support.models import CLASS_NAMES, disturb, images, logits
from tests.support.training_cases import FIRST_CASES, first_cases


pytestmark = pytest.mark.usefixtures("quick")

CLOSE = {"rtol": 0, "atol": 1e-4}


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


@first_cases
def test_export(case, tokenizer_path):
    check(case.build(tokenizer_path))


@pytest.mark.nightly
@first_cases
def test_strict_export(case, tokenizer_path):
    check(case.build(tokenizer_path), strict=True)


def case_of(method):
    return next(case for case in FIRST_CASES if case.method == method and case.backbone == "CLIPModel")


def test_strict_export_of_kept_features(tokenizer_path):
    check(case_of("read_only_prompt").build(tokenizer_path), strict=True)


@pytest.mark.parametrize("method", ["context_opt", "read_only_prompt", "text_encoder", "kgcoop"])
def test_class_features_are_constants(method, tokenizer_path):
    program = check(case_of(method).build(tokenizer_path))
    texts = [name for name in program.state_dict if "text_model" in name]
    placeholders = {node.name: node.users for node in program.graph.nodes if node.op == "placeholder"}
    signature = program.graph_signature
    used = [name for arg, name in signature.inputs_to_parameters.items() if placeholders[arg] and "text_model" in name]
    assert texts and not used
    shapes = [tuple(constant.shape) for constant in program.constants.values() if isinstance(constant, torch.Tensor)]
    assert any(shape[0] == len(CLASS_NAMES) for shape in shapes if shape)


def test_export_leaves_the_model_as_it_was(tokenizer_path):
    model = disturb(case_of("cocoop").build(tokenizer_path))
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
@first_cases
def test_onnx(case, tokenizer_path, tmp_path):
    check_onnx(case.build(tokenizer_path), tmp_path / "model.onnx")


def test_onnx_of_a_contextual_method(tokenizer_path, tmp_path):
    check_onnx(case_of("cocoop").build(tokenizer_path), tmp_path / "model.onnx")
