"""Models that run by open_clip itself: the image encoder is its own, texts are read by CLIP's text encoder or a BERT."""

import importlib.machinery
import json
import sys
import types

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from peft_vprompt import ContextOptConfig, MaPLeConfig
from peft_vprompt.backbones.bert import BertTextView
from peft_vprompt.errors import UnsupportedModelError
from peft_vprompt.models import OpaqueCLIPModel, load_open_clip
from tests.support import plain_clip
from tests.support.backbones import convolutions, shake
from tests.support.models import CLASS_NAMES, TEXT, VOCABULARY_SIZE, images, labels, tiny_tokenizer


@pytest.fixture(autouse=True)
def open_clip(monkeypatch):
    """What the bridge asks of open_clip, whose image encoder here is a small ConvNet."""

    class CustomTextCLIP(nn.Module):
        def __init__(self, embed_dim, vision_cfg, text_cfg, quick_gelu=False):
            super().__init__()
            assert vision_cfg["timm_model_name"] == "small" and not text_cfg.get("hf_model_name")  # fetches no weights
            self.visual = convolutions()

    module = types.ModuleType("open_clip")
    module.CustomTextCLIP = CustomTextCLIP
    module.__spec__ = importlib.machinery.ModuleSpec("open_clip", None)
    monkeypatch.setitem(sys.modules, "open_clip", module)


