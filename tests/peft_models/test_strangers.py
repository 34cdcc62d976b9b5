"""What an adapter, a results file or a base model of a stranger may not do: each line of docs/security.md is a test."""

import json
import resource
import subprocess
import sys
import time
import types
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from peft import PeftModel, get_peft_model
from PIL import Image
from transformers import ViTForImageClassification

from peft_vprompt import (
    AutoPeftModelForImageClassification,
    ClassHeadConfig,
    ContextOptConfig,
    MaPLeConfig,
    MLPHeadConfig,
    MRPOConfig,
    ReadOnlyPromptConfig,
    SideTuningConfig,
    VisualPromptConfig,
)
from peft_vprompt.convert import convert_clip
from peft_vprompt.convert.checkpoint import load_base_model
from peft_vprompt.core.tokenization import find_tokenizer
from peft_vprompt.errors import TokenizerNotFoundError
from peft_vprompt.experiments.models import has_head, load_base
from peft_vprompt.experiments.pseudo_labels import PseudoLabels, top_k
from peft_vprompt.experiments.results import read_results, require_local_data
from peft_vprompt.experiments.sharing import publish
from peft_vprompt.utils.hub import split_revision
from tests.support.command_line import vprompt
from tests.support.models import CLASS_NAMES, tiny_clip, tiny_tokenizer, tiny_vit
from tests.support.peft_behaviours import save_row


N = {"class_names": ["a", "b"]}

#: A small adapter, and one field that is to make it huge.
BOMBS = [
    (tiny_clip, VisualPromptConfig(**N), {"num_virtual_tokens": 10**7}),
    (tiny_clip, VisualPromptConfig(**N), {"num_virtual_tokens": 10**6}),
    (tiny_clip, VisualPromptConfig(**N), {"projection_dim": 65_536}),
    (tiny_clip, VisualPromptConfig(**N), {"deep": True, "num_deep_layers": 10**6}),
    (tiny_clip, VisualPromptConfig(location="pad", **N), {"num_virtual_tokens": 10**5}),
    (tiny_clip, VisualPromptConfig(location="below", **N), {"num_virtual_tokens": 10**5}),
    (tiny_clip, VisualPromptConfig(location="prepend-pixel", **N), {"num_virtual_tokens": 10**5}),
    (tiny_clip, ContextOptConfig(**N), {"num_virtual_tokens": 10**6}),
    (tiny_clip, ContextOptConfig(**N), {"num_contexts": 1000, "num_virtual_tokens": 70}),
    (tiny_clip, ContextOptConfig(**N), {"class_names": ["x" * 10**7]}),
    (tiny_clip, ContextOptConfig(**N), {"class_names": ["x"] * 10**6}),
    (tiny_clip, ContextOptConfig(**N), {"class_names": ["x"] * 10**4, "template": ["{}"] * 10**3}),
    (tiny_clip, ContextOptConfig(class_specific=True, **N), {"class_names": [str(n) for n in range(10**5)]}),
    (tiny_clip, MaPLeConfig(prompt_depth=2, **N), {"prompt_depth": 10**6}),
    (tiny_clip, MaPLeConfig(prompt_depth=2, coupling="none", **N), {"vision_num_virtual_tokens": 10**6}),
    (tiny_clip, ReadOnlyPromptConfig(**N), {"num_virtual_tokens": 10**6}),
    (tiny_clip, MRPOConfig(prompt_depth=2, **N), {"num_virtual_tokens": 10**6}),
    (tiny_clip, ClassHeadConfig(**N), {"class_names": [str(n) for n in range(190_000)]}),
    (tiny_vit, MLPHeadConfig(), {"num_layers": 10**9}),
    (tiny_vit, MLPHeadConfig(), {"num_layers": 100}),
    (tiny_vit, SideTuningConfig(), {"side_widths": [65_536] * 16}),
    (tiny_vit, SideTuningConfig(), {"side_widths": [4096] * 3}),
]


