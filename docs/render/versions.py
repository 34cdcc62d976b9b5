"""Render docs/versions.md from docs/results/versions.json, which examples/studies/versions.py (`./dev test-versions`) writes.

python docs/render/versions.py
"""

import json
import sys
from itertools import product
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from examples.studies.versions import PYTHONS, RESULTS, SETS
from peft_vprompt.utils.io import atomic_path


PAGE = ROOT / "docs" / "versions.md"

TEXT = """<!-- Written by docs/render/versions.py from docs/results/versions.json: change those. -->
# Versions

The lowest releases are those that `pyproject.toml` allows, the newest those that pip found when this ran. The core tests of
each pair of a Python and a set of releases:

| Python | Releases | peft | transformers | torch | Passed | Failed | Skipped |
|---|---|---|---|---|--:|--:|--:|
{rows}
{failed}
`./dev test-versions` runs them all again in environments of their own, `./dev test-versions --python 3.13 --sets newest` some
of them, on {machine} here. A Python that a machine lacks is told and skipped.

`constraints.txt` pins the set with which all tests run (`./dev test`), on Python 3.11. `./dev test-oldest` (or
`make test-oldest`) runs the core tests with the lowest peft and transformers on the pinned torch.

transformers 5.9 is the oldest release whose models are built as those of today, two places apart. Both changed in
5.18, and a branch of a few lines remains for each:

* DINOv2 (with registers or without): before 5.18 the attention module lies inside another one, and its projections have
  other names. Its layers hand nothing down to the attention function, so read-only visual prompts are refused.
* Swin v2: before 5.18 the mask of shifted windows is made on the CPU, and moved.

With transformers 5.9 the command line needs torchvision: `AutoImageProcessor`, by which it reads a model's image
processor, asks for it before 5.10 even where the processor works without.

transformers 5.24 asks for peft 0.22 in its own methods for adapters (`model.add_adapter`, `set_adapter`, `delete_adapter` and
their like), of which pip found no release when this ran; their tests are skipped there. `get_peft_model` and `PeftModel` do not ask.

Before 5.18 `model.load_adapter` of transformers finds no trained copies of the model's own modules (heads, norms, a text encoder)
in an adapter, and reports them as missing. `PeftModel.from_pretrained` finds them.

Before 2.12 torch does not say whether a processor computes in bfloat16, and `--precision auto` stays float32 there; `bf16` takes it.

torch 2.6 does not trace the context managers in PEFT's call, so `torch.compile(model, fullgraph=True)` needs a later one.

Classes are looked up by name: one that a release lacks is only missing from the list.
"""


def render(results: dict) -> str:
    """Return the page."""
    rows, failed = [], []
    for python, name in product(PYTHONS, SETS):
        run = results["runs"].get(f"{python} {name}", {"not_run": "not tried yet"})
        if "not_run" in run:
            rows.append(f"| {python} | {name} | – | – | – | {run['not_run']} | | |")
            continue
        versions = run["versions"]
        counts = f"{run['passed']} | {len(run['failed'])} | {run['skipped']}"
        releases = " | ".join(versions[package] for package in ("peft", "transformers", "torch"))
        rows.append(f"| {versions['python']} | {name} | {releases} | {counts} |")
        failed += [f"* Python {python}, {name}: `{test}`" for test in run["failed"]]
    listed = ["", "What failed:", "", *failed, ""] if failed else [""]
    return TEXT.format(rows="\n".join(rows), failed="\n".join(listed), machine=results["machine"])


def main() -> None:
    """Write the page."""
    with atomic_path(PAGE) as partial:
        partial.write_text(render(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
