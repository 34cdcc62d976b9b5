"""Read-only prompts over a KV cache equal the masked sequence of the papers, and change nothing they read."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch.nn import functional as F

from peft_vprompt import MRPOConfig, ReadOnlyPromptConfig
from peft_vprompt.core.tokenization import template_sequences
from peft_vprompt.tuners.base.feature_cache import FeatureCache
from tests.support.models import CLASS_NAMES, CONFIGS, NEW_NAMES, images, labels, tiny_clip, tiny_tokenizer
from tests.support.plain import plain_read_only_logits
from tests.support.watching import InputsOf


pytestmark = pytest.mark.core

CASES = [(method, case) for method in ("read_only_prompt", "mrpo") for case in CONFIGS[method]]


def read_only_model(config, tokenizer_path, **clip):
    config.class_names, config.tokenizer_name_or_path = CLASS_NAMES, tokenizer_path
    return get_peft_model(tiny_clip(**clip), config).eval()


def plain_prompts(model, config):
    """The prompts in front of each layer as the paper has them, and the leaves to ask for gradients of."""
    tuner = model.base_model
    text = tuner.text_encoder.active_prompts
    depth = getattr(config, "prompt_depth", 1)
    own = text.tokens.detach().clone().requires_grad_()
    update = getattr(config, "prompt_update", "replace")
    dead = [torch.randn(text.tokens.shape[1], 32, requires_grad=True) for _ in range(depth - own.shape[0])]
    text_prompts = [*dead, *own.unbind(0)]
    leaves = {"text": own}
    vision = tuner.vision_encoder.active_prompts
    if getattr(config, "coupling", "none") == "linear":
        leaves["weight"] = vision.weight.detach().clone().requires_grad_()
        leaves["bias"] = vision.bias.detach().clone().requires_grad_()
        dead_maps = [(torch.randn(24, 32, requires_grad=True), torch.randn(24, requires_grad=True)) for _ in dead]
        maps = [*dead_maps, *zip(leaves["weight"].unbind(0), leaves["bias"].unbind(0), strict=True)]
        vision_prompts = [F.linear(p, *m) for p, m in zip(text_prompts, maps, strict=True)]
        dead = dead + [t for pair in dead_maps for t in pair]
    else:
        leaves["vision"] = vision.tokens.detach().clone().requires_grad_()
        lost = [torch.randn(vision.tokens.shape[1], 24, requires_grad=True) for _ in range(depth - own.shape[0])]
        vision_prompts = [*lost, *leaves["vision"].unbind(0)]
        dead = dead + lost
    return text_prompts, vision_prompts, update, leaves, dead


@pytest.mark.parametrize(("method", "case"), [*CASES, ("mrpo", "free-replace")], ids="-".join)
def test_equal_to_the_masked_sequence(method, case, tokenizer_path):
    config = MRPOConfig(prompt_depth=3, coupling="none") if case == "free-replace" else CONFIGS[method][case]()
    model = read_only_model(config, tokenizer_path)
    text, vision, update, leaves, dead = plain_prompts(model, config)
    plain = copy.deepcopy(model).unload()
    sequences = template_sequences(tiny_tokenizer(), CLASS_NAMES, "a photo of a {}.")
    expected = plain_read_only_logits(plain, images(), sequences, text, vision, update)
    mine = model(pixel_values=images()).logits
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)

    F.cross_entropy(mine, labels()).backward()
    F.cross_entropy(expected, labels()).backward()
    tuner = model.base_model
    vision_holder = tuner.vision_encoder.active_prompts
    ours = {"text": tuner.text_encoder.active_prompts.tokens}
    ours |= {name: getattr(vision_holder, name) for name in ("weight", "bias") if name in leaves}
    if "vision" in leaves:
        ours["vision"] = vision_holder.tokens
    for name, leaf in leaves.items():
        torch.testing.assert_close(ours[name].grad, leaf.grad, atol=1e-5, rtol=1e-4, msg=name)
        assert leaf.grad.abs().sum() > 0
    # What the published method inserts before the last prompted layer is dropped unread: exactly no gradient.
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in dead)
    assert bool(dead) == (update == "replace" and getattr(config, "prompt_depth", 1) > 1)


@pytest.mark.parametrize(("method", "case"), CASES, ids="-".join)
def test_plain_tokens_are_bit_identical(method, case, tokenizer_path):
    base = tiny_clip()
    with torch.no_grad():
        expected = base.vision_model(images(), output_hidden_states=True)
    model = read_only_model(CONFIGS[method][case](), tokenizer_path)
    for layer, state in zip(model.base_model.vision_encoder.view.layers, expected.hidden_states, strict=False):
        with torch.no_grad(), InputsOf(layer.layer_norm1.weight) as norm:
            model(pixel_values=images())
        assert torch.equal(norm.seen[0], state)
    # Of the last layer the prompts need keys and values only: it never runs on the plain tokens.
    with torch.no_grad(), InputsOf(layer.layer_norm2.weight) as norm:
        model(pixel_values=images())
    assert all(hidden.shape[1] < 17 for hidden in norm.seen)
    with torch.no_grad():
        own = model.get_base_model().vision_model(images())
    assert torch.equal(own.last_hidden_state, expected.last_hidden_state)


def test_plain_tokens_run_without_gradients(tokenizer_path):
    model = read_only_model(ReadOnlyPromptConfig(num_virtual_tokens=2), tokenizer_path).train()
    prompt_rows = {2, 2 * len(CLASS_NAMES)}
    for tower in (model.base_model.vision_encoder, model.base_model.text_encoder):
        for index, layer in enumerate(tower.view.layers):
            tower.kv_caches = FeatureCache()
            with InputsOf(layer.mlp.fc1.weight) as feed_forward:
                model(pixel_values=images(), labels=labels()).loss.backward()
            needed = {hidden.shape[1]: hidden.requires_grad for hidden in feed_forward.outputs}
            assert len(needed) == (2 if index < 2 else 1)  # the prompts pass three layers, the plain tokens two
            assert all(wanted == (rows in prompt_rows) for rows, wanted in needed.items())


def test_the_text_kv_cache_is_made_once(tokenizer_path):
    model = read_only_model(MRPOConfig(prompt_depth=2), tokenizer_path).train()
    layer = model.base_model.text_encoder.view.layers[0]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

    def step():
        optimizer.zero_grad()
        with InputsOf(layer.mlp.fc1.weight) as feed_forward:
            model(pixel_values=images(), labels=labels() % 3).loss.backward()
        optimizer.step()
        return len(feed_forward.seen)

    assert [step(), step()] == [
        1,
        0,
    ]  # layer 0 never sees a prompt here (they start at layer 1), and the plain tokens once
    model.set_class_names(NEW_NAMES)
    assert step() == 1
    with torch.no_grad():
        model.base_model.text_encoder.base_layer.embeddings.position_embedding.weight.mul_(2)
    assert step() == 1


def test_features_come_in_pairs(tokenizer_path):
    model = read_only_model(ReadOnlyPromptConfig(num_virtual_tokens=3), tokenizer_path)
    assert model.encode_images(images()).shape == (4, 3, 16)
    assert model.encode_classes().shape == (5, 3, 16)
    ids = torch.tensor([[136, 3, 74, 137]])
    with pytest.raises(ValueError, match="reads out elsewhere.*set_class_names"):
        model(input_ids=ids, pixel_values=images())


def test_readers_start_near_the_end_and_class_tokens(tokenizer_path):
    model = read_only_model(ReadOnlyPromptConfig(num_virtual_tokens=3), tokenizer_path)
    base = model.get_base_model()
    text, vision = (
        tower.active_prompts.tokens[0] for tower in (model.base_model.text_encoder, model.base_model.vision_encoder)
    )
    end = base.text_model.embeddings.token_embedding.weight[137]
    for tokens, near in ((text, end), (vision, base.vision_model.embeddings.class_embedding)):
        torch.testing.assert_close((tokens - near).norm(dim=-1), torch.full((3,), 0.1), atol=1e-5, rtol=0)


def test_read_only_needs_no_more_layers_than_there_are(tokenizer_path):
    with pytest.raises(ValueError, match="prompt_depth <= 3.*prompt_depth=9"):
        get_peft_model(tiny_clip(), MRPOConfig())
