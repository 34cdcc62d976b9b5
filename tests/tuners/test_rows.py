"""The method table: its order, the names people type, and which row a config is."""

import pytest
import torch
from peft import get_peft_model

import peft_vprompt
from peft_vprompt import MaPLeConfig, MMRLConfig
from peft_vprompt.experiments.models import METHODS, build_model, published_fields
from peft_vprompt.peft_models.model_card import render_model_card
from peft_vprompt.tuners.base.registry import find_row, get_method
from tests.support.models import CLASS_NAMES, CONFIGS, NEW_NAMES, disturb, images, labels, tiny_clip, tiny_tokenizer


def test_zero_shot_comes_first_and_no_row_is_lost():
    assert list(METHODS)[:5] == ["zero-shot", "vpt", "vpt-shallow", "vpt-deep", "coop"]
    assert len(METHODS) == len({spec.title for spec in METHODS.values()})


def test_names_people_type_are_the_same_classes():
    assert peft_vprompt.CoOpConfig is peft_vprompt.ContextOptConfig
    assert peft_vprompt.VPTConfig is peft_vprompt.VisualPromptConfig
    assert peft_vprompt.RPOConfig is peft_vprompt.ReadOnlyPromptConfig
    assert {"CoOpConfig", "VPTConfig", "RPOConfig"} <= set(peft_vprompt.__all__)


@pytest.mark.parametrize("method", [*(name for name in METHODS if name != "zero-shot"), "partial-2", "mlp-2"])
def test_the_card_has_the_title_of_the_row(method, clip_path, vit_path):
    row = get_method(method)
    model = build_model(vit_path if row.is_baseline else clip_path, method, CLASS_NAMES).model
    if method == "lora":  # PEFT writes its card
        return
    assert find_row(model.active_peft_config, row.is_baseline).title == row.title
    card = render_model_card(model)
    assert f"# {row.title} adapter for" in card and row.paper.citation in card and row.learns in card


def test_changed_fields_do_not_hide_the_row():
    config = MaPLeConfig(coupling="none", prompt_depth=2, prompt_init="random", num_virtual_tokens=3)
    assert find_row(config, is_classifier=False).name == "ivlp"


def test_the_callers_config_stays_as_it_is(tokenizer_path):
    config = MaPLeConfig(tokenizer_name_or_path=tokenizer_path, prompt_depth=2)
    model, other = (get_peft_model(tiny_clip(), config) for _ in range(2))
    model.set_class_names(CLASS_NAMES)
    model.add_adapter("second", config)
    model.train()(pixel_values=images(), labels=labels()).loss.backward()
    model.set_class_names(NEW_NAMES)
    assert config.class_names is None and other.class_names is None
    assert model.peft_config["default"].class_names == CLASS_NAMES
    assert model.peft_config["second"].class_names is None


def test_a_tuple_has_tensors_alone(make):
    model = get_peft_model(tiny_clip(), make("kgcoop", "words")).train()
    inputs = {"pixel_values": images(), "labels": labels()}
    output, given = model(**inputs), model(**inputs, return_dict=False)
    assert output.aux_losses is not None
    assert [type(value).__name__ for value in given] == ["Tensor"] * 3
    assert given[0].item() == pytest.approx(output.loss.item()) and given[1].shape == output.logits.shape


def texts_of(model, tokenizer) -> list[str]:
    """What is read of each class: words, and _ for a learned token."""
    classes = model.class_name_classifier.classes
    words = lambda ids: tokenizer.convert_ids_to_tokens([each for each in ids if each >= 0])  # noqa: E731
    return [
        "".join("_" if each < 0 else words([each])[0].replace("</w>", " ") for each in sequence)
        for sequence in classes.sequences[0]
    ]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{}.", "<|startoftext|>____cat .<|endoftext|>"),
        ("{}, a type of pet", "<|startoftext|>____cat , a type of pet <|endoftext|>"),
        ("person doing {}.", "<|startoftext|>____person doing cat .<|endoftext|>"),
    ],
)
def test_the_text_around_a_name_in_tcp(template, expected, make):
    config = make("tcp", next(iter(CONFIGS["tcp"])), prompt_template=template, num_virtual_tokens=4)
    model = get_peft_model(tiny_clip(), config)
    read = texts_of(model, tiny_tokenizer())
    assert read[CLASS_NAMES.index("cat")].replace(" ", "") == expected.replace(" ", "")


def test_a_published_task_decides_tcps_text():
    assert published_fields("coop-11/oxford_pets", "tcp") == {
        "template": "a photo of a {}, a type of pet.",
        "prompt_template": "{}, a type of pet.",
    }
    found = {
        task: published_fields(f"coop-11/{task}", "tcp")["prompt_template"] for task in ("ucf101", "eurosat", "dtd")
    }
    assert found == {"ucf101": "person doing {}.", "eurosat": "{}.", "dtd": "{} texture."}
    assert published_fields("coop-11/dtd", "coop") == {"template": "{} texture."}


