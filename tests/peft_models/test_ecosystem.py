"""What others do with the model: pipelines, the Hub, PEFT's own reports, imports in any order."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor, ViTForImageClassification, pipeline

from peft_vprompt import (
    AutoPeftModelForImageClassification,
    BottleneckAdapterConfig,
    ContextOptConfig,
    FineTuningConfig,
    MaPLeConfig,
    VisualPromptConfig,
)
from peft_vprompt.data.images import to_rgb
from peft_vprompt.tuners.base.registry import PROMPT_METHODS
from tests.support.models import (
    CLASS_NAMES,
    CONFIGS,
    disturb,
    images,
    logits,
    often,
    tiny_clip,
    tiny_tokenizer,
    tiny_vit,
)
from tests.support.peft_behaviours import save_row


@pytest.fixture
def maple(tokenizer_path):
    config = MaPLeConfig(prompt_depth=2, class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path)
    return get_peft_model(tiny_clip(), config).eval()


def image_processor():
    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def test_a_pipeline_sees_the_prompts(maple):
    picture = Image.fromarray((np.random.default_rng(0).random((32, 32, 3)) * 255).astype(np.uint8))
    run = pipeline(
        "zero-shot-image-classification",
        model=maple.get_base_model(),
        tokenizer=tiny_tokenizer(),
        image_processor=image_processor(),
        device="cpu",
    )
    scores = run(picture, candidate_labels=CLASS_NAMES, hypothesis_template="a photo of a {}.")
    pixel_values = image_processor()(picture, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = maple(pixel_values=pixel_values).logits.softmax(-1)[0]
    for score in scores:
        assert score["score"] == pytest.approx(float(expected[CLASS_NAMES.index(score["label"])]), abs=1e-5)


def test_a_processor_batch_is_taken_as_it_is(maple):
    processor = CLIPProcessor(image_processor(), tiny_tokenizer())
    picture = Image.new("RGB", (40, 32), "red")
    batch = processor(text=["a photo of a cat."], images=picture, return_tensors="pt", padding=True)
    assert maple(**batch).logits_per_image.shape == (1, 1)


def test_pefts_reports(maple):
    status = maple.get_model_status()
    assert status.adapter_model_type == "MaPLeModel" and status.active_adapters == ["default"]
    assert status.enabled and status.merged_adapters == []
    assert status.trainable_params == sum(p.numel() for p in maple.parameters() if p.requires_grad)
    assert {layer.name for layer in maple.get_layer_status()} == {"model.text_model", "model.vision_model"}
    with maple.disable_adapter():
        assert not maple.get_model_status().enabled


IMPORTS = ["import peft_vprompt, peft", "import peft, peft_vprompt", "import transformers, peft_vprompt, peft.auto"]


@pytest.mark.parametrize("imports", often(IMPORTS, IMPORTS[:1]))
def test_imports_in_any_order_and_twice(imports):
    code = f"""
{imports}
import importlib, sys
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
for name in [name for name in sys.modules if name.startswith("peft_vprompt")]:
    del sys.modules[name]
import peft_vprompt
from peft.utils import PeftType
assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.MAPLE] is peft_vprompt.MaPLeConfig
assert list(PeftType).count("MAPLE") == 1
peft_vprompt.MaPLeConfig(class_names=["a"])
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_adapters_reload_bit_identically_in_a_new_process(tokenizer_path, tmp_path):
    torch.manual_seed(5)
    expected = {}
    for method, cases in CONFIGS.items():
        build = next(iter(cases.values()))
        model = get_peft_model(tiny_clip(), build(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path))
        with torch.no_grad():
            expected[method] = model.eval()(pixel_values=images()).logits
        model.save_pretrained(tmp_path / method)
    torch.save(expected, tmp_path / "expected.pt")
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import torch
torch.set_num_threads(1)
from tests.support.models import images, tiny_clip
from peft import PeftModel
import peft_vprompt
expected = torch.load({str(tmp_path / "expected.pt")!r})
for method, logits in expected.items():
    model = PeftModel.from_pretrained(tiny_clip(), {str(tmp_path)!r} + "/" + method)
    with torch.no_grad():
        assert torch.equal(model(pixel_values=images()).logits, logits), method
print(len(expected))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip() == str(len(PROMPT_METHODS))


