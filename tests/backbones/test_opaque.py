"""Image encoders that give one vector for each image: what works on them, and what is refused with the reason."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import AutoModel, CLIPImageProcessorPil, Trainer, TrainingArguments, pipeline
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from peft_vprompt import (
    AutoPeftModelForImageClassification,
    CLIPLoraConfig,
    ContextOptConfig,
    MaPLeConfig,
    NormTuningConfig,
    VisualPromptConfig,
)
from peft_vprompt.backbones.image_size import set_image_size
from peft_vprompt.backbones.supported import HEADS
from peft_vprompt.errors import UnsupportedModelError
from peft_vprompt.experiments.models import load_base
from peft_vprompt.models import ResNetCLIPConfig, ResNetCLIPModel
from peft_vprompt.tuners.base.registry import get_method
from tests.support.backbones import OPAQUE_ENCODERS, OPAQUE_MODELS, find_class, inputs, tiny
from tests.support.models import CLASS_NAMES, images, labels, tiny_tokenizer


NAME = "ResNetCLIPModel"


@pytest.fixture
def wrap(tokenizer_path):
    def build(config_class=ContextOptConfig, base=None, **options):
        given = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": tokenizer_path}
        return get_peft_model(tiny(NAME) if base is None else base, config_class(**given | options))

    return build


def norms(model):
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


class TestStatistics:
    """Norms of a frozen encoder stay as they are."""

    def test_in_a_projection(self, wrap):
        model = wrap(base=tiny("GroupViTModel").train())
        base = model.get_base_model()
        projections = [base.text_projection, base.visual_projection]
        assert [norm.training for part in projections for norm in norms(part)] == [False, False]
        before = {name: value.clone() for name, value in base.text_projection.named_buffers()}
        model.train()(pixel_values=images(), labels=labels()).loss.backward()
        assert not any(norm.training for part in projections for norm in norms(part))
        assert all(torch.equal(value, before[name]) for name, value in base.text_projection.named_buffers())

    @pytest.mark.parametrize("kind", ["context", "lora"])
    def test_at_rest_while_something_else_is_trained(self, kind, wrap, tokenizer_path):
        base = tiny(NAME).train()
        if kind == "context":
            model = wrap(base=base)
        else:  # PEFT's own tuner
            model = get_peft_model(base, LoraConfig(target_modules=r"text_model.*q_proj", task_type="IMAGE_CLS"))
            model.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer())
        buffers = {name: value.clone() for name, value in model.named_buffers()}
        assert not any(norm.training for norm in norms(model))
        output = model.train()(pixel_values=images(), labels=labels())
        output.loss.backward()
        assert model.training and not any(norm.training for norm in norms(model))
        alone = torch.cat([model(pixel_values=image[None]).logits for image in images()])
        torch.testing.assert_close(alone, output.logits, atol=1e-4, rtol=1e-4)
        assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())

    def test_moving_where_the_user_trains_them(self, wrap):
        model = wrap()
        for parameter in model.get_base_model().vision_model.parameters():
            parameter.requires_grad = True
        assert all(norm.training for norm in norms(model.train()))

    def test_by_the_trainer(self, wrap, tmp_path):
        model = wrap()
        before = {name: value.clone() for name, value in model.named_buffers()}
        rows = [{"pixel_values": image, "labels": label} for image, label in zip(images(), labels(), strict=True)]
        options = {"max_steps": 2, "per_device_train_batch_size": 2, "report_to": [], "save_strategy": "no"}
        arguments = TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, **options)
        assert Trainer(model, arguments, train_dataset=rows).train().global_step == 2
        assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


class TestTextSide:
    def test_the_class_prompts_are_the_text_towers(self, wrap):
        model = wrap().eval()
        with torch.no_grad(), model.disable_adapter():
            zero_shot = model(**inputs(NAME)).logits
            texts = tiny_tokenizer()(
                [f"a photo of a {name}." for name in CLASS_NAMES], padding=True, return_tensors="pt"
            )
            texts.pop("token_type_ids", None)
            own = model.get_base_model()(**texts, **inputs(NAME)).logits_per_image
        torch.testing.assert_close(zero_shot, own, atol=1e-4, rtol=1e-4)

    def test_zero_shot_by_its_name(self, wrap):
        config = get_method("zero-shot").configure(tiny(NAME), class_names=CLASS_NAMES)
        model = get_peft_model(tiny(NAME), config).eval()
        model.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer())
        with torch.no_grad(), model.disable_adapter():
            found = model(**inputs(NAME)).logits
        coop = wrap().eval()
        with torch.no_grad(), coop.disable_adapter():
            torch.testing.assert_close(found, coop(**inputs(NAME)).logits)

    def test_features_may_be_given(self, wrap):
        model = wrap().eval()
        features = model.encode_images(images())
        assert torch.allclose(features.norm(dim=-1), torch.ones(4))
        torch.testing.assert_close(model(image_features=features).logits, model(pixel_values=images()).logits)

    @pytest.mark.parametrize(
        ("config_class", "options"),
        [
            (MaPLeConfig, {"prompt_depth": 2, "vision_prompt_depth": 0, "coupling": "none"}),
            (NormTuningConfig, {"towers": "text"}),
            (CLIPLoraConfig, {"towers": "text", "lora_dropout": 0.0}),
        ],
    )
    def test_the_remedies_that_refusals_name(self, config_class, options, wrap, tmp_path):
        with pytest.raises(UnsupportedModelError, match="Set "):
            wrap(config_class)
        model = wrap(config_class, **options)
        model(pixel_values=images(), labels=labels()).loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        model.eval().save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(tiny(NAME), str(tmp_path))
        assert torch.equal(loaded(pixel_values=images()).logits, model(pixel_values=images()).logits)


class TestPixels:
    @pytest.mark.parametrize("location", ["pad", "below"])
    def test_against_a_plain_computation(self, location, wrap, tmp_path):
        base = tiny(NAME)
        model = wrap(VisualPromptConfig, base=base, num_virtual_tokens=2, location=location)
        output = model(pixel_values=images(), labels=labels())
        output.loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
        prompts = model.base_model.vision_encoder.prompts_of("default")
        plain = tiny(NAME)
        with torch.no_grad():
            if location == "pad":
                mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
                framed = torch.zeros(4, 3, 36, 36)
                framed[..., 2:-2, 2:-2] = images()
                sides, ends = (prompts.left_right - mean) / std, (prompts.top_bottom - mean) / std
                framed[..., 2:-2, :2], framed[..., 2:-2, -2:] = sides[..., :2], sides[..., 2:]
                framed[..., :2, :], framed[..., -2:, :] = ends[..., :2, :], ends[..., 2:, :]
                expected = plain.get_image_features(framed, interpolate_pos_encoding=True).pooler_output
            else:
                stem = torch.nn.Conv2d(5, 2, 3, stride=2, padding=1, bias=False)
                stem.weight.copy_(prompts.patch_weight)
                plain.vision_model.conv1 = stem
                image = torch.cat([images(), prompts.pixels.expand(4, -1, -1, -1)], dim=1)
                expected = plain.get_image_features(image).pooler_output
            expected = torch.nn.functional.normalize(expected, dim=-1)
            torch.testing.assert_close(model.eval().encode_images(images()), expected, atol=1e-5, rtol=1e-5)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(tiny(NAME), str(tmp_path))
        assert torch.equal(loaded.encode_images(images()), model.encode_images(images()))
        with torch.no_grad(), model.disable_adapter():
            torch.testing.assert_close(
                model.encode_images(images()), plain_features(loaded.unload()), atol=1e-6, rtol=0
            )
        assert str(model.unload()) == str(tiny(NAME))

    def test_hidden_states(self, wrap):
        model = wrap(VisualPromptConfig, num_virtual_tokens=2, location="pad")
        text = tiny_tokenizer()(["cat"], return_tensors="pt", return_token_type_ids=False)
        output = model(**text, pixel_values=images(), output_hidden_states=True)
        assert len(output.vision_model_output.hidden_states) == 5

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            (
                {"deep": True},
                r"VPT does not work on ResNetCLIPModel: its image encoder gives one vector.*location='pad'",
            ),
            ({"location": "prepend-pixel"}, "does not work on ResNetCLIPModel"),
            ({"location": "add"}, "does not work on ResNetCLIPModel"),
            ({"location": "pad", "pooling": "img_pool"}, "shows no rows to pool.*Use pooling='original'"),
        ],
    )
    def test_what_is_refused(self, options, match, wrap):
        base = tiny(NAME)
        before = str(base)
        with pytest.raises(UnsupportedModelError, match=match):
            wrap(VisualPromptConfig, base=base, num_virtual_tokens=2, **options)
        assert str(base) == before


@torch.no_grad()
def plain_features(base):
    return torch.nn.functional.normalize(base.get_image_features(images()).pooler_output, dim=-1)


@pytest.mark.parametrize("name", OPAQUE_MODELS)
def test_pixels_beside_texts(name, wrap):
    for location in ("pad", "below"):
        model = wrap(VisualPromptConfig, base=tiny(name), num_virtual_tokens=2, location=location)
        model(pixel_values=images(), labels=labels()).loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", OPAQUE_ENCODERS)
def test_pixels_on_a_convnet_alone(name, tmp_path):
    plain = tiny(name)
    with pytest.raises(UnsupportedModelError, match=f"VPT does not work on {name}.*Set location='pad'"):
        get_peft_model(tiny(name), VisualPromptConfig(num_virtual_tokens=2, deep=True))
    for location in ("pad", "below"):
        model = get_peft_model(tiny(name), VisualPromptConfig(num_virtual_tokens=2, location=location))
        if name in HEADS:
            model(pixel_values=images(), labels=labels()).loss.backward()
        else:
            model.encode_images(images()).sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
        model.eval().save_pretrained(tmp_path / location)
        loaded = PeftModel.from_pretrained(tiny(name), str(tmp_path / location))
        assert torch.equal(loaded.encode_images(images()), model.encode_images(images()))
        answer = "logits" if name in HEADS else "pooler_output"
        with torch.no_grad(), model.disable_adapter():
            assert torch.equal(model(pixel_values=images())[answer], plain(pixel_values=images())[answer])


class TestAnyEncoder:
    """`OpaqueCLIPModel`: an encoder of no library beside CLIP's text encoder."""

    def test_class_prompts_and_pixels(self, wrap):
        base = tiny("OpaqueCLIPModel")
        with torch.no_grad():
            plain = torch.nn.functional.normalize(base.vision_model.encoder(images()), dim=-1)
        model = wrap(base=base).eval()
        torch.testing.assert_close(model.encode_images(images()), plain)
        text = tiny_tokenizer()(["a photo of a cat."], return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad(), model.disable_adapter():
            own = model.get_base_model()(**text, pixel_values=images()).logits_per_image
            torch.testing.assert_close(model(pixel_values=images()).logits[:, :1], own, atol=1e-4, rtol=1e-4)
        for location in ("pad", "below"):
            model = wrap(VisualPromptConfig, base=tiny("OpaqueCLIPModel"), num_virtual_tokens=2, location=location)
            model(pixel_values=images(), labels=labels()).loss.backward()
            assert all(p.grad is not None for p in model.parameters() if p.requires_grad)

    def test_the_card_does_not_promise_to_load_the_base_model(self, wrap, tmp_path):
        wrap(base=tiny("OpaqueCLIPModel")).save_pretrained(tmp_path)
        card = (tmp_path / "README.md").read_text()
        assert "base = ...  # the OpaqueCLIPModel that the adapter was trained on" in card
        assert "from transformers import OpaqueCLIPModel" not in card
        wrap().save_pretrained(tmp_path / "resnet")
        assert "from peft_vprompt.models import ResNetCLIPModel" in (tmp_path / "resnet" / "README.md").read_text()

    def test_what_is_refused(self, wrap):
        model = wrap(base=tiny("OpaqueCLIPModel"))
        with pytest.raises(TypeError, match="does not take interpolate_pos_encoding"):
            model(pixel_values=images(), interpolate_pos_encoding=True)
        with pytest.raises(ValueError, match="Expected to save an adapter"):
            model.get_base_model().save_pretrained("nowhere")
        base = tiny("OpaqueCLIPModel")
        base.vision_model.encoder = torch.nn.Conv2d(3, 16, 3)
        with pytest.raises(ValueError, match=r"gives one vector for each image.*Received: \[4, 16, 30, 30\]"):
            wrap(base=base)(pixel_values=images())
        pixels = wrap(VisualPromptConfig, base=tiny("OpaqueCLIPModel"), num_virtual_tokens=2, location="pad")
        with pytest.raises(ValueError, match="Expected images of 32 pixels"):
            pixels(pixel_values=torch.zeros(1, 3, 40, 40))

    def test_an_encoder_that_nothing_is_known_of(self, wrap):
        base = tiny("VisionTextDualEncoderModel")
        base.text_model = torch.nn.Linear(1, 1)
        with pytest.raises(
            UnsupportedModelError, match="nothing is known of its encoder Linear. Known are: CLIPTextModel"
        ):
            wrap(base=base)


class TestTheModelItself:
    def test_saving_loading_and_the_auto_classes(self, wrap, tmp_path):
        model = tiny(NAME)
        model.save_pretrained(tmp_path / "base")
        tiny_tokenizer().save_pretrained(tmp_path / "base")
        loaded = AutoModel.from_pretrained(tmp_path / "base").eval()
        assert type(loaded) is ResNetCLIPModel
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
        )
        prompted = wrap(base=loaded, tokenizer_name_or_path=None).eval()
        prompted.save_pretrained(tmp_path / "adapter")
        again = AutoPeftModelForImageClassification.from_pretrained(str(tmp_path / "adapter"))
        assert torch.equal(again(pixel_values=images()).logits, prompted(pixel_values=images()).logits)

    def test_images_of_another_size(self):
        model = tiny(NAME)
        with pytest.raises(ValueError, match=r"Expected images of 32x32 pixels.*interpolate_pos_encoding=True"):
            model.get_image_features(torch.zeros(1, 3, 64, 64))
        assert model.get_image_features(
            torch.zeros(1, 3, 64, 96), interpolate_pos_encoding=True
        ).pooler_output.shape == (1, 16)

    def test_no_image_size_is_set_in_it(self):
        with pytest.raises(UnsupportedModelError, match="Expected no image size for ResNetCLIPVisionModel"):
            set_image_size(tiny(NAME), 64)

    @pytest.mark.parametrize(
        ("name", "image_encoder", "text_width"),
        [
            ("RN50", 38.32, 512),
            ("RN101", 56.26, 512),
            ("RN50x4", 87.14, 640),
            ("RN50x16", 167.33, 768),
            ("RN50x64", 420.38, 1024),
        ],  # millions of parameters, as open_clip's docs/model_profile.csv has them
    )
    def test_the_published_sizes(self, name, image_encoder, text_width):
        with torch.device("meta"):
            model = ResNetCLIPModel(ResNetCLIPConfig.of(name))
        assert round(sum(p.numel() for p in model.vision_model.parameters()) / 1e6, 2) == image_encoder
        assert model.config.text_config.hidden_size == text_width
        assert model.config.vision_config.hidden_size // model.config.vision_config.num_attention_heads == 64

    def test_an_unknown_size(self):
        with pytest.raises(ValueError, match="RN50x64"):
            ResNetCLIPConfig.of("RN34")


def test_baselines_need_a_head(tmp_path):
    tiny(NAME).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="a resnet_clip, which has none. Use a method on class names"):
        load_base(str(tmp_path), CLASS_NAMES, classifier=True)


def test_the_pipeline(tmp_path):
    size = {"height": 32, "width": 32}
    tiny(NAME).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(tmp_path)
    answer = pipeline("zero-shot-image-classification", model=str(tmp_path), device="cpu")(
        Image.new("RGB", (40, 40)), candidate_labels=CLASS_NAMES
    )
    assert {entry["label"] for entry in answer} == set(CLASS_NAMES)
    assert find_class(NAME) is ResNetCLIPModel