@pytest.mark.filterwarnings("ignore:class_names repeats")
@pytest.mark.parametrize(
    ("build", "config", "change"), BOMBS, ids=[f"{type(c).__name__}-{next(iter(d))}" for _, c, d in BOMBS]
)
def test_a_small_adapter_takes_little_memory_and_time(build, config, change, tmp_path, tmp_path_factory):
    if isinstance(config, MaPLeConfig):
        tiny_tokenizer().save_pretrained(tmp_path_factory.getbasetemp() / "words")
        config.tokenizer_name_or_path = str(tmp_path_factory.getbasetemp() / "words")
    get_peft_model(build(), config).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    base = build()
    before, seconds = str(base), time.process_time()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="Expected|asks for more numbers|has shape|unexpected"):
        PeftModel.from_pretrained(base, str(tmp_path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 150 * 1024
    assert time.process_time() - seconds < 4
    if build is tiny_clip:
        assert str(base) == before


@pytest.mark.parametrize(
    "config", [VisualPromptConfig(num_virtual_tokens=10**6, **N), SideTuningConfig(side_widths=[4096] * 3)]
)
def test_a_config_that_is_far_too_large_for_its_model_is_refused_with_numbers(config):
    base = tiny_vit() if isinstance(config, SideTuningConfig) else tiny_clip()
    with pytest.raises(ValueError, match=r"at most [\d,]+ numbers, for a base model of [\d,]+"):
        get_peft_model(base, config)


def test_large_adapters_of_small_models_are_made():
    model = get_peft_model(tiny_clip(), VisualPromptConfig(num_virtual_tokens=2000, deep=True, **N))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) > 100_000


# ---- code of strangers -------------------------------------------------------------------------------------------


def hostile(folder: Path, **parts: dict) -> str:
    """A folder of a tokenizer and a model that ask for code of their own, which leaves a file behind."""
    folder.mkdir()
    mark = folder.parent / "ran"
    (folder / "evil.py").write_text(
        f"open({str(mark)!r}, 'w')\nfrom transformers import PreTrainedTokenizerFast as E\n"
    )
    auto = {"AutoTokenizer": [None, "evil.E"]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "E", "auto_map": auto}))
    auto = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForImageClassification"), "evil.E")
    (folder / "config.json").write_text(json.dumps({"model_type": "zzz", "architectures": ["E"], "auto_map": auto}))
    return str(folder)


def test_no_code_that_an_adapter_names_is_run(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = hostile(tmp_path / "evil")
    with pytest.raises(TokenizerNotFoundError):
        find_tokenizer(folder, None)
    for load in (load_base, load_base_model):
        with pytest.raises((ValueError, OSError)):
            load(folder)
    get_peft_model(tiny_clip(), ContextOptConfig(**N)).save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": folder}))
    with pytest.raises((ValueError, OSError)):
        AutoPeftModelForImageClassification.from_pretrained(str(tmp_path / "adapter"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.nightly
def test_a_yes_to_every_question_runs_nothing(tmp_path):
    """With a person, or `yes |`, at the keyboard."""
    folder = hostile(tmp_path / "evil")
    script = f"from peft_vprompt.core.tokenization import find_tokenizer; find_tokenizer({folder!r}, None)"
    done = subprocess.run(
        [sys.executable, "-c", script], input="y\n" * 99, capture_output=True, text=True, timeout=120
    )
    assert done.returncode and "TokenizerNotFoundError" in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change", [{"num_labels": 10**6, "id2label": None}, {"id2label": {str(n): "x" for n in range(10**5)}}]
)
def test_a_head_of_more_classes_than_the_weights_have_numbers_is_refused(change, tmp_path):
    tiny_vit().save_pretrained(tmp_path / "base")
    base = ViTForImageClassification.from_pretrained(tmp_path / "base")
    get_peft_model(base, VisualPromptConfig(num_virtual_tokens=2)).save_pretrained(tmp_path / "a")
    assert AutoPeftModelForImageClassification.from_pretrained(str(tmp_path / "a")) is not None
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(
        ValueError, match=r"a head of more classes than the [\d,]+ numbers.* Received: [\d,]+000 classes"
    ):
        AutoPeftModelForImageClassification.from_pretrained(str(tmp_path / "a"))


@pytest.mark.parametrize(
    "mapping",
    [
        {"base_model_class": "CLIPMLP", "parent_library": "transformers.models.clip.modeling_clip"},
        {"base_model_class": "system", "parent_library": "os"},
        {"base_model_class": "pipeline", "parent_library": "transformers"},
        {"base_model_class": "AutoTokenizer", "parent_library": "transformers"},
        {"base_model_class": "X", "parent_library": "transformers.models.clip.modeling_clip"},
        {"base_model_class": "X", "parent_library": "transformers.nowhere"},
        {"base_model_class": 5, "parent_library": ["os"]},
        ["CLIPModel"],
        None,
    ],
    ids=str,
)
def test_only_models_are_made_of_what_an_adapter_names(mapping, tmp_path):
    get_peft_model(tiny_clip(), ContextOptConfig(**N)).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"auto_mapping": mapping, "base_model_name_or_path": "x"})
    )
    with pytest.raises(ValueError, match="base model|not allowed|auto_mapping"):
        AutoPeftModelForImageClassification.from_pretrained(str(tmp_path))


