"""Render docs/cost.md from docs/results/cost.json, which examples/benchmarks/cost.py writes: `python docs/render/cost.py`.

`--check` only compares.
"""

import argparse
import json
import sys
from pathlib import Path

from peft_vprompt.experiments.cost import ABOUT
from peft_vprompt.experiments.cost_tables import HEADINGS, cost_row
from peft_vprompt.utils.io import atomic_path


DOCS = Path(__file__).resolve().parents[1]
RESULTS, PAGE = DOCS / "results" / "cost.json", DOCS / "cost.md"

TEXT = """<!-- Written by docs/render/cost.py from docs/results/cost.json: change those. -->
# What a training costs

`vprompt cost` says it for your model and your machine before you start, from a few measured steps:

```bash
vprompt cost --model openai/clip-vit-base-patch16 --method coop,maple --classes 37,100,1000
```

The table is for {model} shapes with random weights and {shots} images per class, by the authors' recipes, measured on
{machine} with {threads}; torch {torch}, transformers {transformers}, peft {peft}.
{precision}

* **On** images, every step encodes them; on *features*, all images are encoded once and the text side trains alone
  (`vprompt train --cache-features`), for methods that leave the image encoder as it is.
* **Time** counts all steps, without evaluation, and without loading where that takes longer than a step. Methods that learn
  from features of several augmented passes (CLAP, Tip-Adapter) encode these first, which is counted.
* **Memory** is the most that the process had, the model included; each row is a process of its own.

{table}

Made by `python -m examples.benchmarks.cost`, which measures the rows that the file lacks.
"""


def render(report: dict) -> str:
    """Return the page."""
    about = report[ABOUT]
    machine, versions = about["environment"]["machine"], about["environment"]["versions"]
    cells = sorted(report["cells"].values(), key=lambda cell: (cell["classes"], cell["precision"], cell["cached"]))
    lines = [HEADINGS, ["---" if heading in ("Method", "On", "Precision") else "--:" for heading in HEADINGS]]
    lines += [cost_row(cell) for cell in cells]
    found = {cell["precision"] for cell in cells}
    lacking = [name for name in ("float32", "bf16") if name not in found]
    is_gpu = about["device"] != "cpu"
    return TEXT.format(
        model=about["model"],
        shots=about["shots"],
        machine=", ".join(machine["gpus"]) if is_gpu else f"{machine['cpu']}, {machine['cores']} cores",
        threads=f"{machine['torch_threads']} threads",
        precision=f"{' and '.join(lacking)} was not measured: this machine does not compute in it." if lacking else "",
        torch=versions["torch"],
        transformers=versions["transformers"],
        peft=versions["peft"],
        table="\n".join(f"| {' | '.join(line)} |" for line in lines),
    )


def main() -> int:
    """Write the page, or with --check say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare; exit status 1 if the page is stale")
    check = parser.parse_args().check
    new = render(json.loads(RESULTS.read_text(encoding="utf-8")))
    if check:
        return int(not PAGE.is_file() or new != PAGE.read_text(encoding="utf-8"))
    with atomic_path(PAGE) as partial:
        partial.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