def test_output_flags_of_transformers():
    for base in (tiny_vit(), tiny_clip(attn_implementation="eager")):
        model = get_peft_model(base, VisualPromptConfig(num_virtual_tokens=3, deep=True)).eval()
        tower = model.base_model.vision_encoder
        base.set_attn_implementation("eager")
        output = tower(images(2), output_hidden_states=True, output_attentions=True)
        assert len(output.hidden_states) == 4 and output.hidden_states[0].shape == (2, 20, 24)
        assert [weights.shape for weights in output.attentions] == [(2, 2, 20, 20)] * 3
        assert isinstance(tower(images(2), return_dict=False), tuple)


def test_a_second_adapter_knows_the_tokenizer_that_was_handed_over():
    model = get_peft_model(tiny_clip(), CONFIGS["context_opt"]["end"]()).eval()
    model.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer())
    model.add_adapter("other", CONFIGS["maple"]["maple"](class_names=CLASS_NAMES))
    model.set_adapter("other")
    assert model(pixel_values=images()).logits.shape == (4, 5)
    assert isinstance(model, PeftModel)


def test_a_tokenizer_beside_the_adapter(tokenizer_path, tmp_path):
    tiny_clip().save_pretrained(tmp_path / "base")
    config = ContextOptConfig(num_virtual_tokens=4, class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path)
    model = get_peft_model(CLIPModel.from_pretrained(tmp_path / "base"), config).eval()
    model.save_pretrained(tmp_path / "adapter")
    tiny_tokenizer().save_pretrained(tmp_path / "adapter")  # as Trainer(processing_class=...) does
    loaded = AutoPeftModelForImageClassification.from_pretrained(str(tmp_path / "adapter"))
    assert torch.equal(logits(loaded), logits(model))


def test_the_card_is_of_the_adapter_that_lies_there(tokenizer_path, tmp_path):
    names = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": tokenizer_path}
    for config in (ContextOptConfig(**names), MaPLeConfig(prompt_depth=2, **names)):
        get_peft_model(tiny_clip(), config).save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    assert "MaPLe adapter" in card.read_text() and "CoOp" not in card.read_text()
    assert {"peft_vprompt", "prompt-learning"} <= set(ModelCard.load(card).data.tags)
    card.write_text(card.read_text().replace("MaPLe adapter", "My adapter"))
    get_peft_model(tiny_clip(), ContextOptConfig(**names)).save_pretrained(tmp_path)
    assert "My adapter" in card.read_text() and "CoOp" not in card.read_text()


def picture() -> Image.Image:
    return Image.fromarray((np.random.default_rng(0).random((32, 32, 3)) * 255).astype(np.uint8))


def zero_shot(model):
    processor = image_processor()
    options = {"model": model, "tokenizer": tiny_tokenizer(), "image_processor": processor, "device": "cpu"}
    run = pipeline("zero-shot-image-classification", **options)
    return run, processor(picture(), return_tensors="pt").pixel_values


@pytest.mark.parametrize(
    "case", [("context_opt", "middle"), ("maple", "maple"), ("cocoop", "words"), ("mrpo", "replace")]
)
def test_a_learned_context_decides_the_text(case, make):
    """Whatever template is asked for, and for other names than the adapter's classes, which it keeps."""
    method, name = case
    model = get_peft_model(tiny_clip(), make(method, name)).eval()
    run, pixel_values = zero_shot(model)
    names = ["fox", "wolf pack"]
    model.set_class_names(names)
    with torch.no_grad():
        expected = model(pixel_values=pixel_values).logits.softmax(-1)[0].tolist()
    model.set_class_names(CLASS_NAMES)
    with pytest.warns(UserWarning, match="hypothesis_template='a drawing of a {}' is ignored"):
        scores = run(picture(), candidate_labels=names, hypothesis_template="a drawing of a {}")
    assert {s["label"]: s["score"] for s in scores} == pytest.approx(dict(zip(names, expected, strict=True)), abs=1e-5)
    assert run(picture(), candidate_labels=names) == scores and model.class_names == CLASS_NAMES


