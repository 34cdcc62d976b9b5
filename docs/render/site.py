"""What MkDocs asks while it builds the site (`./dev docs`): pages that are made of other files, and links out of docs/.

The home page is README.md, so that nothing is said twice. The API reference is generated: every public name of the
modules in `PUBLIC`, and for each config a table of its fields with the help that the code gives them.
"""

import ast
import re
from pathlib import Path

from mkdocs.structure.files import File


ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "peft_vprompt"

#: Pages of the site -> the file of the repository that each shows.
SHOWN = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "reporting.md": "SECURITY.md",
}

#: Modules of the public API, in the order of the reference.
PUBLIC = (
    "peft_vprompt",
    "peft_vprompt.losses",
    "peft_vprompt.data",
    "peft_vprompt.metrics",
    "peft_vprompt.training",
    "peft_vprompt.convert",
    "peft_vprompt.export",
    "peft_vprompt.app",
    "peft_vprompt.models",
    "peft_vprompt.demo",
)

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)([^)]*)\)")
IMAGE = re.compile(r"!\[([^\]]*)\]\(docs/([^)\s]+)\)")


def on_files(files, config):
    """Add the pages that have no file in docs/."""
    for page, source in SHOWN.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=inside(IMAGE.sub(r"![\1](\2)", text), ROOT)))
    files.append(File.generated(config, "api.md", content=reference()))
    return files


def on_page_markdown(markdown, page, **_):
    """Turn links that leave docs/ into links to the site's pages."""
    return markdown if page.file.src_uri in SHOWN else inside(markdown, ROOT / "docs")


def inside(text: str, folder: Path) -> str:
    """Markdown of a file in `folder` with its links changed into links of the site.

    A link to a file that the site does not have, such as a program, becomes its text.
    """

    def changed(found: re.Match) -> str:
        words, target, rest = found.groups()
        path, _, anchor = target.partition("#")
        if "://" in target or not path:
            return found.group(0)
        place = (folder / path).resolve()
        if not place.exists():
            return found.group(0)  # MkDocs says so
        name = str(place.relative_to(ROOT))
        page = next((page for page, source in SHOWN.items() if source == name), name.removeprefix("docs/"))
        if page == name:
            return words
        return f"[{words}]({page}{'#' + anchor if anchor else ''}{rest})"

    return LINK.sub(changed, text)


# ---- reference ----------------------------------------------------------------------------------------------------


def reference() -> str:
    """The API reference as Markdown that mkdocstrings fills in."""
    classes = config_classes()
    lines = ["# API reference", "", "The public names, module by module.", ""]
    for module in PUBLIC:
        tree = ast.parse((module_path(module)).read_text(encoding="utf-8"))
        lines += [f"## {module}", "", ast.get_docstring(tree) or "", ""]
        for name in public_names(tree):
            if name.startswith("__"):
                continue
            lines += [f"::: {module}.{name}", "    options:", "      heading_level: 3", ""]
            if name in classes:
                lines[-1:] = ["      members: false", "", *fields_table(name, classes), ""]
    return "\n".join(lines)


def module_path(module: str) -> Path:
    """File of a module or package."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def public_names(tree: ast.Module) -> list[str]:
    """`__all__` of a module.

    Raises:
        ValueError: If the module has none.
    """
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", None) == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    raise ValueError("Expected a module with __all__, from which the reference takes its names.")


def config_classes() -> dict[str, ast.ClassDef]:
    """The config classes of the package by name."""
    found = {}
    for path in sorted(PACKAGE.glob("tuners/**/*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
                found[node.name] = node
    return found


def own_fields(node: ast.ClassDef) -> dict[str, tuple[str, str, str]]:
    """Type, default and help of the fields that a class declares with a help text."""
    fields = {}
    for entry in node.body:
        if not isinstance(entry, ast.AnnAssign) or not isinstance(entry.value, ast.Call):
            continue
        keywords = {keyword.arg: keyword.value for keyword in entry.value.keywords}
        if "metadata" not in keywords:
            continue
        help_text = ast.literal_eval(keywords["metadata"]).get("help", "")
        default = keywords.get("default") or keywords.get("default_factory")
        fields[entry.target.id] = (ast.unparse(entry.annotation), ast.unparse(default) if default else "", help_text)
    return fields


def fields_table(name: str, classes: dict[str, ast.ClassDef]) -> list[str]:
    """Markdown table of a config's fields: its own first, then those of the classes it inherits from."""
    fields: dict[str, tuple[str, str, str]] = {}
    waiting = [name]
    while waiting:
        node = classes.get(waiting.pop(0))
        if node is None:
            continue
        fields = fields | {field: row for field, row in own_fields(node).items() if field not in fields}
        waiting += [base.id for base in node.bases if isinstance(base, ast.Name)]
    rows = ["| Field | Type | Default | |", "|---|---|---|---|"]
    for field, (kind, default, help_text) in fields.items():
        cells = (f"`{field}`", f"`{kind}`", f"`{default}`", help_text.replace("|", "\\|"))
        rows.append(f"| {' | '.join(cells)} |")
    return rows if fields else []
