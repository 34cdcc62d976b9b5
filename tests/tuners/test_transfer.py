"""The ways to transfer that visual prompts are compared with: each is a PEFT adapter, counted, saved, merged, switched."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import (
    CLIPForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from peft_vprompt import (
    AutoPeftModelForImageClassification,
    BiasTuningConfig,
    BottleneckAdapterConfig,
    FineTuningConfig,
    MLPHeadConfig,
    SideTuningConfig,
    VisualPromptConfig,
)
from peft_vprompt.errors import AdapterMismatchError, UnsupportedModelError
from peft_vprompt.experiments.models import METHODS, get_method
from peft_vprompt.tuners.base.registry import BASELINES
from tests.support.finished_runs import run_snippet
from tests.support.models import NUM_LABELS, VISION, images, labels, often, tiny_clip, tiny_vit
from tests.support.published_counts import COUNTS


FINE_TUNING = [name for name, spec in METHODS.items() if spec.is_baseline]
OURS = (BiasTuningConfig, BottleneckAdapterConfig, FineTuningConfig, MLPHeadConfig, SideTuningConfig)
#: What `merge_and_unload` can write into the base model.
MERGEABLE = ("full", "linear", "mlp-3", "partial-1", "bias", "lora")


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def tiny_clip_classifier():
    torch.manual_seed(0)
    clip = tiny_clip()
    clip.config.num_labels = NUM_LABELS
    return CLIPForImageClassification(clip.config).eval()


def learn(model, steps=3):
    """A few steps, so that the adapter differs from its start; with running statistics where there are some."""
    model.train()
    optimizer = torch.optim.SGD(trained(model).values(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        model(pixel_values=images(seed=step), labels=labels(seed=step)).loss.backward()
        optimizer.step()
    return model.eval()


def made(name, base=None):
    base = tiny_vit() if base is None else base
    return get_peft_model(base, METHODS[name].configure(base))


@torch.no_grad()
def logits(model):
    return model(pixel_values=images()).logits


@pytest.mark.parametrize(("row", "count"), COUNTS.items(), ids=str)
def test_published_parameter_counts_on_vit_b16(row, count):
    name, options = row
    with torch.device("meta"):
        vit = ViTForImageClassification(ViTConfig(num_labels=100))
    config = get_method(name).configure(vit, **dict(options))
    model = get_peft_model(vit, config, low_cpu_mem_usage=True)
    assert sum(p.numel() for p in trained(model).values()) == count


@pytest.mark.core
@pytest.mark.parametrize("base", often([tiny_vit, tiny_clip_classifier], [tiny_vit]))
@pytest.mark.parametrize("name", FINE_TUNING)
def test_save_load_switch_off_and_unload(name, base, tmp_path):
    plain = logits(base())
    model = learn(made(name, base()))
    assert not torch.equal(logits(model), plain)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), str(tmp_path)).eval()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)
    lean = PeftModel.from_pretrained(base(), str(tmp_path), is_trainable=True, low_cpu_mem_usage=True).eval()
    torch.testing.assert_close(logits(lean), logits(model), rtol=1e-6, atol=1e-6)
    assert trained(lean).keys() == trained(model).keys()
    if name != "lora":  # PEFT's unload keeps the trained head
        torch.testing.assert_close(logits(model.unload()), plain, rtol=0, atol=0)


@pytest.mark.parametrize("name", FINE_TUNING)
def test_the_adapters_folder_is_enough(name, tmp_path):
    tiny_vit().save_pretrained(tmp_path / "base")
    model = learn(made(name, ViTForImageClassification.from_pretrained(tmp_path / "base")))
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForImageClassification.from_pretrained(str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)


def own(names=FINE_TUNING):
    """Ways to transfer that are not PEFT's own."""
    return [name for name in names if name != "lora"]


