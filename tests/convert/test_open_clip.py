"""CLIPs in the files of openai/CLIP and open_clip: all layouts give the same model, and what is none of them is refused."""

import json
import random
import sys
import types

import pytest
import torch
from peft import get_peft_model
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel, CLIPModel

from peft_vprompt import AutoPeftModelForImageClassification, ContextOptConfig
from peft_vprompt.convert import convert_clip
from peft_vprompt.errors import AdapterMismatchError, UnsupportedModelError
from peft_vprompt.experiments.models import build_model
from peft_vprompt.models import ResNetCLIPModel, load_open_clip
from peft_vprompt.models.open_clip import from_state_dict, load_bridged, open_clip_image_processor
from peft_vprompt.utils.checkpoint_state import CheckpointState
from tests.support.command_line import QUICK, train, vprompt
from tests.support.models import CLASS_NAMES, VOCABULARY_SIZE, images, tiny_tokenizer
from tests.support.open_clip import build, published


#: Sizes of the tiny models in open_clip's words; heads of 16 (text), 16 (ResNet) and 12 (ViT) numbers.
TEXT_SAID = {"context_length": 77, "vocab_size": VOCABULARY_SIZE, "width": 32, "heads": 2, "layers": 3}
SAID = {
    "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 4, "head_width": 16, "patch_size": None},
    "vit": {"image_size": 32, "layers": 3, "width": 24, "head_width": 12, "patch_size": 8, "mlp_ratio": 2.0},
}


def custom(state) -> dict[str, torch.Tensor]:
    """The same by the names of open_clip's `CustomTextCLIP`."""
    return {n if n.startswith("visual.") or n == "logit_scale" else f"text.{n}": v for n, v in state.items()}


@pytest.fixture
def folder(tmp_path):
    """A folder of open_clip with a tiny model of one kind in one layout."""

    def write(kind, layout=lambda state: state, file="open_clip_model.safetensors", said=(), tokenizer=True):
        path = tmp_path / "open_clip"
        path.mkdir()
        text = {**TEXT_SAID, "mlp_ratio": 2.0}
        model = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": dict(SAID[kind]), "text_cfg": text}
        for place, value in dict(said).items():
            *inside, name = place.split(".")
            (model[inside[0]] if inside else model)[name] = value
        preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"}
        (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))
        state = layout(published(build(kind)))
        save_file(state, path / file) if file.endswith("safetensors") else torch.save(state, path / file)
        if tokenizer:
            tiny_tokenizer().save_pretrained(path)
        return path

    return write


@torch.no_grad()
def outputs(model):
    texts = torch.tensor([[VOCABULARY_SIZE - 2, 5, 9, VOCABULARY_SIZE - 1]])
    output = model(input_ids=texts, pixel_values=images())
    return torch.cat([output.logits_per_image.flatten(), output.image_embeds.flatten(), output.text_embeds.flatten()])


@pytest.mark.parametrize("kind", ["resnet", "vit"])
@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
@pytest.mark.parametrize("layout", [dict, custom], ids=["plain", "custom-text"])
def test_folders(kind, layout, file, folder):
    model = load_open_clip(folder(kind, layout, file))
    assert type(model) is (ResNetCLIPModel if kind == "resnet" else CLIPModel) and not model.training
    assert torch.equal(outputs(model), outputs(build(kind)))


def test_single_files_of_openai(tmp_path):
    state = published(build("resnet"))
    numbers = {
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(68),
    }
    without = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    expected = from_state_dict(state)
    assert (
        expected.config.vision_config.num_attention_heads == 2
        and expected.config.text_config.hidden_act == "quick_gelu"
    )
    for index, saved in enumerate((state | numbers, without | numbers)):
        torch.save(saved, tmp_path / f"RN{index}.pt")
        assert torch.equal(outputs(load_open_clip(tmp_path / f"RN{index}.pt")), outputs(expected))