# ---- files beside an adapter -------------------------------------------------------------------------------------


GOOD = {"settings": {"model": None}, "classes": {"all": ["a", "b"]}, "data": None}


@pytest.mark.parametrize(
    "change",
    [
        {"settings": []},
        {"settings": {}},
        {"settings": {"model": 5}},
        {"settings": {"model": None, "image_size": 10**9}},
        {"settings": {"model": None, "image_size": "32"}},
        {"settings": {"model": None, "image_size": True}},
        {"classes": ["a"]},
        {"classes": {}},
        {"classes": {"all": "ab"}},
        {"classes": {"all": [1]}},
        {"classes": {"all": ["x"] * 200_001}},
        {"data": "hub/id"},
        {"data": [1]},
        {"data": {}},
        {"data": {"path": 5}},
        {"data": {"path": ".", "min_images": "5"}},
        {"data": {"path": ".", "eval": 1}},
    ],
    ids=str,
)
def test_results_of_wrong_types_are_named(change, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(GOOD))
    assert read_results(tmp_path / "results.json") == GOOD
    (tmp_path / "results.json").write_text(json.dumps(GOOD | change))
    with pytest.raises(ValueError, match=f"results.json.*{next(iter(change))}"):
        read_results(tmp_path / "results.json")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "5", "null", '"text"', "[" * 10**5, "\ud800".encode("utf-8", "replace").decode()]
)
def test_results_that_are_none_are_named(content, tmp_path):
    (tmp_path / "results.json").write_text(content)
    if content == "null":
        return
    with pytest.raises(ValueError, match="results.json"):
        read_results(tmp_path / "results.json")


def test_no_data_set_of_a_strangers_choice_is_loaded_unasked(tmp_path):
    require_local_data(None, tmp_path / "results.json")
    require_local_data({"path": str(tmp_path)}, tmp_path / "results.json")
    with pytest.raises(ValueError, match="names the images 'them/images'.*Give --data"):
        require_local_data({"path": "them/images"}, tmp_path / "results.json")
    for place in ("https://them/images/x.csv", "hf://them/images/x.csv"):
        with pytest.raises(ValueError, match="Give --data"):
            require_local_data({"path": place}, tmp_path / "results.json")
    with pytest.raises(ValueError, match="addresses on the net.*--follow-urls"):
        require_local_data({"path": str(tmp_path), "follow_urls": True}, tmp_path / "results.json")


