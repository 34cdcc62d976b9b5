"""Sentences by class: as what the frozen model reads, as class vectors, and what is refused."""

import json

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch.nn import functional as F

from peft_vprompt import ClassHeadConfig, PromptConfig, VisualPromptConfig
from peft_vprompt.core.class_descriptions import find_descriptions
from peft_vprompt.errors import ClassNamesError, PromptTooLongError
from peft_vprompt.tuners.base.registry import PROMPT_METHODS
from tests.support.models import CLASS_NAMES, CONFIGS, disturb, images, labels, tiny_clip, tiny_tokenizer, tiny_vit


DESCRIBED = {
    "cat": ["a cat has whiskers", "cats purr at night"],
    "Sea Lion": ["a sea lion swims"],
    "boeing 737-800": ["a plane", "it has two engines", "it has wings"],
    "herbaceous_land": ["green grass"],
    "dog": ["dogs bark"],
    "yeti": ["nobody has seen one"],
}
FIRST_CASES = [(method, next(iter(CONFIGS[method]))) for method in PROMPT_METHODS]


@torch.no_grad()
def plain(sentences):
    """The averaged features of each class's sentences, one sentence at a time, by the model itself."""
    clip = tiny_clip()
    means = []
    for some in sentences:
        each = [clip.get_text_features(**tiny_tokenizer()(x, return_tensors="pt")).pooler_output[0] for x in some]
        means.append(F.normalize(F.normalize(torch.stack(each), dim=-1).mean(0), dim=-1))
    return torch.stack(means)


@pytest.fixture(scope="module")
def vectors():
    return plain(list(DESCRIBED.values())[:5])


@pytest.mark.parametrize(("method", "case"), FIRST_CASES, ids="-".join)
def test_the_frozen_model_reads_them_under_any_method(method, case, make, vectors, tmp_path):
    config = make(method, case, class_descriptions=DESCRIBED, frozen_template="an image of {}.")
    model = disturb(get_peft_model(tiny_clip(), config))
    with torch.no_grad():
        with model.disable_adapter():
            zero_shot = model.encode_classes()
        target = model.class_name_classifier.frozen_text()
    torch.testing.assert_close(zero_shot, vectors, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(target, vectors, atol=1e-6, rtol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_clip(), tmp_path).eval()
    with torch.no_grad(), loaded.disable_adapter():
        assert torch.equal(loaded.encode_classes(), zero_shot)


def test_the_terms_of_the_loss_aim_at_them(make, vectors):
    model = disturb(get_peft_model(tiny_clip(), make("kgcoop", "random", class_descriptions=DESCRIBED)))
    output = model(pixel_values=images(), labels=labels(), output_aux_loss=True)
    distance = 1 - (model.encode_classes() * vectors).sum(-1).mean()
    torch.testing.assert_close(output.aux_losses["text_consistency"], 8 * distance, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["deep", "read-only"])
def test_they_are_the_class_vectors_where_no_text_is_learned(case, make, vectors):
    model = disturb(get_peft_model(tiny_clip(), make("visual_prompt", case, class_descriptions=DESCRIBED)))
    with torch.no_grad():
        torch.testing.assert_close(model.encode_classes(), vectors, atol=1e-6, rtol=1e-5)
        image = model.encode_images(images())
        image = image.mean(1) if image.ndim == 3 else image  # the cosines of all read-only prompts are averaged
        expected = model.base_model.model.logit_scale.exp() * image @ vectors.t()
        torch.testing.assert_close(model(pixel_values=images()).logits, expected, atol=1e-5, rtol=1e-5)


def test_a_projection_that_is_trained_learns_from_them(make):
    config = make("visual_prompt", "shallow", class_descriptions=DESCRIBED, modules_to_save=["text_projection"])
    model = get_peft_model(tiny_clip(), config)
    model(pixel_values=images(), labels=labels()).loss.backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad and "text_projection" in name}
    assert trained and all(gradient.abs().sum() > 0 for gradient in trained.values())


def test_a_head_starts_from_them(make, vectors):
    model = get_peft_model(tiny_clip(), make("class_head", "text", class_descriptions=DESCRIBED))
    torch.testing.assert_close(model.encode_classes(), vectors, atol=1e-6, rtol=1e-5)


def test_a_learned_text_stays_what_it_is(make):
    described, plainly = (
        disturb(get_peft_model(tiny_clip(), make("context_opt", "words", class_descriptions=given)))
        for given in (DESCRIBED, None)
    )
    with torch.no_grad():
        assert torch.equal(described.encode_classes(), plainly.encode_classes())