def test_half_precision_becomes_float32(tmp_path):
    state = {
        n: v.half() if v.is_floating_point() and "running_" not in n else v for n, v in published(build("vit")).items()
    }
    torch.save(state, tmp_path / "ViT.pt")
    model = load_open_clip(tmp_path / "ViT.pt")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    wanted = from_state_dict({name: value.float() for name, value in state.items()})
    assert torch.equal(outputs(model), outputs(wanted))


def nest(state) -> torch.nn.Module:
    """Modules that hold the tensors by their names, as the archives of openai/CLIP do."""
    root = torch.nn.Module()
    for name, value in state.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, torch.nn.Module())
            module = module._modules[part]
        module.register_buffer(
            last, value
        ) if "running" in last or not value.is_floating_point() else module.register_parameter(
            last, torch.nn.Parameter(value)
        )
    return root


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_scripted_archives_without_running_their_code(tmp_path, monkeypatch):
    state = published(build("resnet"))
    module = nest(state)
    module.forward = types.MethodType(lambda self, x: x, module)
    module.__class__ = type("Scripted", (torch.nn.Module,), {"forward": lambda self, x: x})
    torch.jit.trace(module, torch.zeros(1)).save(tmp_path / "RN.pt")
    for forbidden in ("torch.load", "torch.jit.load"):
        monkeypatch.setattr(forbidden, lambda *args, **kwargs: pytest.fail("code of the file may run"))
    assert torch.equal(outputs(load_open_clip(tmp_path / "RN.pt")), outputs(from_state_dict(state)))


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"vision_cfg.timm_model_name": "vit_base"}, r"vision_cfg.timm_model_name='vit_base'.*open_clip_torch"),
        ({"text_cfg.hf_model_name": "bert"}, "text_cfg.hf_model_name='bert'"),
        ({"text_cfg.no_causal_mask": True}, "text_cfg.no_causal_mask=True"),
        ({"vision_cfg.pool_type": "avg"}, "vision_cfg.pool_type='avg'"),
        ({"vision_cfg.something_new": 1}, "vision_cfg.something_new=1"),
    ],
)
def test_configurations_that_neither_model_has(said, match, folder):
    with pytest.raises(UnsupportedModelError, match=match):
        load_open_clip(folder("vit", said=said))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda state: state | {"logit_bias": torch.zeros(())}, "Received others: logit_bias"),
        (lambda state: state | {"visual.transformer.resblocks.0.ls_1.gamma": torch.zeros(2)}, "ls_1.gamma"),
        (lambda state: {n: v for n, v in state.items() if n != "ln_final.bias"}, "none called 'ln_final.bias'"),
        (
            lambda state: state | {"visual.ln_post.bias": torch.zeros(3)},
            "of another shape: vision_model.post_layernorm.bias",
        ),
        (lambda state: {"something": torch.zeros(2)}, "none called"),
    ],
)
def test_tensors_that_are_no_clip(change, match, tmp_path):
    torch.save(change(published(build("vit"))), tmp_path / "model.pt")
    with pytest.raises(UnsupportedModelError, match=match):
        load_open_clip(tmp_path / "model.pt")


ODD = {
    "a number": lambda tensor: torch.zeros(()),
    "one dimension more": lambda tensor: tensor[None],
    "one dimension": lambda tensor: tensor.flatten(),
    "another row": lambda tensor: torch.cat([tensor, tensor[:1]]) if tensor.ndim else tensor[None, None],
    "nothing": lambda tensor: torch.zeros(0, 4),
    "integers": lambda tensor: tensor.long(),
    "sparse": lambda tensor: tensor.to_sparse() if tensor.ndim else tensor.bool(),
    "NaN": lambda tensor: tensor * float("nan"),
}


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_any_odd_tensor_is_refused_by_name_or_of_no_matter(kind):
    state = published(build(kind))
    names = [name for name in state if not name.endswith("num_batches_tracked")]
    drawn = random.Random(0)
    for _ in range(40):
        name, odd = drawn.choice(names), drawn.choice(list(ODD))
        try:
            from_state_dict(CheckpointState(state | {name: ODD[odd](state[name])}))
        except (UnsupportedModelError, AdapterMismatchError) as refused:
            *_, module, last = ("", "", *name.split("."))
            said = str(refused)
            assert name in said or any(word in said for word in ("of another shape", module, last)), (name, odd, said)


