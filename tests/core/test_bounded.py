"""Bounded memory, and many adapters in one pass: other ways to compute the same numbers."""

import pytest
import torch
from peft import get_peft_model

from peft_vprompt import MRPOConfig, ReadOnlyPromptConfig
from peft_vprompt.core.checkpointing import checkpointed_chunks
from peft_vprompt.core.packed_prompts import pack_bounded
from peft_vprompt.core.tokenization import context_sequences
from peft_vprompt.tuners.base import class_list
from tests.support.models import CLASS_NAMES, CONFIGS, NEW_NAMES, images, labels, often, tiny_clip, tiny_tokenizer
from tests.support.training_cases import CASES, FIRST_CASES, Case, gradients
from tests.support.watching import InputsOf


DUAL_CASES = [case for case in CASES if case.backbone == "CLIPModel"]


def loss_and_gradients(case: Case, tokenizer_path: str, **config) -> dict:
    model = case.build(tokenizer_path, dtype=torch.float64, **config).train()
    output = model(pixel_values=images(), labels=labels())
    output.loss.backward()
    return {"logits": output.logits.detach(), "gradients": gradients(model)}


@pytest.mark.parametrize("case", often(DUAL_CASES, FIRST_CASES), ids=str)
def test_pieces_change_nothing(case, tokenizer_path, monkeypatch):
    expected = loss_and_gradients(case, tokenizer_path)
    monkeypatch.setattr(class_list, "MAX_TOKEN_ROWS", 30)
    monkeypatch.setattr(class_list, "MAX_KV_CACHE_ROWS", 30)
    torch.testing.assert_close(loss_and_gradients(case, tokenizer_path), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("max_rows", "count"), [(1, 12), (20, 7), (50, 2), (1000, 1)])
def test_pieces_are_bounded_and_complete(max_rows, count):
    sequences = context_sequences(tiny_tokenizer(), [f"class {index}" for index in range(12)], 4)
    parts = pack_bounded(sequences, max_rows, read_only=2)
    assert len(parts) == count
    assert all(part.num_classes == 1 or part.num_rows + 2 * part.num_classes <= max_rows for part in parts)
    ends = [int(part.position_ids[row]) for part in parts for row in part.end_rows]
    assert ends == [len(sequence) - 1 for sequence in sequences]


def test_of_pieces_only_one_is_kept(tokenizer_path, monkeypatch):
    names = [f"{word} {index}" for index, word in enumerate(["cat", "dog"] * 20)]
    kept = {}
    for max_rows in (10_000, 40):
        monkeypatch.setattr(class_list, "MAX_TOKEN_ROWS", max_rows)
        model = Case("CLIPModel", "context_opt", "end").build(tokenizer_path, class_names=names).train()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):  # noqa: B023
            model(pixel_values=images(), labels=labels())
        kept[max_rows] = sum(saved)
    assert 0 < kept[40] < kept[10_000] / 3


@pytest.mark.parametrize(("limit", "kept"), [(0, 1), (1, 1), (4, 1), (5, 2), (100, 3)])
def test_pieces_computed_again_come_after_those_that_were_kept(limit, kept):
    weight, events = torch.ones(2, requires_grad=True), []

    def function(piece):
        events.append(f"compute {piece}")
        scaled = weight * piece
        scaled.register_hook(lambda gradient: events.append(f"backward {piece}"))
        return scaled.exp()

    torch.cat(checkpointed_chunks(function, [0, 1, 2], sizes=[1, 3, 2], limit=limit)).sum().backward()
    again = [f"compute {piece}" for piece in range(3 - kept)]
    backward = [event for piece in (2, 1, 0) for event in (f"compute {piece}", f"backward {piece}")]
    assert events[:3] == ["compute 0", "compute 1", "compute 2"]
    assert events[3:] == [event for event in backward if event.startswith("backward") or event in again]
    torch.testing.assert_close(weight.grad, sum(piece * torch.ones(2).exp() ** piece for piece in range(3)))


