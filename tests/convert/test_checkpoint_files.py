"""Files of `torch.save`, as trainers write them and as attackers do: the tensors are taken, and nothing is run."""

import argparse
import functools
import io
import os
import pathlib
import pickle
import subprocess
import urllib.request
import zipfile
from contextlib import suppress

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from peft_vprompt.convert import convert_checkpoint
from peft_vprompt.errors import AdapterMismatchError


NAMES = ["cat", "dog"]


class WarmUp(LRScheduler):
    """A warm-up as the trainer of CoOp's authors has it: its state holds the scheduler that follows."""

    def __init__(self, optimizer, successor):
        self.successor = successor
        super().__init__(optimizer)

    def get_lr(self):
        return [1e-5]


class CfgNode(dict):
    """A configuration as yacs has it: a dict with attributes."""

    def __init__(self, values):
        super().__init__(values)
        self.__dict__["_immutable"] = True


class Called:
    """Asks for a call when it is read."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def trained(context: torch.nn.Parameter) -> dict:
    """What the authors' trainer saves after a step."""
    optimizer = torch.optim.SGD([context], lr=0.002, momentum=0.9)
    context.sum().backward()
    optimizer.step()
    return {
        "state_dict": {"ctx": context.detach(), "token_prefix": torch.zeros(2, 1, 8).half()},
        "epoch": 50,
        "optimizer": optimizer.state_dict(),
        "scheduler": WarmUp(optimizer, CosineAnnealingLR(optimizer, 50)).state_dict(),
        "val_result": np.float64(71.5),
        "arguments": argparse.Namespace(seed=1, root=pathlib.Path("data")),
        "config": CfgNode({"MODEL": CfgNode({"BACKBONE": "ViT-B/16"})}),
        "hook": functools.partial(max, 1),
        "model_object": torch.nn.Linear(2, 2),
        "random_states": {"torch": torch.random.get_rng_state(), "numpy": np.arange(3), "seen": {1, 2}},
    }


def converted(checkpoint, folder, method="coop", **options) -> dict:
    convert_checkpoint(checkpoint, method, folder, class_names=NAMES, **options)
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_objects_beside_the_tensors_are_passed_over(zipped, protocol, tmp_path):
    context = torch.nn.Parameter(torch.randn(4, 8))
    path = tmp_path / "model.pth.tar-50"
    torch.save(trained(context), path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    (tensor,) = converted(path, tmp_path / "adapter").values()
    assert torch.equal(tensor[0], context)


def test_views_and_parameters_are_read_as_they_are(tmp_path):
    whole = torch.randn(6, 8, 4)
    for value in (whole[2].t(), torch.nn.Parameter(whole[1]), whole[3, ::2].double(), whole[0].bfloat16()):
        torch.save({"state_dict": {"module.ctx": value}}, tmp_path / "model.pth")
        (tensor,) = converted(tmp_path / "model.pth", tmp_path / "adapter").values()
        assert torch.equal(tensor[0], value.float())


@pytest.mark.parametrize(
    "hostile",
    [
        Called(os.system, "touch ran"),
        Called(eval, "open('ran', 'w')"),
        Called(exec, "open('ran', 'w')"),
        Called(open, "ran", "w"),
        Called(pathlib.Path.touch, pathlib.Path("ran")),
        Called(torch.save, torch.zeros(1), "ran"),
        Called(functools.partial(open, "ran", "w")),
        Called(np.save, "ran", np.zeros(1)),
    ],
)
@pytest.mark.parametrize("where", ["beside", "among the tensors", "alone"])
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_is_called(hostile, where, zipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    context = torch.randn(4, 8)
    content = {"state_dict": {"ctx": context}}
    if where == "alone":
        content = hostile
    else:
        (content if where == "beside" else content["state_dict"])["x"] = hostile
    torch.save(content, "model.pth", _use_new_zipfile_serialization=zipped)
    before = set(tmp_path.rglob("*"))
    try:
        (tensor,) = converted("model.pth", tmp_path / "adapter").values()
        assert torch.equal(tensor[0], context)
    except AdapterMismatchError:
        assert set(tmp_path.rglob("*")) == before
    assert not list(tmp_path.glob("ran*"))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("hostile", "name"),
    [
        (Called(eval, "1"), "builtins.eval"),
        (Called(subprocess.Popen, ["touch", "ran"]), "subprocess.Popen"),  # `commands.Popen` up to protocol 2
        (Called(urllib.request.urlopen, "http://example.org"), "urllib.request.urlopen"),
        (Called(pickle.loads, b"N."), "_?pickle.loads"),
    ],
)
def test_a_call_that_only_an_attack_makes_is_named(hostile, name, protocol, tmp_path):
    content = {"state_dict": {"ctx": torch.zeros(4, 8)}, "x": hostile}
    torch.save(content, tmp_path / "model.pth", pickle_protocol=protocol)
    with pytest.raises(AdapterMismatchError, match=f"asks to call {name}.*nothing in this one was run"):
        converted(tmp_path / "model.pth", tmp_path / "adapter")


def quantised() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.zeros(4, 8), 0.1, 0, torch.qint8)


