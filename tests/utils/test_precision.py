"""What frozen weights are held in."""

import pytest
import torch
from torch import nn

from peft_vprompt.utils import precision
from peft_vprompt.utils.precision import find_precision, find_precisions, hold


CPU = torch.device("cpu")


@pytest.mark.parametrize(("natively", "found"), [(True, "bf16"), (False, "float32")])
def test_auto_is_what_the_machine_computes_in(natively, found, monkeypatch):
    monkeypatch.delenv(precision.AUTO)
    monkeypatch.setattr(precision, "computes_bf16", lambda device: natively)
    assert find_precision("auto", CPU) == found
    monkeypatch.setenv(precision.AUTO, "float32")
    assert find_precision("auto", CPU) == "float32" and find_precision("bf16", CPU) == "bf16"


@pytest.mark.parametrize(("natively", "found"), [(True, ["float32", "bf16"]), (False, ["float32"])])
def test_auto_compares_float32_with_what_the_machine_computes_in(natively, found, monkeypatch):
    monkeypatch.delenv(precision.AUTO)
    monkeypatch.setattr(precision, "computes_bf16", lambda device: natively)
    assert find_precisions("auto", CPU) == found and find_precisions("bf16", CPU) == ["bf16"]


@pytest.mark.parametrize(
    ("flags", "speed_up", "taken"),
    [
        ({"avx512_bf16": True}, 2.9, True),
        ({"amx_bf16": True}, 2.9, True),
        ({"avx512_bf16": True}, 0.5, False),  # has the instructions, and is slower with them
        ({}, 2.9, False),
    ],
)
def test_bf16_of_a_processor(flags, speed_up, taken, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True} | flags, raising=False)
    monkeypatch.setattr(precision, "bf16_speed_up", lambda: speed_up)
    assert precision.computes_bf16(CPU) is taken


def test_a_processor_is_tried_by_the_fastest_of_some_rounds(monkeypatch):
    ticks = iter([0, 4, 4, 6, 6, 26, 26, 28, 28, 32, 32, 35])  # float32: 4, 20, 4; bfloat16: 2, 2, 3
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(ticks))
    assert precision.bf16_speed_up.__wrapped__(rounds=3) == 2


@pytest.mark.parametrize(
    ("name", "match"), [("fp16", "for graphics cards"), ("half", "Expected a precision: auto, float32")]
)
def test_what_is_no_precision_here(name, match):
    with pytest.raises(ValueError, match=match):
        find_precision(name, CPU)


def test_scales_and_batch_norms_stay_exact():
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.LayerNorm(3))
    model.scale = nn.Parameter(torch.tensor(4.6052))
    model.indices = nn.Parameter(torch.arange(3), requires_grad=False)
    hold(model, "bf16")
    assert {name: value.dtype for name, value in model.named_parameters()} == {
        "scale": torch.float32,
        "indices": torch.int64,
        "0.weight": torch.bfloat16,
        "0.bias": torch.bfloat16,
        "1.weight": torch.float32,
        "1.bias": torch.float32,
        "2.weight": torch.bfloat16,
        "2.bias": torch.bfloat16,
    }
    with torch.no_grad():
        assert torch.isfinite(model.eval()[:2](torch.randn(2, 3, 5, 5).bfloat16()).float()).all()
