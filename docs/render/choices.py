"""Write vprompt/choices.json, what the help texts say about the package: `python docs/render/choices.py`.

`--check` only compares. The command line shows its help without importing the package, so names and defaults are copied
from the package's tables when these change.
"""

import argparse
import json
import sys
from dataclasses import MISSING, fields
from pathlib import Path


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from peft_vprompt.convert import LAYOUTS
from peft_vprompt.data import DataOptions
from peft_vprompt.data.label_noise import KINDS
from peft_vprompt.experiments import noise_study
from peft_vprompt.experiments.grid_search import BASE_RATES, WEIGHT_DECAYS
from peft_vprompt.experiments.models import DEMO_CHANGES
from peft_vprompt.experiments.pseudo_labels import SELECTORS
from peft_vprompt.experiments.supervision import FALSE_POSITIVE
from peft_vprompt.experiments.templates import NAMES as TEMPLATES
from peft_vprompt.losses import LOSSES
from peft_vprompt.tuners.base.registry import METHODS
from peft_vprompt.utils.io import atomic_path


FILE = ROOT / "vprompt" / "choices.json"


def method_rows() -> dict[str, dict]:
    """Read the method table: title, what is learned, paper and whether it moves to new classes and is a baseline, by name."""
    return {
        name: {
            "title": spec.title,
            "learns": spec.learns,
            "paper": spec.paper.citation,
            "link": spec.paper.link,
            "new_classes": spec.new_classes,
            "baseline": spec.is_baseline,
        }
        for name, spec in METHODS.items()
    }


def data_rows() -> dict[str, dict]:
    """Read the fields of `DataOptions`: help text and default."""
    return {
        field.name: {
            "help": field.metadata["help"],
            "default": None if field.default is MISSING else field.default,
        }
        for field in fields(DataOptions)
    }


def choices() -> dict:
    """Collect all that the help texts need."""
    return {
        "methods": method_rows(),
        "demo_methods": list(DEMO_CHANGES),
        "study_methods": list(noise_study.METHODS),
        "linear_probe": noise_study.LINEAR_PROBE,
        "convertible": list(LAYOUTS),
        "losses": list(LOSSES),
        "noise_kinds": [*KINDS, FALSE_POSITIVE],
        "selectors": list(SELECTORS),
        "templates": list(TEMPLATES),
        "base_rates": list(BASE_RATES),
        "weight_decays": list(WEIGHT_DECAYS),
        "data": data_rows(),
    }


def render() -> str:
    """The file's text."""
    return json.dumps(choices(), indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Write the file, or with --check say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare; exit status 1 if the file is stale")
    check = parser.parse_args().check
    new = render()
    if check:
        return int(not FILE.is_file() or new != FILE.read_text(encoding="utf-8"))
    with atomic_path(FILE) as partial:
        partial.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