def test_terms_of_aligned_norm_outside_of_training(make):
    config = make("mmrl", "aligned")
    model = disturb(get_peft_model(tiny_clip(), config))
    trained, read = (
        getattr(model, mode)()(pixel_values=images(), labels=labels(), output_aux_loss=True)
        for mode in ("train", "eval")
    )
    assert {"feature_norm", "sequence_norm"} <= read.aux_losses.keys()
    torch.testing.assert_close(read.aux_losses, trained.aux_losses)


def test_a_weight_of_0_is_none_at_all():
    config = MMRLConfig(image_consistency_weight=0.0, consistency_weight=2.0)
    assert (config.image_consistency_weight, config.text_consistency_weight) == (0.0, 2.0)
    again = MMRLConfig(**{key: value for key, value in config.to_dict().items() if key.endswith("weight")})
    assert (again.image_consistency_weight, again.text_consistency_weight) == (0.0, 2.0)


@pytest.mark.parametrize("scale", [100.0, None])
def test_the_frozen_model_is_read_by_the_methods_scale(scale, make):
    config = make("clip_lora", "both", logit_consistency_weight=1.0, init_lora_weights=True, logit_scale=scale)
    output = get_peft_model(tiny_clip(), config).train()(
        pixel_values=images(), labels=labels()
    )  # a LoRA changes nothing yet
    assert output.aux_losses["logit_consistency"].item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_lies_beside_trained_weights_is_in_floats_too(dtype, make):
    student = get_peft_model(tiny_clip().to(dtype), make("promptkd", next(iter(CONFIGS["promptkd"]))))
    statistics = {name: buffer.dtype for name, buffer in student.named_buffers() if "running" in name}
    assert statistics and set(statistics.values()) == {torch.float32}
    model = get_peft_model(tiny_clip().to(dtype), make("two_stage", "first"))
    model.start_class_head()
    model.train()(pixel_values=images(), labels=labels()).loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32} and all(p.grad.any() for p in trained)


def test_a_longer_training_keeps_the_place_of_its_average():
    recipe = METHODS["promptsrc"].recipe
    longer = recipe.override(epochs=50).averaging
    assert (longer.mean, longer.std) == (37.5, 2.5)
    assert recipe.override(epochs=10).averaging == recipe.averaging == recipe.override(learning_rate=0.1).averaging


@pytest.mark.parametrize("low_rank", [None, 2], ids=["mmrl", "mmrlpp"])
def test_tokens_of_mmrl_come_in_right_in_front_of_the_first_layer(low_rank, tokenizer_path):
    """Behind position embeddings and the norm before the layers; the plain layers on the same rows say the same."""
    options = {"representation_layers": [1, 2], "representation_dim": 12, "low_rank": low_rank, "beta": 0.6}
    config = MMRLConfig(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path, **options)
    model = disturb(get_peft_model(tiny_clip(), config)).eval()
    clip, classifier = tiny_clip(), model.class_name_classifier
    text, vision = classifier.adapted.text, classifier.adapted.vision
    share = 1.0 if low_rank is None else 0.6

    def through(tower, hidden, tokens, mask=None):
        (first, second), many = (each.unsqueeze(0) for each in tokens), len(tokens[0])
        for index, layer in enumerate(tower.encoder.layers):
            if index == 0:
                hidden = torch.cat([hidden[:, :1], first.expand(len(hidden), -1, -1), hidden[:, 1:]], dim=1)
            elif index == 1:
                before = hidden[:, 1 : 1 + many]
                hidden = torch.cat(
                    [hidden[:, :1], share * second + (1 - share) * before, hidden[:, 1 + many :]], dim=1
                )
            causal = None if mask is None else torch.full([hidden.shape[1]] * 2, -torch.inf).triu(1)[None, None]
            hidden = layer(hidden, causal)
        return hidden

    with torch.no_grad():
        shared = text.active_prompts
        pixels = clip.vision_model.pre_layrnorm(clip.vision_model.embeddings(images()))
        tokens = vision.active_prompts(text_prompts=shared.for_images())
        feature = clip.visual_projection(
            clip.vision_model.post_layernorm(through(clip.vision_model, pixels, tokens)[:, 0])
        )
        torch.testing.assert_close(
            model.encode_images(images())[:, 0], torch.nn.functional.normalize(feature, dim=-1), atol=1e-5, rtol=0
        )
        ids = torch.tensor(tiny_tokenizer()("a photo of a cat.").input_ids)[None]
        words = clip.text_model.embeddings(ids)
        hidden = clip.text_model.final_layer_norm(through(clip.text_model, words, shared(), mask=True))
        feature = torch.nn.functional.normalize(clip.text_projection(hidden[:, -1]), dim=-1)
        torch.testing.assert_close(model.encode_classes()[CLASS_NAMES.index("cat")], feature[0], atol=1e-5, rtol=0)