def test_templates_share_one_bound(tokenizer_path, monkeypatch):
    """Of several lists of texts that each fit, only as much is kept as fits together."""
    kept = {}
    for max_rows in (10_000, 80):
        monkeypatch.setattr(class_list, "MAX_TOKEN_ROWS", max_rows)
        case = Case("CLIPModel", "context_opt", "end")
        model = case.build(tokenizer_path, class_names=[f"cat {index}" for index in range(20)], num_contexts=6).train()
        assert all(
            len(parts) == 1 for parts in model.class_name_classifier.classes.pack(0, 20, 0, torch.device("cpu"))
        )
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):  # noqa: B023
            model(pixel_values=images(), labels=labels())
        kept[max_rows] = sum(saved)
    assert 0 < kept[80] < kept[10_000] / 4


def test_zero_shot_in_pieces(tokenizer_path, monkeypatch):
    model = Case("CLIPModel", "context_opt", "end").build(tokenizer_path).eval()
    with model.disable_adapter(), torch.no_grad():
        expected = model.encode_classes()
        model.class_name_classifier.memory.features.clear()
        monkeypatch.setattr(class_list, "ZERO_SHOT_BATCH", 2)
        torch.testing.assert_close(model.encode_classes(), expected, rtol=0, atol=1e-6)


ADAPTERS = {
    "rpo": ReadOnlyPromptConfig(num_virtual_tokens=3),
    "single": ReadOnlyPromptConfig(num_virtual_tokens=1),
    "mrpo": MRPOConfig(num_virtual_tokens=2, prompt_depth=2),
    "mrpo-deep": MRPOConfig(num_virtual_tokens=2, prompt_depth=3, prompt_update="accumulate"),
    "mrpo-free": MRPOConfig(num_virtual_tokens=1, prompt_depth=2, coupling="none"),
}


@pytest.fixture(scope="module")
def many(tokenizer_path):
    """A model with read-only adapters of several kinds, one of them for other classes, and a CoOp."""
    torch.manual_seed(0)
    model = None
    for name, config in ADAPTERS.items():
        config.class_names = NEW_NAMES if name == "single" else CLASS_NAMES
        config.tokenizer_name_or_path = tokenizer_path
        if model is None:
            model = get_peft_model(tiny_clip(), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    model.add_adapter("coop", CONFIGS["context_opt"]["end"](tokenizer_name_or_path=tokenizer_path))
    return model.eval()


def test_many_adapters_in_one_pass_equal_one_by_one(many):
    expected = {}
    with torch.no_grad():
        for name in ADAPTERS:
            many.set_adapter(name)
            expected[name] = many(pixel_values=images()).logits
        many.set_adapter("coop")
        results = many.classify_with_adapters(images(), list(reversed(ADAPTERS)))
    assert list(results) == list(reversed(ADAPTERS))
    for name, output in results.items():
        torch.testing.assert_close(output.logits, expected[name], rtol=0, atol=1e-5)
    assert results["single"].logits.shape == (4, len(NEW_NAMES))
    assert many.active_adapter == "coop"


def test_the_frozen_pass_is_shared(many):
    for index, layer in enumerate(many.base_model.vision_encoder.view.layers):
        with torch.no_grad(), InputsOf(layer.mlp.fc1.weight) as feed_forward:
            many.classify_with_adapters(images(), list(ADAPTERS))
        plain = [hidden for hidden in feed_forward.seen if hidden.shape[1] == 17]
        assert len(plain) == (index < 2)  # of the last of three layers only keys and values are needed


@pytest.mark.parametrize(("names", "received"), [(["rpo", "coop"], r"\['coop'\]"), (["who"], "who"), ([], r"\[\]")])
def test_only_readers_share_a_pass(many, names, received):
    with pytest.raises(ValueError, match=rf"read-only adapters.*'rpo'.*Received: adapter_names=.*{received}"):
        many.classify_with_adapters(images(), names)
    with pytest.raises(ValueError, match="adapters are disabled.*zero-shot"), many.disable_adapter():
        many.classify_with_adapters(images(), names)