def test_a_file_is_read_once(make, tmp_path):
    file = tmp_path / "cupl.json"
    file.write_text(json.dumps(DESCRIBED))
    assert make("context_opt", "end", class_descriptions=file).class_descriptions == DESCRIBED
    model = get_peft_model(tiny_clip(), make("context_opt", "end"))
    model.describe_classes(str(file))
    model.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).class_descriptions == DESCRIBED


def test_a_strangers_config_names_no_file_to_read(make, tmp_path):
    file = tmp_path / "cupl.json"
    file.write_text(json.dumps(DESCRIBED))
    get_peft_model(tiny_clip(), make("context_opt", "end")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"class_descriptions": str(file)}))
    with pytest.raises(ValueError, match=r"a dict .* or a pathlib.Path.*Write pathlib.Path\("):
        PeftModel.from_pretrained(tiny_clip(), tmp_path)


def test_a_change_is_seen(make):
    model = get_peft_model(tiny_clip(), make("visual_prompt", "shallow", class_descriptions=DESCRIBED)).eval()
    with torch.no_grad():
        before = model.encode_classes()
        model.describe_classes({"dog": ["dogs wag their tails", "dogs dig"]})
        after = model.encode_classes()
        model.active_peft_config.class_descriptions["dog"].pop()
        last = model.encode_classes()
    torch.testing.assert_close(before[:4], after[:4], atol=1e-6, rtol=0)  # texts share a sequence
    assert not torch.allclose(before[4], after[4])
    assert not torch.allclose(after[4], last[4])


def test_accents_of_keys_are_read_in_both_forms():
    assert find_descriptions(["caf\u00e9"], {"Cafe\u0301": ["a place"], "tea": ["a drink"]}) == [["a place"]]


def test_other_classes_need_descriptions_of_their_own(make):
    model = get_peft_model(tiny_clip(), make("context_opt", "end", class_descriptions=DESCRIBED)).eval()
    with pytest.raises(ClassNamesError, match=r"without a description: fox, wolf.*describe_classes"):
        model.set_class_names(["fox", "cat", "wolf"])
    assert model.class_names == CLASS_NAMES
    with pytest.raises(ClassNamesError, match="without a description: fox"):
        model.class_name_classifier.compare(["fox"], pixel_values=images())
    model.set_class_names(["yeti", "cat"])
    model.describe_classes({"fox": ["a fox is red"], "wolf": ["a wolf is grey"]})
    model.set_class_names(["fox", "wolf"])
    with torch.no_grad(), model.disable_adapter():
        torch.testing.assert_close(model.encode_classes(), plain([["a fox is red"], ["a wolf is grey"]]))


def test_what_cannot_be_used_is_refused(tokenizer_path, tmp_path):
    (tmp_path / "broken.json").write_text("{")
    cases = [
        ({"cat": []}, "a list of at least one sentence for each class. Received: 'cat'"),
        ({"cat": "it purrs"}, "Received: 'cat': 'it purrs'"),
        ({"cat": ["it purrs", " "]}, "Received: 'cat'"),
        ({"cat": {"photo": ["it purrs"]}}, "Received: 'cat'"),
        ({1: ["it purrs"]}, "Received: 1"),
        (["it purrs"], "a dict from each class to its sentences"),
        ({}, "a dict from each class to its sentences"),
        (tmp_path / "broken.json", "Expected JSON in .*broken.json"),
    ]
    for given, match in cases:
        with pytest.raises(ValueError, match=match):
            PromptConfig(class_descriptions=given)
    with pytest.raises(FileNotFoundError):
        PromptConfig(class_descriptions=tmp_path / "none.json")
    with pytest.raises(ClassNamesError, match=r"without a description: dig\. The nearest to 'dig' is 'dog'"):
        PromptConfig(class_names=["cat", "dig"], class_descriptions=DESCRIBED)
    with pytest.raises(ClassNamesError, match="written alike: sea lion, Sea-Lion"):
        PromptConfig(class_names=["SEA LION"], class_descriptions={"sea lion": ["x"], "Sea-Lion": ["y"]})
    with pytest.raises(ValueError, match="descriptions of 6 classes on a model without a text tower"):
        get_peft_model(tiny_vit(), VisualPromptConfig(class_descriptions=DESCRIBED))
    long = ClassHeadConfig(
        class_names=["cat"],
        tokenizer_name_or_path=tokenizer_path,
        class_descriptions={"cat": ["a" * 100]},
        head_init="text",
    )
    with pytest.raises(PromptTooLongError, match="class 'cat'"):
        get_peft_model(tiny_clip(), long)
    lora = get_peft_model(tiny_clip(), LoraConfig(target_modules=["q_proj"], task_type="IMAGE_CLS"))
    with pytest.raises(ValueError, match=r"one of PEFT's own tuners.*template="):
        lora.describe_classes(DESCRIBED)
