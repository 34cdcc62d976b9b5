"""Templates around class names that CLIP's authors published: what zero-shot is compared in."""

from __future__ import annotations

from pathlib import Path

from ..utils.io import read_json


#: The one template of CLIP's paper.
SINGLE = "a photo of a {}."

#: Ensembles of templates by name; `prompt_templates.json` names their source.
ENSEMBLES: dict[str, list[str]] = read_json(Path(__file__).with_suffix(".json"))["templates"]
