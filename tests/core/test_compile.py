"""`torch.compile` on a PEFT model: the same numbers as the eager model, and one graph where nothing is cached."""

from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters

from peft_vprompt.core.packed_prompts import pack
from peft_vprompt.core.padded_prompts import pad
from tests.support.models import NEW_NAMES
from tests.support.training_cases import FIRST_CASES, dataset, first_cases, gradients


pytestmark = pytest.mark.usefixtures("quick")


CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def check_training(case, tokenizer_path, backend):
    """Compare logits and gradients with the eager model's; return the model."""
    model, batch = case.build(tokenizer_path).train(), dataset(4)[:]
    call = {"pixel_values": batch["pixel_values"], "labels": batch["labels"]}
    expected = model(**call)
    expected.loss.backward()
    expected_gradients = gradients(model)
    model.zero_grad()

    value = torch.compile(model, backend=backend)(**call)
    value.loss.backward()
    torch.testing.assert_close(value.logits, expected.logits, **CLOSE)
    torch.testing.assert_close(gradients(model), expected_gradients, **CLOSE)
    return model


@pytest.mark.nightly
@first_cases
def test_inductor_equals_eager(case, tokenizer_path):
    model = check_training(case, tokenizer_path, "inductor").eval()
    compiled = torch.compile(model, backend="inductor")
    with torch.no_grad():
        for count in (4, 2):
            pixel_values = dataset(count)["pixel_values"][:]
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


@first_cases
def test_logits_and_gradients_equal_eager(case, tokenizer_path):
    model = check_training(case, tokenizer_path, "eager")
    # Frozen texts are encoded once, outside of the compiled code: the only place that may leave the graph.
    reasons = list(counters["graph_break"])
    assert all("torch.compiler.disable" in reason for reason in reasons), reasons
    assert len(reasons) == int(reads_frozen_texts(model)), reasons


def reads_frozen_texts(model) -> bool:
    """Whether the adapter reads texts, or a KV cache of them, that training does not change."""
    text = model.base_model.text_encoder
    if text is None:
        return False
    learning = any(parameter.requires_grad for parameter in text.parameters())
    regularized = bool(model.base_model.method.regularizers(model.active_peft_config))
    return not learning or regularized or (text.active_prompts is not None and text.active_prompts.read_only)


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