@pytest.mark.parametrize("name", own())
def test_a_save_that_breaks_off_leaves_the_old_adapter(name, tmp_path, monkeypatch):
    model = learn(made(name))
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    expected = logits(model)
    learn(model)

    def breaks(*args, **kwargs):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("peft.peft_model.safe_save_file", breaks)
        with pytest.raises(OSError, match="no space left"):
            model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    loaded = PeftModel.from_pretrained(tiny_vit(), str(tmp_path)).eval()
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", own())
def test_an_adapter_that_does_not_fit_is_refused_and_changes_nothing(name, tmp_path):
    made(name).save_pretrained(tmp_path)
    with pytest.raises(AdapterMismatchError, match="does not fit this ViTForImageClassification.*shape"):
        PeftModel.from_pretrained(ViTForImageClassification(ViTConfig(**VISION, num_labels=3)), str(tmp_path))
    model = learn(made(name))
    expected = logits(model)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(AdapterMismatchError, match="Cannot read the adapter weights"):
        model.load_adapter(str(tmp_path), "other")
    assert list(model.peft_config) == ["default"]
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", own())
def test_the_card_has_a_snippet_that_runs(name, tmp_path, monkeypatch):
    """Also where the base model was made for other classes."""
    ViTForImageClassification(ViTConfig(**VISION, num_labels=2)).save_pretrained(tmp_path / "base")
    base = ViTForImageClassification.from_pretrained(
        tmp_path / "base", num_labels=NUM_LABELS, ignore_mismatched_sizes=True
    )
    model = learn(made(name, base))
    model.save_pretrained(tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "Jia et al." in card
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "base")
    scope = run_snippet(card, tmp_path / "adapter", monkeypatch)
    assert len(scope["scores"]) == NUM_LABELS
    torch.testing.assert_close(logits(scope["model"].eval()), logits(model), rtol=0, atol=0)


def test_a_task_type_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="task_type='IMAGE_TRANSFER' or None. Received: task_type='CAUSAL_LM'"):
        BiasTuningConfig(task_type="CAUSAL_LM")


@pytest.mark.parametrize("name", FINE_TUNING)
def test_every_trained_parameter_learns_and_no_other(name):
    model = made(name)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    wanted = trained(model).keys()
    learn(model)
    changed = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    # the softmax does not see a bias on the keys
    silent = {
        key for key in wanted - changed if key.endswith(("k_proj.bias", "k_proj.bias_tuning_modules.default.bias"))
    }
    assert changed <= wanted and wanted - changed <= silent


@pytest.mark.parametrize("name", FINE_TUNING)
def test_merging(name):
    model = learn(made(name))
    expected = logits(model)
    if name in MERGEABLE:
        merged = model.merge_and_unload().eval()
        assert not any("_modules" in key or "lora" in key or "modules_to_save" in key for key in merged.state_dict())
        torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5)
    else:
        with pytest.raises(ValueError, match="cannot be merged"):
            model.merge_and_unload()


@pytest.mark.parametrize("name", [name for name in FINE_TUNING if not name.startswith("vpt")])
def test_two_adapters(name):
    model = learn(made(name))
    first = logits(model)
    model.add_adapter("other", METHODS[name].configure(tiny_vit()))
    model.set_adapter("other")
    learn(model, steps=1)
    assert not torch.equal(logits(model), first)
    model.set_adapter("default")
    torch.testing.assert_close(logits(model), first, rtol=0, atol=0)
    model.delete_adapter("other")
    torch.testing.assert_close(logits(model), first, rtol=0, atol=0)


@pytest.mark.parametrize("name", FINE_TUNING)
def test_the_stock_trainer(name, tmp_path):
    model = made(name)
    rows = [
        {"pixel_values": image, "labels": label} for image, label in zip(images(8), labels(8).tolist(), strict=True)
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_train_epochs=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0


def test_adapters_start_as_the_identity_and_learn():
    base = tiny_vit()
    plain = logits(base)
    model = get_peft_model(base, BottleneckAdapterConfig(reduction_factor=4)).eval()
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=0)
    learn(model, steps=2)
    assert all(p.abs().sum() > 0 for key, p in trained(model).items() if key.endswith("up.weight"))


def test_adapters_that_start_at_zero_never_use_their_matrices():
    model = learn(get_peft_model(tiny_vit(), BottleneckAdapterConfig(init_weights="zero")))
    values = trained(model)
    assert all(p.abs().sum() == 0 for key, p in values.items() if key.endswith((".up.weight", ".down.weight")))
    assert all(p.abs().sum() > 0 for key, p in values.items() if key.endswith(".up.bias"))


def test_side_tuning_blends_the_feature_of_the_head():
    model = made("sidetune").eval()
    layer = model.get_base_model().vit
    part = layer.trained["default"]
    part.alpha.data.fill_(0.7)
    head = model.get_base_model().classifier
    with torch.no_grad():
        frozen = layer.base_layer(images()).last_hidden_state[:, 0]
        side = part.projection(part.network(images()).pooler_output.flatten(1))
        share = torch.sigmoid(torch.tensor(0.7))
        expected = head(share * frozen + (1 - share) * side)
    torch.testing.assert_close(logits(model), expected)


