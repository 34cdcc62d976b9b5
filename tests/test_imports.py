"""Imports inside the package point downward, run in no circle, and leave the package's face alone.

The source is read, not run, so imports inside functions and those for type checkers alone (`TYPE_CHECKING`) count too.
"""

import ast
from pathlib import Path

import pytest

import peft_vprompt


#: The floors from the ground up. A module imports from its own floor and those below.
FLOORS = (
    ("errors", "version"),
    ("utils",),
    ("losses",),
    ("data",),
    ("metrics",),
    ("core",),
    ("backbones",),
    ("prompts",),
    ("readouts",),
    ("models",),
    ("tuners",),
    ("peft_models",),
    ("training",),
    ("demo",),
    ("experiments",),
    ("convert",),
    ("export",),
    ("app",),
    ("__main__",),
)
#: Imports that break the order and are still there. One that has gone must go from here, too.
ALLOWED_UPWARD: set[tuple[str, str]] = set()
#: Modules that import each other, all of a circle in one set.
ALLOWED_CIRCLES: set[frozenset[str]] = set()
#: Modules that import names from the package's face.
ALLOWED_FACE: set[str] = set()


class Package:
    """The modules of a package on disk and what each imports of the others.

    Attributes:
        imports: name of a module -> names of the modules it imports; "" is the package's face. Names are relative to
            the package, and a folder's name stands for its `__init__`.
    """

    def __init__(self, folder: Path):
        self.name = folder.name
        self.files = {self._module(path.relative_to(folder)): path for path in sorted(folder.rglob("*.py"))}
        self.imports = {name: self._imports(name, path) for name, path in self.files.items()}

    @staticmethod
    def _module(path: Path) -> str:
        return ".".join(path.with_suffix("").parts).removesuffix("__init__").removesuffix(".")

    def _imports(self, name: str, path: Path) -> set[str]:
        found = set()
        package = [self.name, *name.split(".")] if name else [self.name]
        if path.name != "__init__.py":
            package = package[:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets = [alias.name.split(".") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                start = package[: len(package) - node.level + 1] if node.level else []
                start = [*start, *(node.module.split(".") if node.module else [])]
                # `from folder import name`: a module of that folder where there is one, else what its `__init__` has.
                targets = [[*start, alias.name] for alias in node.names]
                targets = [target if self._has(target) else start for target in targets]
            else:
                continue
            found |= {".".join(target[1:]) for target in targets if target[0] == self.name}
        assert found <= self.files.keys(), f"{name} imports modules that are not there: {found - self.files.keys()}"
        return found - {name}

    def _has(self, target: list[str]) -> bool:
        return target[0] == self.name and ".".join(target[1:]) in self.files

    def upward(self) -> set[tuple[str, str]]:
        """Pairs of modules of which the first imports the second and stands on a lower floor."""
        return {
            (name, other)
            for name, others in self.imports.items()
            for other in others
            if name and other and floor(other) > floor(name)
        }

    def circles(self) -> set[frozenset[str]]:
        """Sets of modules of which each can be reached from each by imports."""
        reached = {name: self._reach(name) for name in self.imports}
        return {
            frozenset({name, *(other for other in others if name in reached[other])})
            for name, others in reached.items()
            if name in others
        }

    def _reach(self, name: str) -> set[str]:
        reached, waiting = set(), [*self.imports[name]]
        while waiting:
            if (module := waiting.pop()) not in reached:
                reached.add(module)
                waiting += self.imports[module]
        return reached

    def of_the_face(self) -> set[str]:
        """Modules that import names from the package's own `__init__`."""
        return {name for name, others in self.imports.items() if "" in others}


def floor(module: str) -> int:
    """The number of a module's floor."""
    top = module.partition(".")[0]
    return next(index for index, names in enumerate(FLOORS) if top in names)


@pytest.fixture(scope="module")
def package() -> Package:
    return Package(Path(peft_vprompt.__file__).parent)


def check(found: set, allowed: set, what: str) -> None:
    assert not (new := found - allowed), f"{what}: {new}"
    assert not (gone := allowed - found), f"no longer there, so take them from the list in this file: {gone}"


def test_every_module_has_a_floor(package):
    known = {name for names in FLOORS for name in names}
    assert {name.partition(".")[0] for name in package.files if name} == known


def test_imports_point_downward(package):
    check(package.upward(), ALLOWED_UPWARD, "imports from a higher floor")


def test_imports_run_in_no_circle(package):
    check(package.circles(), ALLOWED_CIRCLES, "modules that import each other")


def test_nothing_inside_imports_the_face_of_the_package(package):
    check(package.of_the_face(), ALLOWED_FACE, f"modules that import names from {package.name}/__init__.py")


class TestTheReader:
    """The tests above see what they are there for."""

    @pytest.fixture
    def write(self, tmp_path):
        def build(**sources) -> Package:
            for name, source in ({"__init__": "", "core/__init__": "", "data/__init__": ""} | sources).items():
                path = tmp_path / "toy" / f"{name}.py"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(source)
            return Package(tmp_path / "toy")

        return build

    @pytest.mark.parametrize(
        "source",
        [
            "from ..core import loop",
            "from ..core.loop import run",
            "from toy.core.loop import run",
            "import toy.core.loop",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..core.loop import run",
            "def f():\n    from ..core.loop import run",
        ],
    )
    def test_upward(self, source, write):
        package = write(**{"core/loop": "", "data/images": source})
        assert package.upward() == {("data.images", "core.loop")}
        assert not package.circles() and not package.of_the_face()

    def test_downward_and_outside_are_fine(self, write):
        package = write(**{"core/loop": "import torch\nfrom ..data import images\nfrom . import mask", "core/mask": "",
                           "data/images": "from torch import nn"})  # fmt: skip
        assert package.imports["core.loop"] == {"data.images", "core.mask"}
        assert not package.upward() and not package.circles()

    def test_circle(self, write):
        package = write(**{"core/a": "from .b import x", "core/b": "from . import c", "core/c": "from .a import y",
                           "core/d": "from .a import x"})  # fmt: skip
        assert package.circles() == {frozenset({"core.a", "core.b", "core.c"})}

    @pytest.mark.parametrize("source", ["from .. import Config", "from toy import Config", "import toy"])
    def test_face(self, source, write):
        assert write(**{"data/images": source}).of_the_face() == {"data.images"}

    def test_submodules_are_not_the_face(self, write):
        package = write(**{"data/images": "from .. import errors\nfrom . import NAMES", "errors": ""})
        assert package.imports["data.images"] == {"errors", "data"} and not package.of_the_face()

    def test_a_list_that_is_too_long(self):
        with pytest.raises(AssertionError, match="no longer there"):
            check(set(), {("data.images", "core.loop")}, "imports from a higher floor")
