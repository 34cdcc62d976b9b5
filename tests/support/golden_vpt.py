"""The reference cases of visual prompt tuning: base models, inputs, and tensors of the authors' code."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from peft_vprompt.convert import LAYOUTS


TOLERANCE = {"atol": 2e-5, "rtol": 0}


@dataclass
class Reference:
    """One case: the recipe that rebuilds its base model, what the authors' code gave, and how it was run."""

    recipe: object
    tensors: dict[str, torch.Tensor]
    facts: dict

    @classmethod
    def load(cls, folder: Path, recipe, name: str) -> Reference:
        """The case `name`; skips where this transformers release names parameters, and so fills them, otherwise."""
        facts = json.loads((folder / f"{name}.json").read_text())
        tensors = load_file(folder / f"{name}.safetensors")
        if facts["param_values_in"] != name:
            others = load_file(folder / f"{facts['param_values_in']}.safetensors")
            tensors |= {key: value for key, value in others.items() if key.startswith("param.")}
        reference = cls(recipe, tensors, facts)
        expected = json.loads((folder / "fingerprint.json").read_text())["fingerprint"][facts["model"]]
        if recipe.fingerprint(reference.build()) != expected:
            pytest.skip("this transformers release names the parameters otherwise, so the reference weights differ")
        return reference

    def build(self) -> torch.nn.Module:
        """The base model."""
        kind = self.facts["model"]
        return self.recipe.build_vit() if kind == "vit" else self.recipe.build_swin(int(kind[-1]))

    def inputs(self) -> dict[str, torch.Tensor]:
        """Images and labels."""
        pixel_values, labels = self.recipe.make_inputs(self.facts["model"])
        return {"pixel_values": pixel_values, "labels": labels}

    def section(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors `<name>.<authors' key>`, by the authors' key."""
        return {k.removeprefix(f"{name}."): v for k, v in self.tensors.items() if k.startswith(f"{name}.")}


def load_recipe(folder: Path, name: str = "recipe"):
    """Import a recipe of reference cases as a module."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Fail where two tensors differ by more than the tolerance of all reference cases."""
    torch.testing.assert_close(ours, theirs.float(), **TOLERANCE)


def assert_equal_to_authors(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Compare tensors by our parameters' names with the authors', by theirs; none may be left over."""
    layout = LAYOUTS["vpt"](theirs)
    named = layout.tensors
    if layout.complete is not None:
        named |= layout.complete(layout.config_class(**layout.values), None)
    assert len(ours) == len(named)
    for (place, name), tensor in named.items():
        middle = "classifier.modules_to_save.default" if place == "head" else "visual_prompt_learner.default"
        close(next(value for key, value in ours.items() if key.endswith(f"{middle}.{name}")), tensor)


def sgd_losses(model: torch.nn.Module, inputs: dict[str, torch.Tensor], facts: dict) -> torch.Tensor:
    """The loss before each step of SGD, always on the same batch, and the one after the last."""
    settings = {key: facts["sgd"][key] for key in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], **settings)
    losses = []
    for _ in range(facts["sgd"]["steps"]):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    with torch.no_grad():
        return torch.stack([*losses, model(**inputs).loss])
