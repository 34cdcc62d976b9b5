"""Patches of modules that may not have been imported yet, and that nobody should have to wait for."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Mapping
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any


class PatchOnImport(MetaPathFinder):
    """Calls a function with a module as soon as that is imported, once.

    Args:
        name: full name of the module.
        patch: what to do with it.
    """

    def __init__(self, name: str, patch: Callable[[ModuleType], None]):
        self.name = name
        self.patch = patch

    def find_spec(self, fullname, path, target=None):
        """Find the module as the others do, and call the function after it was run."""
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                self.patch(module)

            spec.loader.exec_module = exec_module
        return spec


def when_imported(name: str, patch: Callable[[ModuleType], None]) -> None:
    """Call `patch` with a module: now if it is imported already, else when it is."""
    if name in sys.modules:
        patch(sys.modules[name])
    else:
        sys.meta_path.insert(0, PatchOnImport(name, patch))


def patch_functions(owner: type | ModuleType, patches: Mapping[str, Callable[[Callable], Callable]]) -> None:
    """Put another function in the place of some of a class or a module: what `patches` makes of the original, by name.

    Where this was done before, the original is patched anew.
    """
    for name, patch in patches.items():
        original: Any = getattr(owner, name)
        original = getattr(original, "unpatched", original)
        patched: Any = functools.wraps(original)(patch(original))
        patched.unpatched = original
        setattr(owner, name, patched)