def test_evaluation_says_what_an_adapter_names_before_it_is_loaded(clip_path, tmp_path):
    config = ContextOptConfig(class_names=CLASS_NAMES, tokenizer_name_or_path="them/tokenizer")
    config.base_model_name_or_path = "them/model"
    model = get_peft_model(tiny_clip(), config)
    model.active_peft_config.base_model_name_or_path = "them/model"
    model.save_pretrained(tmp_path / "adapter")
    for index in range(4):
        (tmp_path / "data" / "test" / "cat").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "data" / "test" / "cat" / f"{index}.png")
    evaluate = ("evaluate", "--adapter", tmp_path / "adapter")
    assert "Give --data" in vprompt(*evaluate, code=2)
    (tmp_path / "adapter" / "results.json").write_text(
        json.dumps(GOOD | {"classes": {"all": CLASS_NAMES}, "data": {"path": "them/images"}})
    )
    assert "names the images 'them/images'" in vprompt(*evaluate, code=2)
    (tmp_path / "adapter" / "results.json").unlink()
    said = vprompt(*evaluate, "--data", tmp_path / "data", code=2)
    assert "names the base model them/model and the tokenizer them/tokenizer" in said
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no such tokenizer: the base model's is used
        said = vprompt(*evaluate, "--data", tmp_path / "data", "--split", "test", "--model", clip_path)
    assert "The adapter names the tokenizer them/tokenizer." in said


@pytest.mark.parametrize(
    "command",
    [
        ("app", "--adapter", "{}"),
        ("push", "{}", "me/flowers"),
        ("train", "--method", "promptkd", "--teacher", "{}", "--output", "{}-student"),
        ("convert", "x.pth", "--method", "promptkd", "--teacher", "{}", "--class-names", "{}.txt", "--output", "x"),
    ],
    ids=lambda command: command[0],
)
def test_commands_say_what_an_adapter_names(command, tmp_path, monkeypatch):
    named = ContextOptConfig(class_names=CLASS_NAMES, base_model_name_or_path="them/model")
    named.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter.txt").write_text("cat\ndog\n")
    monkeypatch.setattr("peft_vprompt.app.page.load_gradio", lambda: None)
    monkeypatch.setattr("peft_vprompt.app.page.serve", lambda *_, **__: None)
    monkeypatch.setattr("peft_vprompt.experiments.sharing.check_hub", lambda repository: None)
    code = 0 if command[0] == "app" else 2  # the page loads a model when it is asked, the others do at once
    said = vprompt(*(part.format(tmp_path / "adapter") for part in command), code=code)
    assert "The adapter names the base model them/model" in said


def test_inspection_says_what_an_adapter_names(tokenizer_path, tmp_path):
    config = ContextOptConfig(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path)
    model = get_peft_model(tiny_clip(), config)
    model.active_peft_config.base_model_name_or_path = "them/model"
    model.save_pretrained(tmp_path)
    assert "The adapter names the base model them/model" in vprompt("inspect", tmp_path)
    assert "The adapter names" not in vprompt("inspect", tmp_path, "--json")


def test_what_an_adapter_names_is_no_command_to_the_terminal(tmp_path):
    ContextOptConfig(base_model_name_or_path="a\x1b[2J[red]b\x07").save_pretrained(tmp_path)
    results = GOOD | {"settings": {"model": "x"}, "classes": {"all": ["\x1b]0;title\x9c"]}, "data": None}
    (tmp_path / "results.json").write_text(json.dumps(results))
    said = vprompt("evaluate", "--adapter", tmp_path, code=2)
    assert r"names the base model a\x1b[2J[red]b\x07" in said
    assert not {"\x1b", "\x07", "\x9c"} & set(said)


# ---- revisions ---------------------------------------------------------------------------------------------------


