"""Render docs/cost.md from docs/results/cost.json, which examples/benchmarks/cost.py writes: `python docs/render/cost.py`.

`--check` only compares.
"""

import argparse
import sys
from pathlib import Path

from peft_vprompt.experiments.cost import ABOUT
from peft_vprompt.experiments.cost_tables import HEADINGS, cost_row
from peft_vprompt.utils.io import atomic_path, read_json


DOCS = Path(__file__).resolve().parents[1]
RESULTS, PAGE = DOCS / "results" / "cost.json", DOCS / "cost.md"

TEXT = """<!-- Written by docs/render/cost.py from docs/results/cost.json: change those. -->
# What a training costs

`vprompt cost` says it for your model and your machine before you start, from a few measured steps:

```bash
vprompt cost --model openai/clip-vit-base-patch16 --method coop,maple --classes 37,100,1000
```

Each row is measured in a process of its own, on images and class names that mean nothing, and counted up to the number of
epochs in the authors' recipe. In Python: `peft_vprompt.experiments.cost.training_costs`.

* **On** images, every step encodes them; on *features*, all images are encoded once and the text side trains alone
  (`vprompt train --cache-features`), for methods that leave the image encoder as it is.
* **Time** counts all steps, without evaluation, and without loading where that takes longer than a step. Methods that learn
  from features of several augmented passes (CLAP, Tip-Adapter) encode these first, which is counted.
* **Memory** is the most that the process had, the model included; on a graphics card, the most that torch had there.
* **Precision**: float32, and bf16 where the machine is faster in it, or the one that `--precision` names.

{measured}

## Loading images

`vprompt train` and `sweep` decode and augment images in as many processes as the step needs (`--workers auto`): a few images
are loaded and classified first, and no process is started where features are cached, where pixels are kept (`--cached`), where
an epoch is short, or where the step takes the cores itself, as on a small CPU. A number says otherwise; `--workers 0` loads in
the training's own process. Batches wait in pinned memory for a graphics card. What an image looks like depends on the seed, the
epoch and the image alone, never on the number of processes.

`--draft-jpeg` lets the decoder leave out what is thrown away when a large JPEG is made small: at a half, a quarter or an eighth
of its size, of twice the model's edge at least. An image of a camera is read in a fraction of the time. Pixels differ a little,
and small crops are less sharp, so it is off unless asked for and never done to images to test on.

[How fast both are](benchmarks.md) is measured by `python -m examples.benchmarks.loader`.

## A loop of your own

Features of class names, of the frozen model and what read-only prompts read are kept between steps while nothing that they
depend on changes, for which all frozen weights of the text encoder are read in every step. `vprompt train` does without, since
nothing writes there; a loop of your own does likewise in `with model.fixed_weights():`.
"""

MEASURED = """This table is for {model} shapes with random weights and {shots} images per class, measured on
{machine} with {threads}; torch {torch}, transformers {transformers}, peft {peft}.
{precision}

{table}

Made by `python -m examples.benchmarks.cost`, which measures the rows that the file lacks."""


def render(report: dict | None) -> str:
    """Return the page; without a report, without its table."""
    measured = "Nothing has been measured for this page yet." if report is None else table_of(report)
    return TEXT.format(measured=measured)


def table_of(report: dict) -> str:
    """Return the table, and what it was measured on."""
    about = report[ABOUT]
    machine, versions = about["environment"]["machine"], about["environment"]["versions"]
    cells = sorted(report["cells"].values(), key=lambda cell: (cell["classes"], cell["precision"], cell["cached"]))
    lines = [HEADINGS, ["---" if heading in ("Method", "On", "Precision") else "--:" for heading in HEADINGS]]
    lines += [cost_row(cell) for cell in cells]
    found = {cell["precision"] for cell in cells}
    lacking = [name for name in ("float32", "bf16") if name not in found]
    is_gpu = about["device"] != "cpu"
    return MEASURED.format(
        model=about["model"],
        shots=about["shots"],
        machine=", ".join(machine["gpus"]) if is_gpu else f"{machine['cpu']}, {machine['cores']} cores",
        threads=f"{machine['torch_threads']} threads",
        precision=f"{' and '.join(lacking)} was not measured, as this machine does not compute in it."
        if lacking
        else "",
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
    new = render(read_json(RESULTS, missing_ok=True))
    if check:
        return int(not PAGE.is_file() or new != PAGE.read_text(encoding="utf-8"))
    with atomic_path(PAGE) as partial:
        partial.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
