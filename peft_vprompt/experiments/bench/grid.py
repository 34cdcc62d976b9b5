"""The grid of a bench: methods x tasks x shots x seeds, and zero-shot once for every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...tuners.base.registry import METHODS, get_method
from ...tuners.base.spec import MethodSpec
from ...utils.digests import digest_json
from ...utils.fields import check_fields
from ...utils.io import read_json
from ..settings import RECIPE_CHANGES, SEED, Settings, parse_method, safe_name
from .cell import Cell
from .protocols import Protocol
from .tasks import BenchTask


#: What is measured once for every task, and stands beside every accuracy.
ZERO_SHOT = "zero-shot"

#: Stands for every method that learns from class names without a teacher.
ALL = "all"


@dataclass(frozen=True)
class Grid:
    """What to run.

    Attributes:
        protocol: what is trained on what and tested on what.
        tasks: the images to train on.
        methods: method names; `coop:num_virtual_tokens=4:epochs=5` sets fields of the method's config and of its recipe.
        base: settings that all runs share; its method, shots, seed and classes are replaced.
        shots: images per class; default: the protocol's.
        seeds: seeds of the shots, of the prompts' first values and of the order of images.
        targets: further tasks to test on, of a transfer.
        recipes: changes by method, as what follows the colon; what follows it goes before.
        max_steps: optimiser steps that bound every training, in whole epochs; None for the length of the recipe.
        zero_shot: whether the base model has a text tower, without which there is nothing to measure without training.

    Raises:
        ValueError: nothing to run, a value of another type or out of range, an unknown method, or one that the protocol has
            no use for.
    """

    protocol: Protocol
    tasks: tuple[BenchTask, ...]
    methods: tuple[str, ...]
    base: Settings = field(default_factory=lambda: Settings(ZERO_SHOT))
    shots: tuple[int, ...] = field(default=(), metadata={"min": 1})
    seeds: tuple[int, ...] = field(default=(1, 2, 3), metadata=SEED)
    targets: tuple[BenchTask, ...] = ()
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    max_steps: int | None = field(default=None, metadata={"min": 1})
    zero_shot: bool = True

    def __post_init__(self):
        object.__setattr__(self, "shots", tuple(self.shots) or self.protocol.shots)
        check_fields(self)
        for name in ("tasks", "methods", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"Expected at least one of {name}. Received: {name}=().")
        run = {parse_method(method)[0] for methods in self._methods() for method in methods}
        if unused := [name for name in self.recipes if name not in run]:
            raise ValueError(f"Expected recipes of the methods. Received: {unused[0]!r}, which is none of them.")

    def cells(self) -> dict[str, Cell]:
        """Return every cell by its name, which is a path; all of the first seed come first.

        Raises:
            ValueError: a value that a method's settings refuse.
        """
        untrained, trained = self._methods()
        cells = {}
        for task in self.tasks:
            for method in untrained:
                cells |= self._cell(task, method, self.shots[0], self.seeds[0])
        for seed in self.seeds:
            for task in self.tasks:
                for shots in self.shots:
                    for method in trained:
                        cells |= self._cell(task, method, shots, seed)
        return cells

    def require(self, method: str | None) -> None:
        """Refuse a method to compare others with that is not run.

        Raises:
            ValueError: names those that are.
        """
        require_method(method, [each for methods in self._methods() for each in methods])

    @property
    def book(self) -> str:
        """Name of the grid by what it consists of, whatever folder it is run in."""
        return digest_json({name: cell.description for name, cell in self.cells().items()})

    def _methods(self) -> tuple[list[str], list[str]]:
        """Return the methods that train nothing, zero-shot first, and the others."""
        asked: dict[str, None] = {}
        for method in [*([ZERO_SHOT] if self.zero_shot else []), *self.methods]:
            asked |= dict.fromkeys(learning_from_names(self.protocol) if method == ALL else [method])
        specs = {method: get_method(parse_method(method)[0]) for method in asked}
        for spec in specs.values():
            _check(spec, self.protocol)
        return (
            [method for method, spec in specs.items() if not spec.trains],
            [method for method, spec in specs.items() if spec.trains],
        )

    def _cell(self, task: BenchTask, method: str, shots: int, seed: int) -> dict[str, Cell]:
        name, changes = parse_method(method)
        spec = get_method(name)
        changes = {**self.recipes.get(name, {}), **changes}
        recipe: dict[str, Any] = {key: changes.pop(key) for key in RECIPE_CHANGES if key in changes}
        if spec.recipe is None and not spec.is_baseline:  # nothing is trained, and a change for all is not for it
            recipe = dict.fromkeys(RECIPE_CHANGES) | recipe
        own: dict[str, Any] = {"method": name, "shots": shots, "seed": seed, "config": self.base.config | changes}
        base_novel = self.protocol.base_novel and spec.new_classes
        own.update(recipe, protocol=self.protocol.name if task.benchmark else None)
        settings = replace(self.base, **own, base_novel=base_novel)
        place = f"{task.name}/{_in_path(method)}" + (f"/{shots}-shots/seed-{seed}" if spec.trains else "")
        return {place: Cell(self.protocol, task, method, settings, self.targets, self.max_steps)}


def require_method(method: str | None, run: Sequence[str]) -> None:
    """Refuse a method to compare others with that is none of those that were run.

    Raises:
        ValueError: names those that were.
    """
    if method is not None and method not in run:
        raise ValueError(f"Expected a method of the bench to compare with: {', '.join(run)}. Received: {method!r}.")


def learning_from_names(protocol: Protocol) -> list[str]:
    """Return the methods that learn from class names without a teacher, those that the protocol has a use for."""
    able = [spec for spec in METHODS.values() if not spec.is_baseline and spec.trains and not _needs_teacher(spec)]
    return [spec.name for spec in able if spec.new_classes or not (protocol.transfers and protocol.new_classes)]


def read_recipes(path: str | Path) -> dict[str, dict]:
    """Read changes by method from a JSON file: `{"maple": {"learning_rate": 0.002, "prompt_depth": 3}}`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else.
    """
    found = read_json(path)
    if not isinstance(found, dict) or not all(isinstance(changes, dict) for changes in found.values()):
        raise ValueError(f"Expected an object of changes by method in {str(path)!r}. Received: {str(found)[:80]}.")
    for name in found:
        get_method(name)
    return found


def _check(spec: MethodSpec, protocol: Protocol) -> None:
    """Refuse a method that the protocol cannot test.

    Raises:
        ValueError: says why, and what to take.
    """
    if _needs_teacher(spec):
        raise ValueError(
            f"{spec.title} learns from a teacher, of which a bench has none. Leave it out; `vprompt train --teacher` runs it."
        )
    if protocol.transfers and protocol.new_classes and not spec.new_classes:
        raise ValueError(
            f"{spec.title} learns its classes one by one and has nothing for those of other data sets. Leave it out, or take "
            "the protocol few-shot."
        )


def _needs_teacher(spec: MethodSpec) -> bool:
    return "teacher_dim" in spec.config_class.__dataclass_fields__


def _in_path(method: str) -> str:
    """Return a method as the name of a folder, another one for every other method."""
    plain = safe_name(method)
    return plain if plain == method else f"{plain}-{digest_json(method, 6)}"