def test_revisions_are_part_of_a_name(tmp_path, monkeypatch):
    assert split_revision("me/model") == ("me/model", None)
    assert split_revision("me/model@abc123") == ("me/model", "abc123")
    (tmp_path / "a@b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert split_revision("a@b") == ("a@b", None)
    for name in ("@abc", "me/model@"):
        with pytest.raises(ValueError, match="id@revision"):
            split_revision(name)


def test_a_revision_is_asked_for_and_recorded(monkeypatch, tmp_path):
    asked = []

    def note(cls, name, **options):
        asked.append((name, options.get("revision")))
        raise OSError("not here")

    for name in ("AutoConfig", "PeftConfig"):
        monkeypatch.setattr(f"peft_vprompt.experiments.models.{name}.from_pretrained", classmethod(note))
    with pytest.raises(OSError, match="me/model"):
        load_base("me/model@v1")
    assert asked == [("me/model", "v1")]
    asked.clear()
    monkeypatch.setattr("peft_vprompt.core.tokenization.AutoTokenizer.from_pretrained", classmethod(note))
    with pytest.raises(TokenizerNotFoundError):
        find_tokenizer("me/words@v2", "me/model", base_model_revision="v1")
    assert asked == [("me/words", "v2"), ("me/model", "v1")]
    asked.clear()
    monkeypatch.setattr("peft_vprompt.convert.clip.load_open_clip", lambda *args, **options: types.SimpleNamespace())
    with pytest.raises(AttributeError):  # it goes on without a tokenizer, to the stand-in for a model
        convert_clip("me/clip@v3", tmp_path)
    assert asked == [("me/clip", "v3")]


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content", ["[]", "{", '{"model": 5}', '{"added_tokens": {"a": 1}, "model_max_length": "x"}', "[" * 9999]
)
def test_a_damaged_tokenizer_is_none(file, content, tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / file).write_text(content)
    with suppress(TokenizerNotFoundError):
        find_tokenizer(str(tmp_path), None)


# ---- pseudo-labels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"indices": np.array([0, 0])},
        {"indices": np.array([0, 9])},
        {"indices": np.array([0.5, 1.0])},
        {"labels": np.array([0, 2])},
        {"labels": np.array([-1, 0])},
        {"labels": np.array([0])},
        {"confidences": np.zeros((2, 2), np.float32)},
        {"probabilities": np.zeros(4, np.float32)},
        {"class_names": ("a",)},
        {"class_names": (1, 2)},
        {"source": []},
    ],
    ids=str,
)
def test_pseudo_labels_that_do_not_go_together(change):
    good = top_k(np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], np.float32), ["a", "b"], 1)
    values = {
        name: getattr(good, name)
        for name in ("indices", "labels", "confidences", "probabilities", "class_names", "source")
    }
    PseudoLabels(**values)
    with pytest.raises(ValueError, match="Expected pseudo-labels"):
        PseudoLabels(**values | change)


# ---- what is saved -----------------------------------------------------------------------------------------------


def test_nothing_of_the_machine_is_in_a_saved_adapter(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    get_peft_model(tiny_clip(), VisualPromptConfig(**N)).save_pretrained(tmp_path / "adapter")
    for path in (tmp_path / "adapter").iterdir():
        content = path.read_bytes()
        assert b"hf_secret" not in content
        assert str(Path.home()).encode() not in content


@pytest.mark.parametrize("recorded", [None, 5, [], {}])
def test_a_base_class_that_is_none_is_no_head(recorded, tmp_path):
    config = ContextOptConfig(class_names=CLASS_NAMES)
    config.auto_mapping = {"base_model_class": recorded}
    assert has_head(config) is False


def test_damaged_weights_are_named_by_inspect(tmp_path):
    get_peft_model(tiny_vit(), VisualPromptConfig(num_virtual_tokens=2)).save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    shown = vprompt("inspect", tmp_path / "adapter", "--header", code=2)
    assert "adapter_model.safetensors' are damaged" in shown


def test_results_that_say_little_are_not_published(vit_path, tokenizer_path, tmp_path):
    save_row(tmp_path / "adapter", "vpt-deep", vit_path, tokenizer_path)
    (tmp_path / "adapter" / "results.json").write_text(json.dumps(GOOD | {"classes": {"all": CLASS_NAMES}}))
    with pytest.raises(ValueError, match="results.json'. Received some without.*Move the file away"):
        publish(str(tmp_path / "adapter"), "me/adapter", model_name_or_path=vit_path)