UNUSABLE = {
    "sparse": lambda: torch.eye(4).to_sparse(),
    "sparse rows": lambda: torch.eye(4).to_sparse_csr(),
    "quantised": quantised,
    "expanded": lambda: torch.zeros(8).expand(4, 8),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2, 8), torch.zeros(3, 8)]),
    "without values": lambda: torch.empty(4, 8, device="meta"),
    "complex": lambda: torch.zeros(4, 8, dtype=torch.complex64),
    "int64": lambda: torch.zeros(4, 8, dtype=torch.int64),
    "bool": lambda: torch.zeros(4, 8, dtype=torch.bool),
    "NaN": lambda: torch.full((4, 8), float("nan")),
    "infinite": lambda: torch.full((4, 8), float("inf")),
    r"\(0, 8\)": lambda: torch.zeros(0, 8),
    r"\(\)": lambda: torch.zeros(()),
    r"\(4,\)": lambda: torch.zeros(4),
    r"\(1, 1, 4, 8\)": lambda: torch.zeros(1, 1, 4, 8),
}


@pytest.mark.filterwarnings("ignore:.*[Qq]uantize|.*Sparse CSR|.*nested tensors")
@pytest.mark.parametrize("kind", UNUSABLE)
@pytest.mark.parametrize("in_a_file", [True, False])
def test_tensors_that_are_no_prompts_are_named(kind, in_a_file, tmp_path):
    checkpoint = {"state_dict": {"ctx": UNUSABLE[kind]()}}
    if in_a_file:
        torch.save(checkpoint, tmp_path / "model.pth")
        checkpoint = tmp_path / "model.pth"
    with pytest.raises(AdapterMismatchError, match=f"'ctx'.*{kind.split()[0]}"):
        converted(checkpoint, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_tensors_that_are_not_needed_may_be_anything(tmp_path):
    state = {"ctx": torch.randn(4, 8), "other": torch.eye(4).to_sparse(), "count": torch.tensor(3)}
    torch.save(state, tmp_path / "model.pth")
    assert len(converted(tmp_path / "model.pth", tmp_path / "adapter")) == 1


def test_tensors_that_share_their_numbers_take_no_more_than_the_file_holds(tmp_path):
    numbers = torch.randn(64, 512)
    deep = {f"image_encoder.transformer.resblocks.{layer}.VPT_shallow": numbers for layer in range(1, 400)}
    torch.save({"image_encoder.VPT": numbers} | deep, tmp_path / "model.pth")
    with pytest.raises(AdapterMismatchError, match="VPT_shallow.*share their numbers.*far more than the file holds"):
        converted(tmp_path / "model.pth", tmp_path / "adapter", "vpt-clip")


@pytest.mark.parametrize("content", [None, [1], torch.zeros(4, 8), {1: torch.zeros(4, 8)}, 5], ids=str)
def test_what_is_no_state_dict(content, tmp_path):
    torch.save(content, tmp_path / "model.pth")
    for checkpoint in [tmp_path / "model.pth"] + ([] if content is None else [content]):
        with pytest.raises(AdapterMismatchError, match="names its tensors"):
            converted(checkpoint, tmp_path / "adapter")


def write(path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)


def claim_a_huge_tensor(path) -> None:
    """Change the shape of a tensor in a file of 1 KB to 2 ** 31 by 2 ** 31."""
    saved = io.BytesIO()
    torch.save({"ctx": torch.zeros(4, 8)}, saved)
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content.replace(b"K\x04K\x08\x86", 2 * b"J\xff\xff\xff\x7f" + b"\x86"))


