"""Class prompts on every model with two towers: against a plain computation, one class at a time, by the model itself."""

import inspect

import pytest
import torch
from peft import get_peft_model
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from peft_vprompt import CoCoOpConfig, ContextOptConfig, MaPLeConfig, VisualPromptConfig
from tests.support.backbones import DUAL_MODELS, frame, inputs, shake, tiny
from tests.support.models import CLASS_NAMES, NEW_NAMES, labels, tiny_tokenizer


CLOSE = {"atol": 1e-5, "rtol": 1e-5}
PACKED = ("CLIPModel", "MetaClip2Model", "CLIPSegModel", "OwlViTModel", "Owlv2Model")
PADDED = [name for name in DUAL_MODELS if name not in PACKED]


@pytest.fixture
def wrap(tmp_path):
    """Put an adapter on a tiny model, with the model's own kind of tokenizer."""

    def build(name, config_class, **options):
        tiny_tokenizer(frame(name)).save_pretrained(tmp_path / "tokenizer")
        options = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": str(tmp_path / "tokenizer")} | options
        return get_peft_model(tiny(name), config_class(**options)).eval()

    return build


def tokenize(name, texts):
    """As the model's processor does."""
    tokenizer = tiny_tokenizer(frame(name))
    if name == "Aimv2Model":  # which reads both ways where nothing is padded
        return dict(
            tokenizer(texts, padding="max_length", max_length=70, return_tensors="pt", return_token_type_ids=False)
        )
    if not name.startswith("Siglip"):
        return dict(tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False))
    return {"input_ids": tokenizer(texts, padding="max_length", max_length=64, return_tensors="pt").input_ids}


@torch.no_grad()
def plain_features(name, base, prompts):
    """Features of "x x cat." and so on where `prompts` [j, n, d] take the places of the x, one class at a time."""
    text, count = base.text_model, prompts.shape[1]
    start = 0 if name.startswith(("Siglip", "Tipsv2")) else 1
    encoder = text.roberta if name == "AltCLIPModel" else text
    layers = next(m for m in encoder.encoder.children() if isinstance(m, torch.nn.ModuleList))
    embedding = next(m for m in encoder.embeddings.children() if isinstance(m, torch.nn.Embedding))

    def put(hidden, new):
        return torch.cat([hidden[:, :start], new[None], hidden[:, start + count :]], dim=1)

    handles = [embedding.register_forward_hook(lambda m, a, output: put(output, prompts[0]))]
    for layer, new in list(zip(layers, prompts, strict=False))[1:]:
        handles.append(layer.register_forward_pre_hook(lambda m, a, new=new: (put(a[0], new), *a[1:])))
    features = []
    for class_name in CLASS_NAMES:
        call = tokenize(name, ["x " * count + f"{class_name}."])
        features.append(base.get_text_features(**call).pooler_output[0])
    for handle in handles:
        handle.remove()
    return F.normalize(torch.stack(features), dim=-1)


@pytest.mark.parametrize("name", DUAL_MODELS)
@pytest.mark.parametrize("deep", [False, True], ids=["context", "deep"])
def test_class_prompts_equal_the_plain_computation(name, deep, wrap):
    options = {"prompt_depth": 2, "coupling": "none", "vision_prompt_depth": 0} if deep else {}
    model = wrap(
        name, MaPLeConfig if deep else ContextOptConfig, num_virtual_tokens=3, prompt_init="random", **options
    )
    prompts = shake(next(p for n, p in model.named_parameters() if n.endswith("learner.default.tokens"))).detach()
    mine = model.encode_classes()
    logits = model(**inputs(name)).logits
    base = model.unload()
    text = plain_features(name, base, prompts)
    torch.testing.assert_close(mine, text, **CLOSE)
    with torch.no_grad():
        images = F.normalize(base.get_image_features(**inputs(name)).pooler_output, dim=-1)
        scale = 1 / base.temperature if name == "Tipsv2Model" else base.logit_scale.exp()
        expected = scale * images @ text.t() + getattr(base, "logit_bias", 0)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tune", ["context", "full"])
@pytest.mark.parametrize("name", ["OwlViTModel", "Aimv2Model", "Tipsv2Model"])
def test_what_starts_from_words_says_the_words(name, tune, wrap):
    model = wrap(name, ContextOptConfig, tune=tune, prompt_init="text", prompt_init_text="a photo of a")
    mine = model.encode_classes()
    texts = tokenize(name, [f"a photo of a {class_name}." for class_name in CLASS_NAMES])
    with torch.no_grad():
        own = F.normalize(model.unload().get_text_features(**texts).pooler_output, dim=-1)
    torch.testing.assert_close(mine, own, **CLOSE)


def test_aimv2_reads_no_text_both_ways(wrap):
    """transformers' own call does with sdpa, where no text of a batch is padded."""
    model = wrap("Aimv2Model", VisualPromptConfig, class_names=["cat"], template="a {}.")
    with torch.no_grad(), model.disable_adapter():
        alone = model.encode_classes()
        model.set_class_names(["cat", "sea lion"])
        torch.testing.assert_close(alone, model.encode_classes()[:1], **CLOSE)


