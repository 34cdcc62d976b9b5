"""`torch.compile` on a PEFT model: one graph, and the same numbers as the eager model, whatever is kept."""

import copy
from types import SimpleNamespace

import pytest
import torch

from peft_vprompt.core.packed_prompts import pack
from peft_vprompt.core.padded_prompts import pad
from tests.support.models import NEW_NAMES, disturb, images, logits, often
from tests.support.training_cases import FIRST_CASES, built, dataset, every_subject, first_cases, gradients


CLOSE = {"rtol": 1e-5, "atol": 1e-5}
#: Rows whose features are divided by the spread of a batch of four, which makes the rounding of a sum in another order large
#: in float32: they are compared in float64, by the same tolerance.
BATCH_STATISTICS = ("promptkd", "mlp-3")
#: A method of each way that the text side has: kept features, packed, per image, read-only, with frozen features.
TESTED = [c for c in FIRST_CASES if c.method in ("maple", "cocoop") or c.backbone.startswith("ViT")]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def dtype_of(model):
    return next(model.parameters()).dtype


def check_training(model, backend, fullgraph):
    """Compare logits and gradients with the eager model's."""
    batch = dataset(4)[:]
    call = {"pixel_values": batch["pixel_values"].to(dtype_of(model)), "labels": batch["labels"]}
    expected = model.train()(**call)
    expected.loss.backward()
    expected_gradients = gradients(model)
    model.zero_grad()

    value = torch.compile(model, backend=backend, fullgraph=fullgraph)(**call)
    value.loss.backward()
    torch.testing.assert_close(value.logits, expected.logits, **CLOSE)
    torch.testing.assert_close(gradients(model), expected_gradients, **CLOSE)


@pytest.mark.nightly
@every_subject
def test_inductor_equals_eager(subject, tokenizer_path):
    model = built(subject, tokenizer_path)
    if subject in BATCH_STATISTICS:
        model = model.double()
    check_training(model, "inductor", fullgraph=subject != "prograd")
    compiled = torch.compile(model.eval(), backend="inductor")
    with torch.no_grad():
        for count in (4, 2):
            pixel_values = dataset(count)["pixel_values"][:].to(dtype_of(model))
            expected = model(pixel_values=pixel_values).logits
            torch.testing.assert_close(compiled(pixel_values=pixel_values).logits, expected, **CLOSE)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_inductor_gives_each_image_its_own_context(layout):
    sequences = [[3, -1, -2, 5, 7], [3, -1, -2, 6, 7]]
    prompts = pack(sequences) if layout == "packed" else pad(sequences, start=1, pad_token_id=0, length=None)
    tables = {"token_embedding": torch.nn.Embedding(9, 4), "position_embedding": torch.nn.Embedding(9, 4)}
    encoder = SimpleNamespace(**tables, embed=lambda vectors: vectors)

    def embed(learned):
        return prompts.embed(encoder, learned)

    learned = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(embed)(learned), embed(learned), **CLOSE)


@pytest.mark.parametrize("case", often(FIRST_CASES, TESTED), ids=str)
def test_one_graph_gives_the_logits_and_gradients_of_eager(case, tokenizer_path):
    fullgraph = case.method != "prograd"  # it asks for gradients in between
    check_training(case.build(tokenizer_path), "eager", fullgraph)


@pytest.mark.nightly
@first_cases
def test_one_graph_in_evaluation(case, tokenizer_path):
    check_evaluation(case, tokenizer_path)


@pytest.mark.parametrize("method", ["kgcoop", "read_only_prompt"])
def test_one_graph_with_kept_features(method, tokenizer_path):
    check_evaluation(next(case for case in FIRST_CASES if case.method == method), tokenizer_path)


def check_evaluation(case, tokenizer_path):
    """Compare logits; nothing was called, tokenised or kept before the model is compiled."""
    model = disturb(case.build(tokenizer_path)).eval()
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        value = compiled(pixel_values=images()).logits
    torch.testing.assert_close(value, logits(model), **CLOSE)


EDITS = {
    "data": lambda model: model.get_base_model().text_model.encoder.layers[0].mlp.fc1.weight.data.mul_(3),
    "numpy": lambda model: model.get_base_model().text_projection.weight.detach().numpy().__setitem__((0, 0), 9.0),
    "step": lambda model: disturb(model, seed=5),
}


FOLLOWED = [("context_opt", "data"), ("visual_prompt", "numpy"), ("read_only_prompt", "step")]


@pytest.mark.parametrize(("method", "edit"), often(FOLLOWED, FOLLOWED[:1]))
def test_a_compiled_model_follows_its_weights(method, edit, tokenizer_path):
    model = next(case for case in FIRST_CASES if case.method == method).build(tokenizer_path).eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        before = compiled(pixel_values=images()).logits
        EDITS[edit](model)
        after = compiled(pixel_values=images()).logits
    assert not torch.allclose(before, after, atol=1e-5)
    torch.testing.assert_close(after, logits(copy.deepcopy(model)), **CLOSE)


def test_a_compiled_model_follows_new_class_names(tokenizer_path):
    case = next(case for case in FIRST_CASES if case.method == "visual_prompt")
    model, pixel_values = case.build(tokenizer_path).eval(), dataset(4)["pixel_values"][:]
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        for names in (model.class_names, NEW_NAMES):
            model.set_class_names(names)
            logits = compiled(pixel_values=pixel_values).logits
            assert logits.shape == (4, len(names))
            torch.testing.assert_close(logits, model(pixel_values=pixel_values).logits, **CLOSE)