@pytest.mark.parametrize("method", ["kgcoop", "prograd"])
def test_words_that_the_context_did_not_take_stand_before_the_name(method, make):
    """Of words that are several tokens each, a context takes as many tokens as there are words."""
    model = disturb(get_peft_model(tiny_clip(), make(method, "words")))
    base, pixel_values = zero_shot(model.get_base_model())
    with pytest.warns(UserWarning, match="is ignored"):
        scores = base(picture(), candidate_labels=CLASS_NAMES, hypothesis_template="a photo of a {}.")
    with torch.no_grad():
        expected = model(pixel_values=pixel_values).logits.softmax(-1)[0].tolist()
    found = {score["label"]: score["score"] for score in scores}
    assert found == pytest.approx(dict(zip(CLASS_NAMES, expected, strict=True)), abs=1e-5)


def test_a_template_is_the_users_where_the_text_side_learns_nothing(make):
    model = get_peft_model(tiny_clip(), make("visual_prompt", "deep")).eval()
    run, _ = zero_shot(model)
    first, second = (
        run(picture(), candidate_labels=CLASS_NAMES, hypothesis_template=t) for t in ("a {}.", "a drawing of a {}.")
    )
    assert first != second


def test_the_image_classification_pipeline_names_the_classes(maple, caplog):
    base = maple.get_base_model()
    run = pipeline("image-classification", model=maple, image_processor=image_processor(), device="cpu")
    assert {row["label"] for row in run(picture())} == set(CLASS_NAMES)
    maple.set_class_names(["fox", "wolf"])
    assert {row["label"] for row in run(picture())} == {"fox", "wolf"}
    assert "is not supported" not in caplog.text
    plain = tiny_clip().config
    unloaded = maple.unload()
    assert unloaded is base and unloaded.config.id2label == plain.id2label


@pytest.mark.parametrize("task", ["image-classification", "zero-shot-image-classification"])
def test_pipelines_read_images_as_a_training_does(task, maple, tmp_path):
    """From a file and from memory: 16 bits, and transparent parts; models without our adapters as ever."""
    parts = {"image_processor": image_processor(), "tokenizer": tiny_tokenizer(), "device": "cpu"}
    names = {"candidate_labels": CLASS_NAMES} if task.startswith("zero") else {}
    run = pipeline(task, model=maple, **parts)
    plain = pipeline("zero-shot-image-classification", model=tiny_clip(), **parts)
    grey = np.arange(32 * 32).reshape(32, 32)
    deep = Image.fromarray((grey * 63).astype(np.uint16))
    clear = Image.merge("RGBA", [*picture().split(), Image.fromarray((grey % 256).astype(np.uint8))])
    for number, image in enumerate((deep, clear)):
        expected = run(to_rgb(image), **names)
        assert expected != run(image.convert("RGB"), **names)
        image.save(path := str(tmp_path / f"{number}.png"))
        assert run(image, **names) == run(path, **names) == expected
        cut = plain(image.convert("RGB"), candidate_labels=CLASS_NAMES)
        assert plain(image, candidate_labels=CLASS_NAMES) == cut