def test_every_registered_config_is_reachable_and_explains_itself():
    configs = {type(METHODS[name].configure(tiny_vit())) for name in FINE_TUNING}
    assert set(OURS) == {method.config_class for method in BASELINES.values()} <= configs
    for config in OURS:
        own = vars(config).get("__annotations__", {})
        assert all(config.__dataclass_fields__[name].metadata.get("help") for name in own)


def test_any_number_of_layers():
    assert get_method("partial-2").title == "Partial-2"
    assert get_method("mlp-5").configure(tiny_vit()).num_layers == 5
    assert set(FINE_TUNING) <= set(METHODS)
    with pytest.raises(ValueError, match="No method 'partial-0'"):
        get_method("partial-0")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: BottleneckAdapterConfig(reduction_factor=0),
            "reduction_factor to be an integer >= 1. Received: .*=0",
        ),
        (lambda: BottleneckAdapterConfig(init_weights="one"), r"init_weights to be one of .* Received: .*='one'"),
        (lambda: get_peft_model(tiny_vit(), BottleneckAdapterConfig(reduction_factor=99)), "reduction_factor <= 24"),
        (lambda: FineTuningConfig(num_layers=-1), "num_layers to be an integer >= 0. Received: num_layers=-1"),
        (lambda: MLPHeadConfig(num_layers=0), "num_layers to be an integer >= 1"),
        (lambda: MLPHeadConfig(dropout=1.0), r"dropout in \[0, 1\). Received: dropout=1.0"),
        (lambda: SideTuningConfig(side_widths=[]), r"at least one stage. Received: side_widths=\[\]"),
        (lambda: SideTuningConfig(side_widths=[8, 0]), "side_widths to be an integer >= 1"),
        (lambda: get_peft_model(tiny_vit(), FineTuningConfig(num_layers=9)), "num_layers <= 3.*num_layers=9"),
    ],
)
def test_values_that_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("base", [tiny_clip, lambda: tiny_vit(bare=True)], ids=["dual encoder", "no head"])
@pytest.mark.parametrize("config", OURS)
def test_models_without_a_head_are_refused(config, base):
    with pytest.raises(UnsupportedModelError, match="AutoModelForImageClassification"):
        get_peft_model(base(), config())


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("config", OURS, ids=lambda config: config.__name__)
def test_a_base_model_in_half_precision(config, dtype):
    model = get_peft_model(tiny_vit().to(dtype), config())
    reference = get_peft_model(tiny_vit(), config())
    reference.load_state_dict(model.state_dict())
    output, expected = model.eval()(pixel_values=images().to(dtype)), reference.eval()(images())
    assert output.logits.dtype == dtype
    torch.testing.assert_close(output.logits.float(), expected.logits, rtol=0.05, atol=0.05)
    model.train()(pixel_values=images().to(dtype), labels=labels()).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained(model).values())


def test_copies_of_different_extent_are_for_models_of_their_own(tmp_path):
    for first, second, match in ((1, None, "replaces single modules"), (None, 1, "replaces the whole encoder")):
        model = get_peft_model(tiny_vit(), FineTuningConfig(num_layers=first))
        expected = model.eval()(images()).logits
        with pytest.raises(UnsupportedModelError, match=f"{match}.*models of their own"):
            model.add_adapter("other", FineTuningConfig(num_layers=second))
        assert torch.equal(model(images()).logits, expected)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(tiny_vit(), str(tmp_path)).eval()
        assert torch.equal(again(images()).logits, expected)


@pytest.mark.parametrize("config", [VisualPromptConfig, *OURS], ids=lambda config: config.__name__)
def test_a_config_serves_models_of_any_depth(config, tmp_path):
    given = config()
    before = given.to_dict()
    model = get_peft_model(tiny_vit(), given)
    model.save_pretrained(tmp_path)
    model.unload().add_adapter(given, "by_transformers")
    assert given.to_dict() | {"base_model_name_or_path": None} == before

    deeper = ViTForImageClassification(ViTConfig(**VISION | {"num_hidden_layers": 4}, num_labels=NUM_LABELS))
    expected = get_peft_model(copy.deepcopy(deeper), config())
    assert trained(get_peft_model(deeper, given)).keys() == trained(expected).keys()
