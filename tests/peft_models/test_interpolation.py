"""`model.interpolate`: weights between the frozen model's and an adapter's."""

import pytest
import torch
from peft import LNTuningConfig, LoraConfig, get_peft_model
from peft.utils.other import ModulesToSaveWrapper

from peft_vprompt import CLAPConfig, ClassHeadConfig, ContextOptConfig, TextEncoderConfig, VisualPromptConfig
from tests.support.models import CLASS_NAMES, disturb, images, logits, tiny_clip, tiny_tokenizer, tiny_vit


CLOSE = {"rtol": 0, "atol": 2e-5}

#: A config, without class names, of each kind that has a counterpart in the frozen model.
CONFIGS = {
    "head": lambda **kw: ClassHeadConfig(**kw),
    "head-text": lambda **kw: ClassHeadConfig(head_init="text", **kw),
    "prototypes": lambda **kw: CLAPConfig(constraint="none", **kw),
    "text-encoder": lambda **kw: TextEncoderConfig(**kw),
    "lora": lambda **kw: LoraConfig(
        task_type="IMAGE_CLS", target_modules=["q_proj", "fc1"], modules_to_save=["visual_projection"]
    ),
    "norms": lambda **kw: LNTuningConfig(task_type="IMAGE_CLS", target_modules=["layer_norm1", "layer_norm2"]),
}


def build(config, tokenizer):
    model = get_peft_model(tiny_clip(), config(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer))
    if model.class_names is None:
        model.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer())
    return disturb(model)


@pytest.fixture(params=CONFIGS)
def model(request, tokenizer_path):
    return build(CONFIGS[request.param], tokenizer_path)


def effective(model):
    """The weights with which a model computes: those of the frozen model and what is learned, as one dictionary."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            (adapter,) = module.active_adapters
            found[name] = module.get_base_layer().weight + module.get_delta_weight(adapter)
        elif hasattr(module, "ln_tuning_layers"):
            found[name] = module.ln_tuning_layers[module.active_adapters[0]].weight
        elif isinstance(module, ModulesToSaveWrapper):
            copy = module.modules_to_save[module.active_adapters[0]]
            found |= {f"{name}.{key}": value for key, value in copy.named_parameters()}
    return {name: value.detach().clone() for name, value in found.items()}


def original(model):
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") or hasattr(module, "ln_tuning_layers"):
            found[name] = module.get_base_layer().weight
        elif isinstance(module, ModulesToSaveWrapper):
            found |= {f"{name}.{key}": value for key, value in module.original_module.named_parameters()}
    return {name: value.detach().clone() for name, value in found.items()}


def test_the_ends(model):
    learned = logits(model)
    with model.disable_adapter():
        frozen = logits(model)
    model.interpolate(1)
    torch.testing.assert_close(logits(model), learned, **CLOSE)
    model.set_class_names(CLASS_NAMES[::-1])
    model.interpolate(0.0, "frozen")
    torch.testing.assert_close(logits(model), learned.flip(1), **CLOSE)
    model.set_adapter("frozen")
    if model.class_names is None:
        model.set_class_names(CLASS_NAMES)
    torch.testing.assert_close(logits(model), frozen, **CLOSE)


def test_between_the_ends(model):
    learned, frozen = effective(model), original(model)
    before = logits(model)
    with model.disable_adapter():
        plain = logits(model)
    model.interpolate(0.25)
    if learned:
        expected = {name: 0.25 * learned[name] + 0.75 * frozen[name] for name in learned}
        torch.testing.assert_close(effective(model), expected)
        assert not torch.allclose(logits(model), before)
    elif "CLASS_HEAD" in str(model.peft_type):  # rows of a linear head are mixed as their logits are
        torch.testing.assert_close(logits(model), 0.25 * before + 0.75 * plain, **CLOSE)


def test_prototypes_are_mixed_with_their_start(tokenizer_path):
    model = build(CONFIGS["prototypes"], tokenizer_path)
    (rows,) = (p for p in model.parameters() if p.requires_grad)
    start = model.class_name_classifier.adapted.readout.start
    expected = (0.5 * rows + 0.5 * start).detach()
    model.interpolate(0.5)
    torch.testing.assert_close(rows.detach(), expected, **CLOSE)
    assert rows.requires_grad


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda **kw: ContextOptConfig(num_virtual_tokens=2, **kw), "CONTEXT_OPT with .*tokens, which has none"),
        (lambda **kw: VisualPromptConfig(num_virtual_tokens=2, **kw), "VISUAL_PROMPT with .*average the logits"),
        (
            lambda **kw: LoraConfig(task_type="IMAGE_CLS", target_modules=["q_proj"], use_dora=True),
            "Received: use_dora=True",
        ),
        (
            lambda **kw: LoraConfig(task_type="IMAGE_CLS", target_modules=["q_proj"], bias="lora_only"),
            "Received: bias='lora_only'",
        ),
        (
            lambda **kw: LoraConfig(task_type="IMAGE_CLS", target_modules=["q_proj"], init_lora_weights="olora"),
            "Received: init_lora_weights='olora'",
        ),
    ],
)
def test_what_has_no_counterpart(config, message, tokenizer_path):
    model = build(config, tokenizer_path)
    before = logits(model)
    with pytest.raises(ValueError, match=message):
        model.interpolate(0.5)
    assert torch.equal(logits(model), before)


def test_what_is_refused_else(tokenizer_path):
    model = build(CONFIGS["head"], tokenizer_path)
    for share in (-0.1, 1.1, True, "half"):
        with pytest.raises(ValueError, match="Expected a share from 0"):
            model.interpolate(share)
    with pytest.raises(ValueError, match="name of a new adapter.*Received: 'default'"):
        model.interpolate(0.5, "default")
    assert list(model.peft_config) == ["default"]
    vit = get_peft_model(tiny_vit(), VisualPromptConfig(num_virtual_tokens=2))
    with pytest.raises(ValueError, match="Received: ViTForImageClassification, whose classification head is new"):
        vit.interpolate(0.5)
    assert vit(pixel_values=images()).logits.shape == (4, 5)
