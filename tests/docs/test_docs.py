"""What the documentation says is what the code does."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTForImageClassification

import peft_vprompt
from examples.benchmarks import render as benchmarks
from peft_vprompt import (
    CoCoOpConfig,
    ContextOptConfig,
    MaPLeConfig,
    PromptConfig,
    ReadOnlyPromptConfig,
    VisualPromptConfig,
)
from peft_vprompt.experiments.pseudo_labels import SELECTORS
from peft_vprompt.export.plain import TOWERS
from peft_vprompt.tuners.base.registry import METHODS, PROMPT_METHODS
from tests.support import golden_vpt
from tests.support.models import CLASS_NAMES
from tests.support.pages import load_page


ROOT = Path(__file__).parents[2]
ROWS = re.findall(
    r"^\| `(\w+Config)` \| `(\w+)` \| `(.+?)` \| (.+) \|$", (ROOT / "docs/paper_index.md").read_text(), re.M
)


#: What a default may be taken from.
SOURCES = (
    "VPT",
    "CoOp",
    "UPL",
    "CoCoOp",
    "KgCoOp",
    "ProGrad",
    "PromptSRC",
    "PromptKD",
    "MMRL",
    "TCP",
    "MaPLe",
    "Tip-Adapter",
    "CLAP",
    "PTNL",
    "CLIP-LoRA",
    "2SFS",
    "RPO",
    "MRPO",
    "KMnP/vpt `",
    "PEFT's",
    "ours: ",
)


@pytest.mark.parametrize(("config", "field", "default", "source"), ROWS, ids=lambda value: str(value)[:20])
def test_paper_index_matches_the_defaults(config, field, default, source):
    config_class = getattr(peft_vprompt, config)
    classes = {"class_names": CLASS_NAMES} if issubclass(config_class, PromptConfig) else {}
    assert repr(getattr(config_class(**classes), field)) == default
    assert source.startswith(SOURCES), "names no paper and no code"


@pytest.mark.parametrize("method", PROMPT_METHODS.values(), ids=lambda m: m.name)
def test_every_published_default_is_indexed(method):
    classes = [c for c in method.config_class.__mro__ if c.__module__.startswith("peft_vprompt")]  # not PEFT's
    declared = {name for c in classes for name in vars(c).get("__annotations__", {})}
    own = {f.name for f in fields(method.config_class) if f.name in declared} - {f.name for f in fields(PromptConfig)}
    indexed = {field for config, field, _, _ in ROWS if config == method.config_class.__name__}
    unset = {
        f.name
        for f in fields(method.config_class)
        if f.default is None and getattr(method.config_class(class_names=CLASS_NAMES), f.name) is None
    }
    assert own - unset <= indexed


@pytest.mark.parametrize("method", PROMPT_METHODS.values(), ids=lambda m: m.name)
def test_every_config_field_explains_itself(method):
    for field in fields(method.config_class):
        assert field.metadata.get("help"), field.name
        assert field.default is not MISSING or field.default_factory is not MISSING


def test_differences_from_the_authors_numbers_are_those_that_the_tests_allow():
    page = (ROOT / "docs/converting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (\de-\d) \| (\de-\d)[\w ]* \| (.+) \|$", page, re.M)
    told: dict[str, set[float]] = {}
    for _, logits, _, files in rows:
        for file in re.findall(r"`(test_golden_\w+)\.py`", files):
            told.setdefault(file, set()).add(float(logits))
    assert set(told) == {path.stem for path in (ROOT / "tests/parity").glob("test_golden_*.py")}
    for file, numbers in told.items():
        module = importlib.import_module(f"tests.parity.{file}")
        tables = (getattr(module, name, None) for name in ("LOGITS", "LOGITS_100", "TOLERANCE"))
        allowed = {table["atol"] for table in tables if table} or {golden_vpt.TOLERANCE["atol"]}
        assert numbers == allowed, file
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {float(number) for number in re.findall(r"within (\de-\d)", readme)} == {2e-5, 2e-4}


def test_alternatives_are_as_much_slower_on_every_page():
    file = json.loads((ROOT / "docs/results/benchmarks/alternatives_cpu_float32.json").read_text(encoding="utf-8"))
    ratios = [f"{cell['open_clip_ratio']:.1f}x" for cell in file["cells"].values()]
    readme, page = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/benchmarks.md"))
    assert re.search(r"^\| open_clip.* (\S+ and \S+) \|$", readme, re.M).group(1) == " and ".join(ratios)
    assert all(f"| {ratio} |" in page for ratio in ratios)


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_commands_mean_the_same_in_every_shell(page):
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    for block in blocks:
        bare = re.sub(r"'[^']*'|\"[^\"]*\"|(?<=\s)# .*", "", block)
        assert not re.search(r"[$*?!\[\]]", bare), "zsh takes these signs otherwise than bash: quote them"


def test_every_choice_of_images_without_labels_is_explained():
    page = (ROOT / "docs/noisy_labels.md").read_text(encoding="utf-8")
    assert all(re.search(rf"`[^`]*\b{name}`", page) for name in SELECTORS)


def test_every_method_and_every_script_is_in_the_table_of_examples():
    page = (ROOT / "examples/README.md").read_text(encoding="utf-8")
    scripts = [path for name in ("*.py", "by_method/*.py") for path in (ROOT / "examples").glob(name)]
    assert set(re.findall(r"`([\w/]+\.py)`", page)) == {str(path.relative_to(ROOT / "examples")) for path in scripts}
    shown = {title for cell in re.findall(r"^\| (.+?) \|", page, re.M) for title in cell.split(", ")}
    assert {
        method.title for name, method in METHODS.items() if not method.is_baseline and name != "zero-shot"
    } <= shown


def test_benchmarks_are_those_that_were_measured():
    files = benchmarks.load(benchmarks.RESULTS)
    page = benchmarks.page(files)
    assert benchmarks.PAGE.read_text(encoding="utf-8") == page, "run python -m examples.benchmarks.render"
    for path in benchmarks.WITH_TABLE:
        assert path.read_text(encoding="utf-8") == benchmarks.refreshed(path, files), "likewise"
    assert all(plot.is_file() for plot in map(benchmarks.plot_path, files) if plot is not None)
    assert not re.search(r"\| -\d", page), "noise, where something takes less than nothing"
    assert (
        len(re.findall(r"From\s`python -m [\w.]+`; .+, commit \w{7}\.$", page, re.M)) == 4
    )  # a machine for each program


def test_the_reference_of_the_commands_is_what_their_help_texts_say():
    page = load_page("render/commands")
    assert page.PAGE.read_text(encoding="utf-8") == page.render(), "run `python docs/render/commands.py`"


def test_what_the_readme_imports_is_in_the_reference():
    (public,) = re.findall(
        r"^PUBLIC = \((.*?)^\)", (ROOT / "docs/render/site.py").read_text(encoding="utf-8"), re.M | re.S
    )
    imported = re.findall(r"^from (peft_vprompt\S*) import", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert set(imported) <= set(re.findall(r'"(.+)"', public))


def test_the_readme_asks_for_the_versions_that_the_package_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = dict(re.match(r"(\w+)(.*)", each).groups() for each in project["dependencies"])
    line = next(
        each for each in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if "It needs Python" in each
    )
    python, torch, (least, below), (peft, _) = (re.findall(r"[<>]=?([\d.]+)", text) for text in
        (project["requires-python"], bounds["torch"], bounds["transformers"], bounds["peft"]))  # fmt: skip
    said = f"Python {python[0]} or newer, torch {torch[0]} or newer, transformers from {least} on and below {below}, and PEFT {peft} "
    assert said in line


def test_the_models_that_plain_exports_take_are_named():
    page = (ROOT / "docs/predict_and_export.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith("| `plain` |"))
    assert all(f"`{name}`" in row for name in TOWERS)


def test_generated_tables_are_up_to_date():
    run = subprocess.run([sys.executable, ROOT / "docs/render/tables.py", "--check"], capture_output=True, text=True)
    assert run.returncode == 0, f"run `python docs/render/tables.py`\n{run.stderr[-500:]}"


def test_changelog_and_version():
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
    assert re.fullmatch(r"\d+\.\d+\.\d+", peft_vprompt.__version__)


def test_links_in_the_documentation_lead_somewhere():
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


# ---- trained parameters on real shapes ----------------------------------------------------------------------------

TEXT = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048, "num_hidden_layers": 12}
SHAPES = {
    "ViT-B/32": (
        TEXT,
        {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "patch_size": 32},
        512,
    ),
    "ViT-B/16": (
        TEXT,
        {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "patch_size": 16},
        512,
    ),
    "ViT-L/14": (
        TEXT | {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
        {
            "hidden_size": 1024,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "patch_size": 14,
        },
        768,
    ),
}
SHAPES["ViT-L/14@336"] = (SHAPES["ViT-L/14"][0], SHAPES["ViT-L/14"][1] | {"image_size": 336}, 768)

COUNTS = [
    (ContextOptConfig(), 8_192),
    (ContextOptConfig(num_virtual_tokens=4), 2_048),
    (ContextOptConfig(num_virtual_tokens=4, class_specific=True, class_names=CLASS_NAMES), 5 * 2_048),
    (CoCoOpConfig(prompt_init="random"), 35_360),
    (MaPLeConfig(prompt_init="random"), 3_555_072),
    (MaPLeConfig(prompt_init="random", prompt_depth=3), 1_185_024),
    (MaPLeConfig(prompt_init="random", coupling="none", prompt_depth=12), 30_720),
    (MaPLeConfig(prompt_init="random", coupling="none"), 23_040),
    (VisualPromptConfig(num_virtual_tokens=8, deep=True), 73_728),
    (ReadOnlyPromptConfig(), 30_720),
]


def on_meta(shape):
    text, vision, projection = SHAPES[shape]
    with torch.device("meta"):
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection))


def trained(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("config", "count"), COUNTS, ids=lambda v: type(v).__name__ if isinstance(v, PromptConfig) else str(v)
)
def test_published_parameter_counts_on_vit_b16(config, count):
    assert trained(get_peft_model(on_meta("ViT-B/16"), config, low_cpu_mem_usage=True)) == count


@pytest.mark.parametrize("shape", SHAPES)
def test_every_clip_shape(shape):
    base = on_meta(shape)
    width, size = base.config.vision_config.hidden_size, base.config.vision_config.image_size
    model = get_peft_model(base, MaPLeConfig(prompt_init="random"), low_cpu_mem_usage=True)
    assert trained(model) == 9 * (
        2 * base.config.text_config.hidden_size + width * (base.config.text_config.hidden_size + 1)
    )
    features = model.encode_images(torch.empty(2, 3, size, size, device="meta"))
    assert features.shape == (2, base.config.projection_dim)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"num_virtual_tokens": 10}, 84_580),
        ({"num_virtual_tokens": 50}, 115_300),
        ({"num_virtual_tokens": 10, "deep": True}, 169_060),
        ({"num_virtual_tokens": 50, "deep": True}, 537_700),
    ],
)
def test_published_parameter_counts_of_vpt(options, count):
    with torch.device("meta"):
        vit = ViTForImageClassification(ViTConfig(num_labels=100))
    assert trained(get_peft_model(vit, VisualPromptConfig(**options), low_cpu_mem_usage=True)) == count


def test_a_failed_installation_does_not_count_as_done(tmp_path):
    for name in ("dev", "constraints.txt", "pyproject.toml"):
        shutil.copy2(ROOT / name, tmp_path)
    pip = "#!/bin/sh\\necho no network >&2\\nexit 1\\n"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nmkdir -p "$3/bin"\nprintf \'{pip}\' > "$3/bin/python"\nchmod +x "$3/bin/python"\n')
    python.chmod(0o755)
    for command in ("demo", "test", "lint", "test-oldest"):
        run = subprocess.run(
            ["sh", "dev", command],
            cwd=tmp_path,
            env={**os.environ, "PYTHON": str(python)},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 1 and "no network" in run.stderr
    assert not list(tmp_path.glob(".venv*/.installed*"))
