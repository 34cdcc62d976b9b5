"""The fast text side equals the plain one, and its cached features never outlive what they were made from."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch.nn import functional as F
from transformers import CLIPModel

from peft_vprompt import ContextOptConfig, MaPLeConfig, VisualPromptConfig
from peft_vprompt.core import attention
from peft_vprompt.core.attention import ATTENTION_NAME, BLOCK_ROWS, Causal, SharedPrefix
from peft_vprompt.core.packed_prompts import pack, shared_length
from peft_vprompt.core.tokenization import context_sequences, learned
from tests.support.models import (
    CLASS_NAMES,
    CONFIGS,
    NEW_NAMES,
    TEXT,
    images,
    labels,
    often,
    tiny_clip,
    tiny_tokenizer,
)
from tests.support.plain import plain_text_features


pytestmark = pytest.mark.core

TEXT_CASES = [(method, case) for method in ("context_opt", "maple") for case in CONFIGS[method]]
NAMES = {
    "usual": CLASS_NAMES,
    "one": ["cat"],
    "two": ["a", "sea lion"],
    "same": ["dog", "dog"],
    "long and short": ["x", "herbaceous vegetation land with many words in it", "dog"],
    "one inside the other": ["sea", "sea lion", "sea lion baby"],
    "underscores": ["sea_lion", "St.", "boeing 737-800!"],
}


def text_model(method, case, tokenizer_path, names=CLASS_NAMES, **clip):
    config = CONFIGS[method][case](class_names=list(names), tokenizer_name_or_path=tokenizer_path)
    return get_peft_model(tiny_clip(**clip), config).eval()


def both_ways(model):
    """Features of the packed pass and of the plain one, with the gradients of the text prompts in each."""
    tuner, config = model.base_model, model.active_peft_config
    sequences = tuner.method.class_sequences(config, model.class_names, tiny_tokenizer())
    plain = copy.deepcopy(model).unload()
    results = []
    for features in (
        lambda prompts: model.encode_classes(),
        lambda prompts: plain_text_features(plain, sequences[0], prompts),
    ):
        module = tuner.text_encoder.active_prompts
        prompts = None if module is None else module()
        value = features(prompts)
        gradient = None
        if module is not None:
            weight = torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
            gradient = torch.autograd.grad((value * weight).sum(), list(module.parameters()))
        results.append((value.detach(), gradient))
    return results


@pytest.fixture(params=["whole", "in blocks"])
def attended(request, monkeypatch):
    """Attend to few rows whole, as is usual, or in blocks as to many."""
    if request.param == "in blocks":
        monkeypatch.setattr(attention, "WHOLE_ROWS", 0)
    return request.param


@pytest.mark.filterwarnings("ignore:class_names repeats")
@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize(("method", "case"), often(TEXT_CASES, [*TEXT_CASES[:4], *TEXT_CASES[-2:]]), ids="-".join)
def test_packed_equals_plain(method, case, names, attended, tokenizer_path):
    names = NAMES[names]
    (packed, packed_gradient), (plain, plain_gradient) = both_ways(text_model(method, case, tokenizer_path, names))
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=0)
    if plain_gradient is not None:
        for mine, theirs in zip(packed_gradient, plain_gradient, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_packed_is_the_same_under_any_implementation(implementation, tokenizer_path):
    model = text_model("maple", "maple", tokenizer_path, attn_implementation=implementation)
    reference = text_model("maple", "maple", tokenizer_path)
    reference.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.encode_classes(), reference.encode_classes(), atol=1e-6, rtol=0)


def test_shared_prefix_is_found():
    assert shared_length([[9, -1, -2, 5, 8], [9, -1, -2, 6, 7, 8]]) == 3
    assert shared_length([[9, 4, 8], [9, 4, 8]]) == 2
    assert shared_length([[9, 8]]) == 1


def test_packing_repeats_nothing_and_pads_nothing():
    packed = pack([[9, learned(0), learned(1), 5, 8], [9, learned(0), learned(1), 6, 7, 8]])
    assert packed.token_ids.tolist() == [9, 0, 0, 5, 8, 6, 7, 8]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    assert packed.learned_rows.tolist() == [1, 2] and packed.learned_sources.tolist() == [0, 1]
    assert packed.end_rows.tolist() == [4, 7]


def test_names_that_begin_alike_share_rows():
    packed = pack([[9, 5, 6, 8], [9, 5, 7, 8], [9, learned(0), 8], [9, 5, 6, 8]])
    assert packed.token_ids.tolist() == [9, 5, 6, 8, 7, 8, 0, 8]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 2, 3, 1, 2]
    assert packed.end_rows.tolist() == [3, 5, 7, 3]
    assert packed.num_classes == 4


def test_rows_of_one_hundred_classes_with_sixteen_tokens():
    names = [f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrst"]
    packed = pack(context_sequences(tiny_tokenizer(), names, 16))
    # Ten first letters, then a second letter, full stop and end for each name, instead of 100 x 77.
    assert packed.token_ids.shape == (17 + 10 + 100 * 3,)


@pytest.mark.parametrize(
    "paths",
    [
        [[0, 1, 2], [3], [4, 5, 6, 7, 8]],
        [[0, 1, 2, 3], [0, 1, 4], [0, 5, 6, 7], [8]],
        [list(range(BLOCK_ROWS + 2)), [BLOCK_ROWS + 2], [0, BLOCK_ROWS + 3]],
        [[0, 1 + 2 * suffix, 2 + 2 * suffix] for suffix in range(BLOCK_ROWS)],
    ],
    ids=["apart", "alike", "longer than a block", "one beginning in several blocks"],
)
def test_shared_prefix_attention_equals_a_masked_one(paths, attended):
    torch.manual_seed(0)
    pattern = SharedPrefix.from_paths(4, paths)
    assert (pattern.visible is None) == (attended == "in blocks")
    rows = 5 + max(map(max, paths))
    query, key, value = (torch.randn(2, 2, rows, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    visible = torch.eye(rows, dtype=torch.bool)
    visible[:4, :4] = torch.ones(4, 4, dtype=torch.bool).tril()
    visible[4:, :4] = True
    for path in paths:
        for place, row in enumerate(path):
            visible[4 + row, [4 + before for before in path[:place]]] = True
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=0.3)
    ours = pattern(query, key, value, 0.3, 0.0)
    torch.testing.assert_close(ours, expected)
    weights = torch.randn_like(expected)
    for mine, plain in zip(
        torch.autograd.grad(ours, (query, key, value), weights),
        torch.autograd.grad(expected, (query, key, value), weights),
        strict=True,
    ):
        torch.testing.assert_close(mine, plain)


def test_causal_attention_with_padding():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 5, 8)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    padded = Causal(mask)(query, key, value, 0.3, 0.0)
    plain = Causal()(query, key, value, 0.3, 0.0)
    torch.testing.assert_close(padded[0], plain[0])
    torch.testing.assert_close(padded[1, :, :3], plain[1, :, :3])
    assert padded.isfinite().all()


# ---- the attention implementation is the user's -------------------------------------------------------------------


def layer_configs(model):
    return [layer.self_attn.config for layer in model.text_model.encoder.layers]


def test_other_models_that_share_the_config_are_untouched(tokenizer_path):
    one = tiny_clip()
    other = CLIPModel(one.config)
    get_peft_model(one, CONFIGS["context_opt"]["end"](class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path))
    assert all(config._attn_implementation == ATTENTION_NAME for config in layer_configs(one))
    assert all(config is one.config.text_config for config in layer_configs(other))
    assert one.config.text_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_disable_gives_the_implementation_back(implementation, tokenizer_path):
    model = text_model("context_opt", "end", tokenizer_path, attn_implementation=implementation)
    with model.disable_adapter():
        assert all(c._attn_implementation == implementation for c in layer_configs(model.get_base_model()))
    assert all(c._attn_implementation == ATTENTION_NAME for c in layer_configs(model.get_base_model()))


def test_without_a_pattern_the_function_is_the_users_own(tokenizer_path):
    """Also a choice made after the adapter was put in."""
    base = tiny_clip(attn_implementation="sdpa")
    model = get_peft_model(base, VisualPromptConfig(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path))
    ids = torch.tensor([[136, 3, 74, 137, 137], [136, 3, 74, 80, 137]])
    model.get_base_model().set_attn_implementation("eager")
    text = model.get_base_model().text_model
    seen = []
    function = "transformers.models.clip.modeling_clip.eager_attention_forward"
    with pytest.MonkeyPatch.context() as patch:
        from transformers.models.clip import modeling_clip

        original = modeling_clip.eager_attention_forward
        patch.setattr(function, lambda *args, **kwargs: seen.append(1) or original(*args, **kwargs))
        mine = text(input_ids=ids, attention_mask=torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])).pooler_output
    assert len(seen) == TEXT["num_hidden_layers"]
    with torch.no_grad():
        plain = tiny_clip().text_model(input_ids=ids).pooler_output
    torch.testing.assert_close(mine, plain, atol=1e-6, rtol=0)


# ---- CLIPModel's own call ----------------------------------------------------------------------------------------


def own_call_features(model, texts, **padding):
    batch = tiny_tokenizer()(texts, return_tensors="pt", **padding)
    output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, pixel_values=images())
    return output.text_embeds, output


@pytest.mark.parametrize("padding", [{"padding": True}, {"padding": "max_length", "max_length": 60}], ids=str)
@pytest.mark.parametrize(("method", "case"), [("context_opt", "end"), ("maple", "maple"), ("maple", "ivlp")])
def test_input_ids_are_prompted(method, case, padding, tokenizer_path):
    model = text_model(method, case, tokenizer_path)
    prefix = f"{model.active_peft_config.words or ''} ".lstrip()
    texts = [f"{prefix}{name}." for name in CLASS_NAMES]
    with torch.no_grad():
        mine, output = own_call_features(model, texts, **padding)
        torch.testing.assert_close(mine, model.encode_classes(), atol=1e-6, rtol=0)
        torch.testing.assert_close(output.image_embeds, model.encode_images(images()), atol=1e-6, rtol=0)
        classified = model(pixel_values=images()).logits
    torch.testing.assert_close(output.logits_per_image, classified, atol=1e-5, rtol=0)


def test_contrastive_loss_reaches_the_prompts(tokenizer_path):
    model = text_model("maple", "maple", tokenizer_path).train()
    batch = tiny_tokenizer()([f"a photo of a {n}." for n in CLASS_NAMES[:4]], padding=True, return_tensors="pt")
    model(**batch, pixel_values=images(), return_loss=True).loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


def test_position_ids_and_hidden_states(tokenizer_path):
    model = text_model("context_opt", "end", tokenizer_path)
    ids = torch.tensor([[136, 3, 74, 137]])
    text = model.get_base_model().text_model
    given = text(ids, position_ids=torch.arange(4)[None], output_hidden_states=True)
    plain = text(ids, output_hidden_states=True)
    assert torch.equal(given.pooler_output, plain.pooler_output)
    assert len(plain.hidden_states) == TEXT["num_hidden_layers"] + 1
    assert plain.last_hidden_state.shape == (1, 8, 32)
    assert isinstance(text(ids, return_dict=False), tuple)


def test_visual_prompts_leave_texts_alone(tokenizer_path):
    model = text_model("visual_prompt", "deep", tokenizer_path)
    texts = [f"a photo of a {name}." for name in CLASS_NAMES]
    mine, output = own_call_features(model, texts, padding=True)
    torch.testing.assert_close(mine, model.encode_classes(), atol=1e-6, rtol=0)
    torch.testing.assert_close(output.image_embeds, model.encode_images(images()), atol=1e-6, rtol=0)


def test_own_call_errors(tokenizer_path):
    model = text_model("context_opt", "end", tokenizer_path)  # four context tokens
    full = torch.full((1, 77), 5)
    full[0, 0], full[0, -1] = 136, 137
    with pytest.raises(ValueError, match="77 tokens and 4 inserted.*Truncate input_ids to 73"):
        model(input_ids=full, pixel_values=images())
    with pytest.raises(ValueError, match="no end token.*cut off"):
        model(input_ids=torch.tensor([[136, 4, 5]]), pixel_values=images())
    with pytest.raises(ValueError, match="pad right"):
        model(input_ids=torch.tensor([[136, 4, 137], [137, 136, 137]]), pixel_values=images())
    middle = text_model("context_opt", "middle", tokenizer_path)
    with pytest.raises(ValueError, match="set_class_names"):
        middle(input_ids=full, pixel_values=images())
    replaced = text_model("maple", "maple", tokenizer_path)
    with pytest.raises(ValueError, match="at least 2 words"):
        replaced(input_ids=torch.tensor([[136, 4, 137]]), pixel_values=images())


# ---- the cache ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(tokenizer_path):
    """A model in eval mode, with a count of the passes through its text tower."""
    model = text_model("context_opt", "end", tokenizer_path)
    passes = []
    tower = model.base_model.text_encoder
    original = tower.encode_class_prompts
    tower.encode_class_prompts = lambda *args, **kwargs: passes.append(1) or original(*args, **kwargs)
    with torch.no_grad():
        first = model.encode_classes()
    assert len(passes) == 1
    return model, passes, first


def encode_again(model):
    with torch.no_grad():
        return model.encode_classes()


def test_features_are_kept(cached):
    model, passes, first = cached
    assert torch.equal(encode_again(model), first) and len(passes) == 1
    model(pixel_values=images())  # a gradient could flow: computed anew
    assert len(passes) == 2
    with torch.inference_mode():
        model(pixel_values=images())
        model(pixel_values=images())
    assert len(passes) == 3


def drop_by_optimiser_step(model):
    model.train()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(pixel_values=images(), labels=labels()).loss.backward()
    optimiser.step()
    model.eval()


def drop_by_weight_load(model):
    state = {k: v * -3 if "learner" in k else v for k, v in model.state_dict().items()}
    model.load_state_dict(state)


def drop_by_assigned_weights(model):
    state = {k: v * -3 if "learner" in k else v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def drop_by_data_write(model):
    """As libraries for averaged weights put them in: no version counter moves."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(parameter.flip(-1))
            parameter.data.mul_(1.01)