@pytest.fixture
def folder(tmp_path):
    """A folder of open_clip with a text tower of some kind, and what its parts are."""

    def write(
        kind="bert", pooler="cls_last_hidden_state_pooler", projection="mlp", change=lambda state: state, **said
    ):
        torch.manual_seed(0)
        classes = {"bert": (BertConfig, BertModel), "roberta": (RobertaConfig, RobertaModel)}
        config_class, model_class = classes[kind]
        sizes = TEXT | {"vocab_size": VOCABULARY_SIZE, "num_hidden_layers": 2, "max_position_embeddings": 120}
        sizes["pad_token_id"] = tiny_tokenizer("bert").pad_token_id
        config = config_class(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        config.save_pretrained(tmp_path / "text")
        parts = {"mlp": [nn.Linear(32, 24, bias=False), nn.GELU(), nn.Linear(24, 16, bias=False)]}
        proj = nn.Sequential(*parts["mlp"]) if projection == "mlp" else nn.Linear(32, 16, bias=False)
        text = shake(model_class(config, add_pooling_layer=pooler == "cls_pooler").eval())
        visual = shake(convolutions().eval())
        state = {f"text.transformer.{n}": v for n, v in text.state_dict().items()}
        state["text.transformer.embeddings.position_ids"] = torch.arange(77)[None]
        state |= {f"text.proj.{n}": v for n, v in proj.state_dict().items()}
        state |= {f"visual.{n}": v for n, v in visual.state_dict().items()} | {"logit_scale": torch.tensor(3.0)}
        path = tmp_path / "open_clip"
        path.mkdir()
        text_said = {"hf_model_name": str(tmp_path / "text"), "hf_pooler_type": pooler, "hf_proj_type": projection}
        model = {"embed_dim": 16, "vision_cfg": {"timm_model_name": "small", "image_size": 32}}
        if pooler == "absent":  # mean, through two layers
            text_said = {"hf_model_name": text_said["hf_model_name"]}
        model["text_cfg"] = text_said | {"context_length": 64} | said
        (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
        save_file({n: v.clone() for n, v in change(state).items()}, path / "open_clip_model.safetensors")
        tiny_tokenizer("bert").save_pretrained(path)
        return path, text, proj, visual

    return write


TEXTS = [f"a photo of a {name}." for name in CLASS_NAMES]


@pytest.mark.parametrize(
    ("kind", "pooler", "projection"),
    [
        ("bert", "cls_last_hidden_state_pooler", "mlp"),  # BiomedCLIP's
        ("bert", "cls_pooler", "linear"),
        ("roberta", "mean_pooler", "mlp"),
        ("roberta", None, "linear"),  # mean, which open_clip takes for a RoBERTa
        ("bert", None, "linear"),  # the class token, without the pooler, which open_clip does not make then
        ("bert", "absent", "mlp"),
    ],
)
def test_texts_by_a_bert(kind, pooler, projection, folder, tmp_path):
    path, text, proj, visual = folder(kind, pooler, projection)
    base = load_open_clip(path)
    assert type(base) is OpaqueCLIPModel and not base.training
    call = tiny_tokenizer("bert")(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        output = text(**call)
        pooled = output.last_hidden_state[:, 0]
        if pooler == "cls_pooler":
            pooled = output.pooler_output
        elif kind == "roberta" or pooler == "absent":
            kept = call["attention_mask"][..., None]
            pooled = (output.last_hidden_state * kept).sum(1) / kept.sum(1)
        expected = F.normalize(proj(pooled), dim=-1)
        cosine = F.normalize(visual(images()), dim=-1) @ expected.t()
        logits = base(**call, pixel_values=images()).logits_per_image
        torch.testing.assert_close(logits, torch.tensor(3.0).exp() * cosine, atol=1e-4, rtol=1e-4)

    model = get_peft_model(base, ContextOptConfig(class_names=CLASS_NAMES, num_virtual_tokens=2)).eval()
    with torch.no_grad(), model.disable_adapter():
        torch.testing.assert_close(model.encode_classes(), expected, atol=1e-5, rtol=1e-5)
    output = model.train()(pixel_values=images(), labels=labels())
    output.loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match="a class in each row.*set_class_names"):
        model(**call, pixel_values=images())
    model.eval().save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(load_open_clip(path), str(tmp_path / "adapter"))
    assert torch.equal(loaded(pixel_values=images()).logits, model(pixel_values=images()).logits)


def test_contexts_are_word_vectors_of_the_bert(folder):
    path, text, proj, _ = folder()
    words = ContextOptConfig(class_names=CLASS_NAMES, prompt_init="text", prompt_init_text="a photo of a")
    model = get_peft_model(load_open_clip(path), words).eval()
    call = tiny_tokenizer("bert")(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        expected = F.normalize(proj(text(**call).last_hidden_state[:, 0]), dim=-1)
    torch.testing.assert_close(model.encode_classes(), expected, atol=1e-5, rtol=1e-5)


def test_texts_by_clips_text_encoder(folder):
    path = folder()[0]
    state = plain_clip.random_state(plain_clip.text_shapes(24, 48, 2, VOCABULARY_SIZE, 40, 16))
    visual = shake(convolutions().eval())
    named = {n if n == "logit_scale" else f"text.{n}": v for n, v in state.items()}
    save_file(named | {f"visual.{n}": v for n, v in visual.state_dict().items()}, path / "open_clip_model.safetensors")
    text = {"width": 24, "heads": 2, "layers": 2, "vocab_size": VOCABULARY_SIZE, "context_length": 40}
    said = {"embed_dim": 16, "vision_cfg": {"timm_model_name": "small"}, "text_cfg": text, "quick_gelu": True}
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": said}))
    base = load_open_clip(path)
    ids = torch.tensor([[VOCABULARY_SIZE - 2, 3, 9, VOCABULARY_SIZE - 1]])
    expected = plain_clip.texts(state, ids, 2)
    torch.testing.assert_close(base.get_text_features(ids).pooler_output, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(base.get_image_features(images()).pooler_output, visual(images()))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"change": lambda s: {n: v for n, v in s.items() if n != "logit_scale"}}, "Missing: logit_scale"),
        ({"pooler": "max_pooler"}, "of bert, pooled by max_pooler. Use a checkpoint"),
        ({"projection": "other"}, "hf_proj_type 'linear' or 'mlp'.*Received: 'other'"),
        ({"something": 1}, "text_cfg.something=1. Use a checkpoint"),
        ({"hf_model_name": "/nowhere/at/all"}, "configuration of the text encoder '/nowhere/at/all'.*write the path"),
        (
            {"change": lambda s: {n: v for n, v in s.items() if "layer.1" not in n}},
            r"tensors of a BertModel in text.transformer.\*. Missing.*layer.1",
        ),
        ({"change": lambda s: s | {"text.other": torch.zeros(1)}}, "left: text.other"),
        ({"change": lambda s: s | {"logit_bias": torch.zeros(1)}}, "logit_bias. Use SiglipModel"),
    ],
)
def test_what_is_refused(options, match, folder):
    path = folder(**options)[0]
    with pytest.raises(UnsupportedModelError, match=match):
        load_open_clip(path)


def test_prompts_inside_the_image_encoder_are_refused(folder):
    model = load_open_clip(folder()[0])
    with pytest.raises(UnsupportedModelError, match="MaPLe does not work on OpaqueCLIPModel.*vision_prompt_depth=0"):
        get_peft_model(model, MaPLeConfig(class_names=CLASS_NAMES))
    assert BertTextView(model.text_model).module.pooler is None
