"""Fixtures shared by all tests. Nothing reaches the network."""

import os
from pathlib import Path

import pytest
import torch
from models import CLASS_NAMES, CONFIGS, tiny_tokenizer


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and a console keeps the width it finds when it is made
torch.set_num_threads(1)  # the models are so small that waiting for a second thread costs more than it gives


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory) -> str:
    """A folder with the tiny tokenizer."""
    path = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture
def make(tokenizer_path):
    """Build a config of a method's case by name."""

    def build(method, case, **options):
        return CONFIGS[method][case](
            **{"class_names": CLASS_NAMES, "tokenizer_name_or_path": tokenizer_path} | options
        )

    return build


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference outputs and benchmark data, beside the checkout."""
    path = Path(os.environ.get("VPROMPT_SHARED", Path(__file__).parents[2] / "shared"))
    if not path.is_dir():
        pytest.skip("the reference outputs and benchmark data are not beside this checkout")
    return path


@pytest.fixture(autouse=True)
def fixed_seed():
    """The same random prompts in every run, whatever ran before."""
    torch.manual_seed(0)