def drop_by_class_change(model):
    model.set_class_names(NEW_NAMES)


def drop_by_adapter_switch(model):
    path = model.active_peft_config.tokenizer_name_or_path
    model.add_adapter("other", CONFIGS["maple"]["maple"](class_names=CLASS_NAMES, tokenizer_name_or_path=path))
    model.set_adapter("other")


def drop_by_dtype(model):
    model.double()


def drop_by_base_weights(model):
    with torch.no_grad():
        model.get_base_model().text_projection.weight.mul_(-1)


@pytest.mark.parametrize(
    "change",
    [
        drop_by_optimiser_step,
        drop_by_weight_load,
        drop_by_assigned_weights,
        drop_by_data_write,
        drop_by_class_change,
        drop_by_adapter_switch,
        drop_by_dtype,
        drop_by_base_weights,
    ],
)
def test_features_are_dropped(cached, change):
    model, _, first = cached
    change(model)
    again = encode_again(model)
    assert (
        again.shape != first.shape or not torch.allclose(again.float(), first, atol=1e-5) or again.dtype != first.dtype
    )
    fresh = copy.deepcopy(model)
    fresh.class_name_classifier.memory.features.clear()
    assert torch.equal(encode_again(fresh), again)


def test_features_are_dropped_with_disable(cached):
    model, _, first = cached
    with model.disable_adapter():
        assert not torch.allclose(encode_again(model), first, atol=1e-4)
    assert torch.equal(encode_again(model), first)


