"""Pictures, site and project files say what the code says."""

import importlib.util
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from peft_vprompt.version import __version__


ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def diagrams():
    spec = importlib.util.spec_from_file_location("diagrams", ROOT / "docs/render/diagrams.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["diagrams"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_pictures_are_up_to_date():
    run = subprocess.run([sys.executable, ROOT / "docs/render/diagrams.py", "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_pictures_are_well_formed_and_need_nothing_from_elsewhere():
    for name in ("house.svg", "data_flow.svg"):
        text = (ROOT / "docs/images" / name).read_text(encoding="utf-8")
        ElementTree.fromstring(text)
        assert "href" not in text and "url(http" not in text and "@import" not in text


def test_implied_arrows_are_left_out_and_upward_ones_are_not(diagrams):
    order = ["ground", "first", "second", "roof"]
    pairs = {("second", "first"), ("first", "ground"), ("second", "ground"), ("roof", "ground"), ("ground", "roof")}
    assert diagrams.reduced(pairs, order) == [
        ("ground", "roof"),
        ("first", "ground"),
        ("second", "first"),
        ("roof", "ground"),
    ]


def test_imports_are_found_in_every_spelling(diagrams, tmp_path, monkeypatch):
    package = tmp_path / "peft_vprompt"
    (package / "core" / "deep").mkdir(parents=True)
    file = package / "core" / "deep" / "loop.py"
    file.write_text(
        "import torch\nimport peft_vprompt.data.images\nfrom ... import losses\nfrom ...errors import E\n"
        "from ..pooling import pool\nfrom peft_vprompt.demo import demo_task\n"
        "def late():\n    from ...training.recipes import Recipe\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(diagrams, "PACKAGE", package)
    assert diagrams.imported(file) == {"data", "losses", "utils", "core", "demo", "training"}


def test_arrows_in_one_lane_do_not_touch(diagrams):
    spans = [(0, 10), (8, 30), (20, 40), (60, 70), (0, 70)]
    lanes = diagrams.lanes(spans)
    for index, (top, bottom) in enumerate(spans):
        for other, (first, last) in enumerate(spans[:index]):
            assert lanes[index] != lanes[other] or bottom < first or last < top
    assert lanes[0] == lanes[3] == 0


def test_the_site_has_every_page():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = set(re.findall(r"[\w/]+\.md", str(site["nav"])))
    made = {"index.md", "api.md", "changelog.md", "contributing.md", "reporting.md"}  # from files beside docs/
    written = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert pages == made | written and not made & written
    assert site["strict"] is True and site["theme"]["font"] is False


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "SECURITY.md",
        *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
    ],
)
def test_links_and_anchors_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)", (ROOT / name).read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


def pinned(requirements):
    """Names and versions of requirements that are pinned."""
    return dict(re.findall(r"^([\w-]+)(?:\[\w+\])?==(\S+)$", "\n".join(requirements), re.MULTILINE))


def test_the_tools_are_pinned_to_one_version_everywhere():
    extras = PROJECT["optional-dependencies"]
    constraints = pinned((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    tools = pinned((ROOT / "constraints-tools.txt").read_text(encoding="utf-8").splitlines())
    development, documentation = pinned(extras["dev"]), pinned(extras["docs"])
    assert {"ruff", "pytest", "pytest-cov"} <= set(development) and "mkdocs-material" in documentation
    assert development.items() <= constraints.items()
    assert documentation.items() <= tools.items()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (ruff,) = [hook for hook in hooks["repos"] if "ruff" in hook["repo"]]
    assert ruff["rev"] == f"v{development['ruff']}" == f"v{tools['ruff']}"


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["license"]


def test_every_command_of_dev_is_explained_and_made():
    script = (ROOT / "dev").read_text(encoding="utf-8")
    commands = set(re.findall(r"^    ([a-z-]+)\)", script, re.MULTILINE))
    shown = subprocess.run(["sh", "dev"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  \./dev ([a-z-]+) ", shown, re.MULTILINE)) == commands
    targets = re.search(r"^targets = (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(targets.group(1).split()) == commands
    told = re.findall(r"^\./dev ([a-z-]+) ", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(told) == commands - {"demo"}


def test_a_first_release_has_added_things_only():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    *_, first = re.split(r"^## ", text, flags=re.MULTILINE)  # the oldest release stands last
    assert re.findall(r"^### (.+)$", first, re.MULTILINE) == ["Added"]
