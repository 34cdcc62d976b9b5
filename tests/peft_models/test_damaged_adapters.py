"""Damaged adapter folders: each loads as it was saved, or is refused by name, at once and without memory. Seeds are fixed."""

import json
import resource
import shutil
import time
import warnings

import numpy as np
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from peft import LoraConfig, PeftModel, get_peft_model

from peft_vprompt import MaPLeConfig, MLPHeadConfig, VisualPromptConfig
from peft_vprompt.errors import AdapterMismatchError
from peft_vprompt.experiments.models import adapter_config
from peft_vprompt.experiments.teacher import load_teacher
from tests.support.damage import KINDS
from tests.support.models import CLASS_NAMES, images, tiny_clip, tiny_tokenizer, tiny_vit


SEEDS = 12
#: Most that one folder may take: seconds of the processor's time, and bytes.
SECONDS, MEMORY = 2, 200 * 2**20


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Saved adapters, the models they are for, and their answers."""
    folder = tmp_path_factory.mktemp("adapters")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    texts = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": str(folder / "tokenizer")}
    made = []
    for build, config in (
        (tiny_clip, MaPLeConfig(prompt_depth=2, **texts)),
        (tiny_vit, MLPHeadConfig(num_layers=2)),
        (tiny_clip, VisualPromptConfig(location="pad", **texts)),
    ):
        model = get_peft_model(build(), config).eval()
        model.save_pretrained(folder / type(config).__name__)
        made.append((folder / type(config).__name__, build(), model(pixel_values=images()).logits))
    return made


def test_there_are_three_hundred_folders():
    assert len(KINDS) * SEEDS >= 300


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_folder_loads_as_it_was_or_is_refused(kind, adapters, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in range(SEEDS):
        source, base, expected = adapters[seed % len(adapters)]
        shutil.rmtree("damaged", ignore_errors=True)
        shutil.copytree(source, "damaged")
        KINDS[kind](tmp_path / "damaged", np.random.default_rng(seed))
        before = {name: value.clone() for name, value in base.state_dict().items()}
        seconds, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT and our own code warn of what they leave out
            try:
                loaded = PeftModel.from_pretrained(base, "damaged").eval()
            except (ValueError, TypeError) as refused:
                assert "\x1b" not in str(refused) and len(str(refused)) < 5000
            else:
                try:
                    answer = loaded(pixel_values=images()).logits
                    assert torch.equal(answer, expected), f"seed {seed} loads as something else"
                except ValueError:
                    pass  # what only a call needs, such as a tokenizer, is refused then
                base = loaded.unload()
        assert time.process_time() - seconds < SECONDS, f"seed {seed}"
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024 < MEMORY, f"seed {seed}"
        assert {name: value.shape for name, value in base.state_dict().items()} == {
            name: value.shape for name, value in before.items()
        }, f"seed {seed} leaves something in the base model"
    assert {path.name for path in tmp_path.iterdir()} <= {"damaged"}


@pytest.mark.parametrize("kind", ["no_object", "lists_in_lists", "config_is_cut", "missing_fields"])
def test_the_config_of_a_damaged_folder_is_named(kind, adapters, tmp_path):
    for seed in range(4):
        shutil.copytree(adapters[0][0], tmp_path / str(seed))
        KINDS[kind](tmp_path / str(seed), np.random.default_rng(seed))
        try:
            adapter_config(tmp_path / str(seed))
        except (ValueError, TypeError) as refused:
            assert str(seed) in str(refused)


@pytest.mark.parametrize("mapping", ["x", ["x"], 1, {"peft_vprompt": ["x"]}, {"peft_vprompt": None}], ids=str)
def test_what_a_config_records_is_a_table(mapping, tmp_path):
    get_peft_model(tiny_vit(), LoraConfig(task_type="IMAGE_CLS", target_modules=["q_proj"])).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_mapping": mapping}))
    with pytest.raises(AdapterMismatchError, match=rf"{path}.*Received auto_mapping="):
        PeftModel.from_pretrained(tiny_vit(), str(tmp_path))


def test_a_config_on_the_hub_is_damaged_or_not_to_be_read(adapters, tmp_path, monkeypatch):
    """The one is an adapter all the same, of the other a token may be missing."""
    (tmp_path / "adapter_config.json").write_text("{")
    monkeypatch.setattr("peft.config.hf_hub_download", lambda *_, **__: tmp_path / "adapter_config.json")
    with pytest.raises(AdapterMismatchError, match="cannot be read"):
        load_teacher("me/adapter", None, ["cat", "dog"], None)

    def refuse(*_, **__):
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr("peft.config.hf_hub_download", refuse)
    with pytest.raises(OSError, match=r"private or gated and the token is missing.*hf auth login"):
        adapter_config("me/adapter")


def test_subfolders_do_not_leave_the_adapter(adapters, tmp_path):
    source, base, _ = adapters[0]
    shutil.copytree(source, tmp_path / "adapter")
    with pytest.raises((ValueError, OSError)):
        PeftModel.from_pretrained(base, str(tmp_path / "adapter"), subfolder="../../nowhere")