def test_features_are_dropped_by_a_device_move(cached):
    model, _, _ = cached
    model.to("meta")
    assert encode_again(model).device.type == "meta"


def test_autocast_has_features_of_its_own(cached):
    model, _, first = cached
    with torch.autocast("cpu", torch.bfloat16):
        under = encode_again(model)
    assert not torch.equal(under.float(), first)
    assert torch.equal(encode_again(model), first)


def test_a_cache_built_under_inference_mode_serves_training(tokenizer_path):
    """With visual prompts the text features are frozen, and gradients flow past them."""
    model = text_model("visual_prompt", "deep", tokenizer_path)
    with torch.inference_mode():
        model(pixel_values=images())
    model.train()
    model(pixel_values=images(), labels=labels()).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_lora_in_the_base_is_seen_by_the_text_side(tokenizer_path):
    base = inject_adapter_in_model(LoraConfig(target_modules=["q_proj"], init_lora_weights=False), tiny_clip())
    with pytest.warns(UserWarning, match="second time"):
        model = get_peft_model(
            base.eval(), ContextOptConfig(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path)
        )
    (packed, _), (plain, _) = both_ways(model.eval())
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("method", "case"), [("context_opt", "end"), ("read_only_prompt", "rpo")])
def test_switching_a_lora_in_the_base_drops_what_is_kept(method, case, tokenizer_path):
    """Class features, and the KV cache of the plain tokens that read-only prompts read."""
    base = tiny_clip()
    for name in ("other", "default"):
        inject_adapter_in_model(LoraConfig(target_modules=["v_proj"], init_lora_weights=False), base, name)
    config = CONFIGS[method][case](class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path)
    with pytest.warns(UserWarning, match="second time"):
        model = get_peft_model(base, config).eval()
    lora = [module for module in model.modules() if isinstance(module, LoraLayer)]
    seen = [encode_again(model)]
    for switch in (
        lambda layer: layer.set_adapter("other"),
        lambda layer: layer.set_scale("other", 3.0),
        lambda layer: layer.enable_adapters(False),
    ):
        for layer in lora:
            switch(layer)
        seen.append(encode_again(model))
        assert torch.equal(encode_again(copy.deepcopy(model)), seen[-1])  # a copy keeps nothing
        assert not torch.allclose(seen[-1], seen[-2], atol=1e-4)