@pytest.mark.parametrize("row", ["coop", "vpt-deep", "linear"])
def test_pipelines_take_the_folder_of_an_adapter(row, clip_path, vit_path, tokenizer_path, tmp_path, caplog):
    """As the model that PEFT makes of it: neither a new head nor a model without class names."""
    folder = save_row(tmp_path / "adapter", row, clip_path if row == "coop" else vit_path, tokenizer_path)
    model = AutoPeftModelForImageClassification.from_pretrained(folder).eval()
    run = pipeline("image-classification", model=folder, device="cpu")
    pixels = run.image_processor(picture(), return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = model(pixel_values=pixels).logits.softmax(-1)[0].tolist()
    names = model.get_base_model().config.id2label
    found = {answer["label"]: answer["score"] for answer in run(picture(), top_k=5)}
    assert found == pytest.approx({names[index]: value for index, value in enumerate(expected)}, abs=1e-5)
    if row == "coop":
        zero_shot = pipeline("zero-shot-image-classification", model=folder, device="cpu")
        answers = {a["label"]: a["score"] for a in zero_shot(picture(), candidate_labels=CLASS_NAMES)}
        assert answers == pytest.approx(found, abs=1e-5)
    assert "is not supported" not in caplog.text and "newly initialized" not in caplog.text


def test_pipelines_say_so_where_an_adapter_names_no_base_model(maple, tmp_path):
    maple.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not say where its base model is"):
        pipeline("image-classification", model=str(tmp_path), device="cpu")


def test_labels_follow_the_adapter_and_leave_other_models_alone(make):
    shared = tiny_clip().config
    models = [get_peft_model(CLIPModel(shared), make("context_opt", "end")) for _ in range(2)]
    models[0].add_adapter("other", make("maple", "maple", class_names=["fox"]))
    models[0].set_adapter("other")
    assert models[0].config.id2label == {0: "fox"} and models[0].config.num_labels == 1
    assert list(models[1].config.id2label.values()) == CLASS_NAMES
    assert "fox" not in shared.id2label.values()


@pytest.mark.parametrize("config", [VisualPromptConfig, BottleneckAdapterConfig, FineTuningConfig])
def test_a_heads_classes_come_back(config, tmp_path):
    tiny_vit().save_pretrained(tmp_path / "base")
    names = {index: f"class {index}" for index in range(7)}
    options = {"num_labels": 7, "ignore_mismatched_sizes": True}
    base = ViTForImageClassification.from_pretrained(tmp_path / "base", id2label=names, **options)
    model = get_peft_model(base, config()).eval()
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForImageClassification.from_pretrained(str(tmp_path / "adapter"))
    assert loaded.config.id2label == names and loaded.config.label2id == {name: i for i, name in names.items()}
    assert torch.equal(logits(loaded), logits(model))
    assert "class 3" in (tmp_path / "adapter/README.md").read_text()
    others = {index: f"kind {index}" for index in range(7)}
    named = AutoPeftModelForImageClassification.from_pretrained(str(tmp_path / "adapter"), id2label=others)
    assert named.config.id2label == others and named.config.label2id["kind 3"] == 3
    assert torch.equal(logits(named), logits(model))
    unnamed = ViTForImageClassification.from_pretrained(tmp_path / "base", **options)
    again = PeftModel.from_pretrained(unnamed, str(tmp_path / "adapter"))
    assert again.config.id2label == names
    assert again.unload().config.id2label[0] == "LABEL_0"


@pytest.mark.parametrize("ours", [True, False], ids=["our model", "PEFT's own"])
def test_a_head_beside_a_lora_comes_back(ours, tmp_path):
    tiny_vit().save_pretrained(tmp_path / "base")
    options = {"num_labels": 7, "ignore_mismatched_sizes": True, "id2label": {n: f"class {n}" for n in range(7)}}
    config = {"target_modules": ["q_proj"], "modules_to_save": ["classifier"], "init_lora_weights": False}
    base = ViTForImageClassification.from_pretrained(tmp_path / "base", **options)
    model = get_peft_model(base, LoraConfig(task_type="IMAGE_CLS" if ours else None, **config)).eval()
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForImageClassification.from_pretrained(str(tmp_path / "adapter")).eval()
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.get_base_model().config.id2label[3] == ("class 3" if ours else "LABEL_3")
    path = tmp_path / "adapter/adapter_config.json"
    config = json.loads(path.read_text())
    config["auto_mapping"]["id2label"] = {"x": "a", "1": "b"}  # a stranger's, which are no names of these classes
    path.write_text(json.dumps(config))
    loaded = AutoPeftModelForImageClassification.from_pretrained(str(tmp_path / "adapter")).eval()
    assert torch.equal(logits(loaded), logits(model)) and loaded.get_base_model().config.num_labels == 7


def test_a_lora_on_class_names_is_saved_with_them(tokenizer_path, tmp_path):
    config = LoraConfig(task_type="IMAGE_CLS", target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(tiny_clip(), config).eval()
    model.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer(), template="a drawing of a {}.")
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "import peft_vprompt" in card and CLASS_NAMES[1] in card
    loaded = PeftModel.from_pretrained(tiny_clip(), str(tmp_path))
    assert loaded.class_names == CLASS_NAMES
    loaded.base_model.model.config._name_or_path = tokenizer_path
    assert torch.equal(logits(loaded), logits(model))
    with pytest.raises(ValueError, match="config of adapter 'default' has one"):
        get_peft_model(tiny_clip(), VisualPromptConfig()).set_class_names(["a"], template="{}")


def test_what_is_trained_beside_an_adapter_is_not_lost(make, tmp_path):
    base = inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), tiny_clip())
    model = get_peft_model(base, make("maple", "maple"))
    model.save_pretrained(tmp_path / "frozen")
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_()
    with pytest.raises(ValueError, match=r"12 others, which are not saved.*lora_A.*requires_grad_\(False\)"):
        model.save_pretrained(tmp_path / "trained")
    assert not (tmp_path / "trained").exists()