def compress(path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**24))


DAMAGED = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no checkpoint"),
    "a huge claim": claim_a_huge_tensor,
    "compressed": compress,
    "a long text that is not there": lambda path: path.write_bytes(b"\x80\x04\x8d" + (10**13).to_bytes(8, "little")),
    "long bytes that are not there": lambda path: write(path, b"\x80\x05\x96" + (10**13).to_bytes(8, "little")),
    "a far place in the memory": lambda path: write(path, b"\x80\x02}r\xff\xff\xff\x7f."),
    "tuples in tuples as a key": lambda path: write(path, b"\x80\x02})" + 10**5 * b"\x85" + b"Ns."),
    "no value": lambda path: write(path, b"\x80\x02."),
    "an extension": lambda path: write(path, b"\x80\x02\x82\x01."),
    "another archive": lambda path: zipfile.ZipFile(path, "w").writestr("x", "y"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_files_are_named(damage, tmp_path):
    path = tmp_path / "model.pth"
    DAMAGED[damage](path)
    with pytest.raises(AdapterMismatchError, match="model.pth|method 'coop'") as refused:
        converted(path, tmp_path / "adapter")
    assert "\x1b" not in str(refused.value)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_ends_early_or_has_a_changed_byte(zipped, tmp_path):
    context = torch.randn(4, 8)
    path, damaged = tmp_path / "model.pth", tmp_path / "damaged.pth"
    torch.save(trained(torch.nn.Parameter(context)), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for case in range(60):
        place = int(generator.integers(len(content)))
        changed = bytes([content[place] ^ int(generator.integers(1, 256))])
        damaged.write_bytes(content[:place] if case % 2 else content[:place] + changed + content[place + 1 :])
        with suppress(AdapterMismatchError):
            converted(damaged, tmp_path / "adapter")


def test_a_folder_and_a_file_that_is_not_there(tmp_path):
    with pytest.raises(AdapterMismatchError, match="Received a folder"):
        converted(tmp_path, tmp_path / "adapter")
    with pytest.raises(FileNotFoundError, match="none.pth"):
        converted(tmp_path / "none.pth", tmp_path / "adapter")


MISFITS = [
    (
        "maple",
        {"prompt_learner.ctx": (2, 8), "prompt_learner.proj.weight": (6, 8), "prompt_learner.proj.bias": (6, 1)},
    ),
    (
        "maple",
        {
            "prompt_learner.ctx": (2, 8),
            "prompt_learner.compound_prompts_text.0": (3, 8),
            "prompt_learner.proj.weight": (6, 8),
            "prompt_learner.proj.bias": (6,),
        },
    ),
    ("ivlp", {"image_encoder.VPT": (2, 8), "image_encoder.transformer.resblocks.1.VPT_shallow": (2, 9)}),
    ("vpt-clip", {"image_encoder.VPT": (8,)}),
    ("rpo", {"text_prompt": (4, 8), "img_prompt": (8,)}),
    ("cocoop", {"ctx": (1, 4, 8)}),
    ("kgcoop", {"ctx": (1, 2, 4, 8)}),
    ("vpt", {"enc.transformer.prompt_embeddings": (3, 8)}),
    (
        "vpt",
        {"enc.transformer.prompt_embeddings": (1, 3, 8), "enc.transformer.deep_prompt_embeddings": (2, 3, 9)},
    ),
]


@pytest.mark.parametrize(("method", "shapes"), MISFITS)
def test_shapes_that_do_not_go_together(method, shapes, tmp_path):
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    with pytest.raises(AdapterMismatchError, match="dimensions|one shape|like the first layer's"):
        converted(state, tmp_path / "adapter", method)
