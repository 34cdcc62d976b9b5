"""Files that cannot be read back are found, whatever is wrong with them."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from peft_vprompt.utils.readable import unreadable_files


@pytest.fixture
def folder(tmp_path):
    save_file({"a": torch.ones(300), "b": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "inner").mkdir()
    torch.save(
        {"state": torch.ones(300), "random": np.random.default_rng(0).bytes(5)}, tmp_path / "inner/optimizer.pt"
    )
    (tmp_path / "trainer_state.json").write_text('{"global_step": 3}')
    save_file({"log_total": torch.tensor(-torch.inf)}, tmp_path / "weight_average.safetensors")
    (tmp_path / "README.md").write_bytes(b"\xff")
    return tmp_path


def test_whole_files(folder):
    assert unreadable_files(folder) == []


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "inner/optimizer.pt", "trainer_state.json"])
@pytest.mark.parametrize("share", [0, 0.5, 0.98])
def test_cut_off(name, share, folder):
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    (problem,) = unreadable_files(folder)
    assert problem.startswith(f"{name}: ")


def test_a_flipped_bit(folder):
    path = folder / "inner/optimizer.pt"
    content = bytearray(path.read_bytes())
    content[content.index(np.ones(8, np.float32).tobytes())] ^= 1
    path.write_bytes(content)
    assert "is damaged" in unreadable_files(folder)[0]


def test_values_that_are_not_finite(folder):
    save_file({"a": torch.tensor([1.0, float("nan")]), "b": torch.ones(2)}, folder / "adapter_model.safetensors")
    assert unreadable_files(folder) == ["adapter_model.safetensors: values that are not finite in ['a']"]