@pytest.mark.parametrize("number", ["1000000000", "9" * 5000, "x", "-1"])
@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_layers_with_gaps_are_refused_at_once(kind, number):
    state = published(build(kind))
    place = "visual.layer1" if kind == "resnet" else "visual.transformer.resblocks"
    with pytest.raises(UnsupportedModelError, match=rf"layers {place}.0, .* without gaps. Received .*{number[:9]}"):
        from_state_dict(state | {f"{place}.{number}.ln_1.weight": torch.zeros(2)})


def test_a_configuration_counts_beside_a_file_of_any_name(folder):
    path = folder("vit", said={"quick_gelu": False})
    weights = path / "open_clip_model.safetensors"
    weights.rename(path / "weights.safetensors")
    assert load_open_clip(path / "weights.safetensors").config.text_config.hidden_act == "gelu"
    (path / "open_clip_config.json").unlink()
    with pytest.warns(UserWarning, match="Nothing says how .* is built. It is taken for one of openai/CLIP"):
        assert load_open_clip(path / "weights.safetensors").config.text_config.hidden_act == "quick_gelu"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *(("quick_gelu", 5), ("vision_cfg", 5), ("text_cfg", None), ("text_cfg.heads", 0), ("text_cfg.width", "x")),
        *(("vision_cfg.head_width", 0), ("vision_cfg.image_size", "224"), ("vision_cfg.image_size", 10**9)),
        *(("vision_cfg.layers", 10**9), ("preprocess_cfg", 5), ("preprocess_cfg.mean", ["a"])),
        *(("preprocess_cfg.std", [0, 1, 1]), ("preprocess_cfg.interpolation", 5), ("model_cfg", [])),
    ],
)
def test_what_a_configuration_says_is_of_its_type(place, value, folder):
    path = folder("vit")
    said = json.loads((path / "open_clip_config.json").read_text())
    top = said if place.startswith(("preprocess", "model_cfg")) else said["model_cfg"]
    *inside, name = place.split(".")
    (top[inside[0]] if inside else top)[name] = value
    (path / "open_clip_config.json").write_text(json.dumps(said))
    with pytest.raises(UnsupportedModelError, match=rf"open_clip_config.json.*(Expected|says).*({name}|JSON object)"):
        convert_clip(path, path / "out")
    assert not (path / "out").exists()


def test_nothing_is_fetched_for_a_bridged_model(monkeypatch):
    given = {}

    def build_theirs(**options):
        given.update(options)
        raise NotImplementedError

    monkeypatch.setitem(sys.modules, "open_clip", types.SimpleNamespace(CustomTextCLIP=build_theirs))
    said = {"embed_dim": 16, "vision_cfg": {"timm_model_name": "vit", "timm_model_pretrained": True}, "text_cfg": {}}
    with pytest.raises(NotImplementedError):
        load_bridged(said, published(build("vit")))
    assert given["vision_cfg"]["timm_model_pretrained"] is False
    said["vision_cfg"]["timm_model_name"] = "hf-hub:somebody/model"
    with pytest.raises(UnsupportedModelError, match="'hf-hub:somebody/model', which is fetched"):
        load_bridged(said, published(build("vit")))
    with pytest.raises(UnsupportedModelError, match="embed_dim and vision_cfg"):
        load_bridged({}, published(build("vit")))