def test_bfloat16_base(tokenizer_path):
    config = MaPLeConfig(prompt_depth=2, class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path)
    model = get_peft_model(tiny_clip().to(torch.bfloat16), config).eval()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    output = model(pixel_values=images().to(torch.bfloat16), labels=labels())
    assert output.logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(("length", "text"), [(5, "a bad photo of the many"), (2, "a"), (4, "a photo of a")])
def test_up_to_four_prompts_start_from_words(length, text, tokenizer_path):
    torch.manual_seed(0)
    options = {"num_virtual_tokens": length, "prompt_init_text": text, "tokenizer_name_or_path": tokenizer_path}
    model = get_peft_model(tiny_clip(), MaPLeConfig(class_names=CLASS_NAMES, prompt_depth=1, **options))
    encoder = model.base_model.text_encoder
    (start,) = encoder.active_prompts.tokens.detach()
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text).input_ids[1:]  # the end token behind them
    words = model.get_base_model().text_model.embeddings.token_embedding(torch.tensor(ids))[:length]
    assert torch.equal(start, words) == (length <= 4)
    (sequences,) = model.base_model.method.class_sequences(model.active_peft_config, CLASS_NAMES, tokenizer)
    for name, sequence in zip(CLASS_NAMES, sequences, strict=True):
        rest = ids[length:-1] if length <= 4 else []
        assert sequence[1:] == [*range(-1, -1 - length, -1), *rest, *tokenizer(f"{name}.").input_ids[1:]]
