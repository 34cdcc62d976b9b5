"""What the help texts say about the package: names to choose from and defaults, read without importing the package.

`choices.json` is written by `python docs/render/choices.py` from the package's own tables, and a test compares the two.
A value that a user gives is checked by the package itself, never against these names.
"""

import json
from pathlib import Path


_CHOICES = json.loads(Path(__file__).with_name("choices.json").read_text(encoding="utf-8"))

#: Methods by name: `title`, `learns` (what is trained, in a few words), `paper`, `new_classes` (whether what is learned
#: on some classes can be used on others) and `baseline` (whether it makes an image classifier of any model).
METHODS: dict[str, dict] = _CHOICES["methods"]
#: Methods that `vprompt demo` trains.
DEMO_METHODS: list[str] = _CHOICES["demo_methods"]
#: Methods that `vprompt noise-study` compares; `LINEAR_PROBE` is the one among them that `vprompt train` does not know.
STUDY_METHODS: list[str] = _CHOICES["study_methods"]
LINEAR_PROBE: str = _CHOICES["linear_probe"]
#: Methods whose authors' checkpoints can be converted.
CONVERTIBLE: list[str] = _CHOICES["convertible"]
LOSSES: list[str] = _CHOICES["losses"]
#: Kinds of label noise.
NOISE_KINDS: list[str] = _CHOICES["noise_kinds"]
#: Ways to choose among images that zero-shot labelled.
SELECTORS: list[str] = _CHOICES["selectors"]
#: Names of templates around class names.
TEMPLATES: list[str] = _CHOICES["templates"]
#: Grid of `vprompt sweep`.
BASE_RATES: list[float] = _CHOICES["base_rates"]
WEIGHT_DECAYS: list[float] = _CHOICES["weight_decays"]
#: Fields of `DataOptions` by name: `help` and `default`.
DATA: dict[str, dict] = _CHOICES["data"]