def test_another_model_in_the_folder_is_kept_with_a_word(folder, tmp_path):
    path = folder("vit")
    convert_clip(path, tmp_path / "out")
    before = (tmp_path / "out" / "config.json").read_bytes()
    convert_clip(path, tmp_path / "out")  # the same one, without a word
    torch.save(published(build("resnet")), tmp_path / "RN.pt")
    with pytest.warns(UserWarning, match="holds an adapter, a model, .* They are now in"):
        convert_clip(tmp_path / "RN.pt", tmp_path / "out")
    (kept,) = (tmp_path / "out" / "previous").iterdir()
    assert (kept / "config.json").read_bytes() == before and (kept / "model.safetensors").is_file()


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("[]")
    with pytest.raises(ValueError, match="Expected a JSON object in .*open_clip_config.json"):
        load_open_clip(tmp_path)
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"Expected open_clip_model.safetensors or .*\. Download"):
        load_open_clip(tmp_path)
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"1234567890")
    with pytest.raises(AdapterMismatchError, match="Cannot read .*safetensors"):
        load_open_clip(tmp_path)
    with pytest.raises(FileNotFoundError, match="Check the spelling"):
        convert_clip(tmp_path / "RN50.pt", tmp_path / "out")


def test_the_image_processor(folder):
    processor = open_clip_image_processor(folder("vit"), 32)
    assert list(processor.image_mean) == [0.5, 0.4, 0.3] and list(processor.image_std) == [0.2, 0.3, 0.4]
    assert dict(processor.crop_size) == {"height": 32, "width": 32} and processor.do_center_crop


def test_images_of_another_size(folder):
    bundle = build_model(str(folder("vit")), "coop", CLASS_NAMES, image_size=48)
    pixels = bundle.image_processor(Image.new("RGB", (60, 50)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 48, 48) and bundle.model(pixel_values=pixels).logits.shape == (1, len(CLASS_NAMES))


def test_another_size_of_an_encoder_whose_inside_is_not_looked_at_is_refused(folder):
    with pytest.raises(UnsupportedModelError, match="Expected no image size for .*Received: 48. Leave it out"):
        build_model(str(folder("resnet")), "coop", CLASS_NAMES, image_size=48)


def test_a_model_of_transformers(folder, tmp_path):
    source = folder("resnet")
    shown = vprompt("convert-clip", source, "--output", tmp_path / "rn")
    assert "Saved a ResNetCLIPModel" in shown
    loaded = AutoModel.from_pretrained(tmp_path / "rn").eval()
    expected = build("resnet")
    torch.testing.assert_close(loaded.state_dict(), expected.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(
        outputs(loaded), outputs(expected)
    )  # where weights lie in memory changes the last digit
    model = get_peft_model(loaded, ContextOptConfig(class_names=CLASS_NAMES))
    assert model(pixel_values=images()).logits.shape == (4, len(CLASS_NAMES))


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_training_by_the_command_line_on_a_folder(kind, folder, colours, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    source = folder(kind, custom)
    train(tmp_path / "run", source, colours, "--method", "coop", *QUICK)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["steps"] > 0
    again = vprompt("evaluate", "--adapter", tmp_path / "run", "--data", colours, "--label-column", "colour")
    assert f"{results['accuracy']['all']:.1f}" in again
    model = AutoPeftModelForImageClassification.from_pretrained(str(tmp_path / "run"))
    assert type(model.get_base_model()).__name__ == ("ResNetCLIPModel" if kind == "resnet" else "CLIPModel")
    if kind == "resnet":
        refused = train(tmp_path / "vpt", source, colours, "--method", "vpt", *QUICK, code=2)
        assert "Set location='pad'" in refused.replace("\n", " ")
        train(tmp_path / "vpt", source, colours, "--method", "vpt", "--set", "location=pad", *QUICK)
        assert "Set vision_prompt_depth=0" in train(
            tmp_path / "maple", source, colours, "--method", "maple", *QUICK, code=2
        )
