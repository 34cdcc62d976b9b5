"""The scripts under docs/ that render a page from results, as modules."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType


DOCS = Path(__file__).resolve().parents[2] / "docs"
#: A path of the machine that something was measured on.
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/\w|/(work|tmp|home)")


def load_page(name: str) -> ModuleType:
    """Import `docs/<name>.py`."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_page(page: ModuleType) -> dict:
    """The page is what its results render to; the results name machine and versions and no path. Returns them."""
    text, shown = (path.read_text(encoding="utf-8") for path in (page.RESULTS, page.PAGE))
    results = json.loads(text)
    assert shown == page.render(results)
    assert results["environment"]["machine"]["cpu"] and results["environment"]["versions"]["torch"]
    assert not ABSOLUTE_PATH.search(text + shown)
    return results
