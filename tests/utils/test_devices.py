"""Where models compute: the Trainer's choice, one by name, and names that this machine does not have."""

import pytest
import torch
from transformers import TrainingArguments

from peft_vprompt.utils import devices
from peft_vprompt.utils.devices import find_device


@pytest.fixture
def machine(monkeypatch):
    """A machine that has these devices beside its CPU."""

    def have(*others: str) -> None:
        cuda = sum(name.startswith("cuda") for name in others)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in others)
        monkeypatch.setattr(torch.xpu, "is_available", lambda: False)

    return have


def test_the_trainers_choice_is_the_default(tmp_path):
    assert find_device() == find_device("auto") == TrainingArguments(str(tmp_path), report_to="none").device


@pytest.mark.parametrize(
    ("has", "name", "found"),
    [
        ((), "auto", "cpu"),
        ((), "cpu", "cpu"),
        (("cuda:0", "cuda:1"), None, "cuda:0"),
        (("cuda:0", "cuda:1"), "cuda", "cuda:0"),
        (("cuda:0", "cuda:1"), "cuda:1", "cuda:1"),
        (("cuda:0",), "cpu", "cpu"),
        (("mps",), "auto", "mps"),
        (("mps",), "mps", "mps"),
    ],
)
def test_devices_by_name(has, name, found, machine, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    machine(*has)
    assert find_device(name) == torch.device(found)


def test_each_process_has_its_own(machine, monkeypatch):
    machine("cuda:0", "cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert find_device() == torch.device("cuda:1")


@pytest.mark.parametrize("name", ["cuda:2", "mps", "meta", "gpu", "", "cuda:-1", "cpu:1"])
def test_devices_that_are_not_there(name, machine):
    machine("cuda:0", "cuda:1")
    with pytest.raises(ValueError, match="auto, cuda:0, cuda:1, cpu. Received: '"):
        find_device(name)
    assert devices.available_devices() == ["cuda:0", "cuda:1", "cpu"]
