"""What others do with the model: pipelines, the Hub, PEFT's own reports, imports in any order."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel, get_peft_model
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor, pipeline

from peft_vprompt import AutoPeftModelForImageClassification, ContextOptConfig, MaPLeConfig, VisualPromptConfig
from peft_vprompt.tuners.base.registry import PROMPT_METHODS
from tests.support.models import CLASS_NAMES, CONFIGS, images, logits, tiny_clip, tiny_tokenizer, tiny_vit


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


def test_push_to_hub_uploads_an_adapter(maple, monkeypatch):
    uploaded = {}

    def upload(self, working_dir, *args, **kwargs):
        uploaded.update({path.name: path.stat().st_size for path in Path(working_dir).iterdir()})

    hub = SimpleNamespace(create_repo=lambda repo_id, **kwargs: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: hub)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *a, **k: ModelCard("---\n---\n"))
    monkeypatch.setattr(type(maple), "_upload_modified_files", upload)
    maple.push_to_hub("me/adapter")
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(uploaded)
    assert uploaded["adapter_model.safetensors"] < 20_000


def test_pefts_reports(maple):
    status = maple.get_model_status()
    assert status.adapter_model_type == "MaPLeModel" and status.active_adapters == ["default"]
    assert status.enabled and status.merged_adapters == []
    assert status.trainable_params == sum(p.numel() for p in maple.parameters() if p.requires_grad)
    assert {layer.name for layer in maple.get_layer_status()} == {"model.text_model", "model.vision_model"}
    with maple.disable_adapter():
        assert not maple.get_model_status().enabled


@pytest.mark.parametrize(
    "imports",
    ["import peft, peft_vprompt", "import peft_vprompt, peft", "import transformers, peft_vprompt, peft.auto"],
)
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
