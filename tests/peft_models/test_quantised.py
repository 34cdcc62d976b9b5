"""Every row of the method table on base models whose weights bitsandbytes holds in 8 or 4 bits."""

import copy

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import (
    BitsAndBytesConfig,
    CLIPConfig,
    CLIPModel,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from peft_vprompt.errors import UnsupportedModelError
from tests.support.models import CLASS_NAMES, NUM_LABELS, TEXT, VISION, VOCABULARY_SIZE, images, labels, tiny_tokenizer
from tests.support.peft_behaviours import ROWS, made
from tests.support.rows import every_row


bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

BITS = {
    8: {"load_in_8bit": True},
    4: {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32},
}
#: Sizes of which bitsandbytes has products in 4 bits.
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
#: Rows that train copies of the encoder's own weights.
COPIES = ["tenc-ft", "full", "partial-1"]


@pytest.fixture(params=every_row(ROWS))
def row(request):
    return request.param


def plain_base(row) -> PreTrainedModel:
    torch.manual_seed(0)
    if ROWS[row] == "CLIPModel":
        text = TEXT | WIDE | {"vocab_size": VOCABULARY_SIZE, "eos_token_id": VOCABULARY_SIZE - 1}
        return CLIPModel(CLIPConfig(text_config=text, vision_config=VISION | WIDE, projection_dim=64))
    config = ViTConfig(**(VISION | WIDE), num_labels=NUM_LABELS)
    return ViTModel(config) if ROWS[row] == "ViTModel" else ViTForImageClassification(config)


def quantised(row, folder, bits, skip=("classifier",)):
    """The row's small base model in so few bits; a head is left as it is."""
    base = plain_base(row)
    base.save_pretrained(folder)
    quantisation = BitsAndBytesConfig(**BITS[bits], llm_int8_skip_modules=list(skip))
    return type(base).from_pretrained(folder, quantization_config=quantisation)


def answer(model):
    with torch.no_grad():
        output = model.eval()(pixel_values=images())
    return output.logits if "logits" in output else output.pooler_output


def in_floats(model):
    """A copy of a model in 4 bits, of the same values in float32."""
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            linear.weight.data = weight.float()
            linear.bias = module.bias
            plain.set_submodule(name, linear)
    return plain


@pytest.mark.parametrize("bits", BITS)
def test_trains_saves_and_loads_or_is_refused(row, bits, tokenizer_path, tmp_path):
    base = quantised(row, tmp_path / "base", bits)
    if row in COPIES:
        with pytest.raises(UnsupportedModelError, match="quantised model. Load the model without quantization_config"):
            made(row, tokenizer_path, base=base)
        return
    model = made(row, tokenizer_path, base=base).train()
    output = model(pixel_values=images(), **({} if row == "vpt-on-encoder" else {"labels": labels()}))
    (output.pooler_output.sum() if row == "vpt-on-encoder" else output.loss).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert gradients and all(g is not None and g.isfinite().all() and g.any() for g in gradients.values())
    expected = answer(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(quantised(row, tmp_path / "base", bits), str(tmp_path / "adapter"))
    if row == "lora-on-class-names":
        loaded.set_class_names(CLASS_NAMES, tokenizer=tiny_tokenizer())
    torch.testing.assert_close(answer(loaded), expected, rtol=0, atol=0)


def test_outputs_are_those_of_the_same_weights_in_floats(row, tokenizer_path, tmp_path):
    if row in COPIES:
        pytest.skip("refused")
    base = quantised(row, tmp_path, 4)
    outputs, learned = [], {}
    for each in (base, in_floats(base)):
        torch.manual_seed(1)
        model = made(row, tokenizer_path, base=each).train()
        # What starts from class features: these are made in evaluation mode, in which bitsandbytes rounds products further.
        model.load_state_dict(learned, strict=False)
        learned = {name: tensor for name, tensor in model.state_dict().items() if ".default" in name}
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        output = model(pixel_values=images())
        outputs.append(output.logits if "logits" in output else output.pooler_output)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("row", ["vpt-deep", "adapter", "linear"])
@pytest.mark.parametrize("bits", BITS)
def test_a_head_in_few_bits_is_refused_with_the_remedy(row, bits, tokenizer_path, tmp_path):
    base = quantised(row, tmp_path, bits, skip=["vit.layernorm"])
    with pytest.raises(
        UnsupportedModelError, match=r"Received (classifier\.)?weight in torch\.u?int8.*llm_int8_skip_modules"
    ):
        made(row, tokenizer_path, base=base)