@pytest.mark.parametrize("name", DUAL_MODELS)
def test_zero_shot_is_the_models_own_call(name, wrap):
    model = wrap(name, VisualPromptConfig, template="a photo of a {}.")
    texts = tokenize(name, [f"a photo of a {class_name}." for class_name in CLASS_NAMES])
    with torch.no_grad():
        with model.disable_adapter():
            zero_shot = model(**inputs(name)).logits
            own = model(**texts, **inputs(name)).logits_per_image
        prompted = model(**inputs(name)).logits
        prompted_own = model(**texts, **inputs(name)).logits_per_image
        plain = tiny(name)(**texts, **inputs(name)).logits_per_image
    assert torch.equal(own, plain)
    torch.testing.assert_close(zero_shot, plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(prompted, prompted_own, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(prompted, plain, atol=1e-3)


@pytest.mark.parametrize("name", ["CLIPModel", "MetaClip2Model"])
def test_zero_shot_leaves_the_attention_that_the_user_chose(name, wrap):
    model = wrap(name, VisualPromptConfig, template=["{}.", "a photo of the large {}, seen from afar.", "a {}."])
    base = model.get_base_model()
    texts = tokenize(name, [f"{class_name}." for class_name in CLASS_NAMES])
    with torch.no_grad(), model.disable_adapter():
        packed = model.encode_classes()
        base.set_attn_implementation("eager")
        model.set_class_names(NEW_NAMES)
        model.set_class_names(CLASS_NAMES)
        torch.testing.assert_close(model.encode_classes(), packed, **CLOSE)
        attentions = base.text_model(**texts, output_attentions=True).attentions
    assert len(attentions) == 2 and attentions[0].shape[-1] == texts["input_ids"].shape[1]


def shifted(output):
    """A text tower's output, of which the pooled one is another."""
    output.pooler_output = output.pooler_output + 1
    return output


def replace_forward(tower, monkeypatch):
    plain = tower.forward
    tower.forward = lambda *args, **kwargs: shifted(plain(*args, **kwargs))


def hook_tower(tower, monkeypatch):
    tower.register_forward_hook(lambda module, args, output: shifted(output))


def hook_encoder(tower, monkeypatch):
    tower.encoder.register_forward_hook(
        lambda module, args, output: type(output)(last_hidden_state=output.last_hidden_state.flip(-1))
    )


def own_embeddings(tower, monkeypatch):
    class Embeddings(type(tower.embeddings)):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs).flip(-1)

    tower.embeddings.__class__ = Embeddings


def own_attention(tower, monkeypatch):
    def attend(module, query, *args, **kwargs):
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, 0 * query, *args, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, "own", attend)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "own", sdpa_mask)
    tower.set_attn_implementation("own")


@pytest.mark.parametrize(
    "change",
    [replace_forward, hook_tower, hook_encoder, own_embeddings, own_attention],
    ids=lambda each: each.__name__,
)
def test_zero_shot_is_the_own_call_of_a_tower_that_was_changed(change, wrap, monkeypatch):
    model = wrap("CLIPModel", VisualPromptConfig, template="a photo of a {}.")
    texts = tokenize("CLIPModel", [f"a photo of a {class_name}." for class_name in CLASS_NAMES])
    with torch.no_grad(), model.disable_adapter():
        before = model.encode_classes()
        change(model.get_base_model().text_model.base_layer, monkeypatch)
        model.set_class_names(CLASS_NAMES)
        zero_shot = model.encode_classes()
        own = F.normalize(model.get_base_model().get_text_features(**texts).pooler_output, dim=-1)
    torch.testing.assert_close(zero_shot, own, **CLOSE)
    assert not torch.allclose(zero_shot, before, atol=1e-2)


@pytest.mark.parametrize("name", DUAL_MODELS)
def test_a_context_of_each_image(name, wrap):
    model, call = wrap(name, CoCoOpConfig, num_virtual_tokens=3, prompt_init="random"), inputs(name)
    together = model(**call, labels=labels())
    together.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert next(p for n, p in model.named_parameters() if n.endswith("default.tokens")).grad.abs().sum() > 0
    alone = [model(**{key: value[k : k + 1] for key, value in call.items()}).logits for k in range(4)]
    torch.testing.assert_close(together.logits, torch.cat(alone), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", PADDED)
def test_texts_with_prompts_in_an_encoder_that_reads_both_ways(name, wrap):
    model = wrap(name, ContextOptConfig, num_virtual_tokens=3)
    with pytest.raises(ValueError, match="a class in each row.*set_class_names"):
        model(**tokenize(name, ["cat"]), **inputs(name))
    with torch.no_grad(), model.disable_adapter():
        assert model(**tokenize(name, ["cat"]), **inputs(name)).logits_per_image.shape == (4, 1)


@pytest.mark.parametrize("name", PADDED)
def test_other_classes_and_names_that_are_too_long(name, wrap):
    model = wrap(name, ContextOptConfig, num_virtual_tokens=3)
    before = model.encode_classes()
    model.set_class_names(NEW_NAMES)
    assert model(**inputs(name)).logits.shape == (4, 3)
    with pytest.raises(ValueError, match=r"has 12\d tokens.*positions. Shorten the name"):
        model.set_class_names(["x" * 120])
    model.set_class_names(CLASS_NAMES)
    assert torch.equal(model.encode_classes(), before)


@pytest.mark.parametrize("name", DUAL_MODELS)
def test_the_trainer_sees_labels_beside_what_the_model_takes(name, wrap):
    own = inspect.signature(tiny(name).forward).parameters
    seen = inspect.signature(wrap(name, VisualPromptConfig).get_base_model().forward).parameters
    assert list(seen)[-1] == list(own)[-1] and set(seen) == {*own, "labels", "image_features"}
