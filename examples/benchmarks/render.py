"""Write `docs/benchmarks.md`, its plots and the speed tables of other pages from the committed JSON files.

python -m examples.benchmarks.render            # --check only compares
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import matplotlib
import typer

from peft_vprompt.utils.io import atomic_path

from .apart import sections_apart
from .cases import EXPERIMENTS, PARTS, TITLES
from .results import ROOT
from .tables import DASH, markdown, number


matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 - after the choice of the backend


RESULTS = ROOT / "docs/results/benchmarks"
PAGE, IMAGES = ROOT / "docs/benchmarks.md", ROOT / "docs/images"
WITH_TABLE = (ROOT / "README.md", ROOT / "docs/how_it_works.md")
REFERENCE = "cpu_float32"

PAGE_TEXT = """# Benchmarks

<!-- Written by `python -m examples.benchmarks.render` from docs/results/benchmarks; do not edit. -->

`examples/benchmarks` times this package against the *plain path*: what the authors' code computes (class prompts padded
to 77 tokens, the context repeated for each class, prompts and images in one masked sequence, CoCoOp one image after
another), written directly on Hugging Face's layers. Both run in one process on the same weights (ViT-B/16 shapes,
random values). Wherever the plain path is timed, outputs and gradients are compared first and have to agree to
{tolerance:.0e} of their largest value; the largest difference of any cell was {worst:.0e}.

```bash
python -m examples.benchmarks.run --tokenizer openai/clip-vit-base-patch16 --class-names names.json
python -m examples.benchmarks.render
```

* **ms** is the median over interleaved repeats, **ratio** the median of plain/ours within the repeats. **Timed** is how
  many threads a cell had and which clock: *processor* is the processor's time, which other work on a shared machine hardly
  moves.
* **Memory** is the peak of one run above the loaded model, each side in a process of its own.
* **Rows** are token rows per layer that pass the feed-forward maps: text + image.
* **x floor** is our time over the time this machine takes for just the matrix products of the tokens that must be
  computed: the linear maps of the layers, forward and, where gradients flow, backward to their inputs. **bf16 x floor** is
  the same in bfloat16.
* **Fewer products** is how many times fewer multiplications our matrix products take than the plain side's: about what a
  ratio could be if both sides did nothing else.
* **Fixed** is a call in `with model.fixed_weights():`; without it each call reads the text encoder's weights to see whether
  they are still those that the kept class features are of, which counts where one image is classified at a time.
* "AMD EPYC" were two processors: one with AVX2 alone, and for *bfloat16 against float32* and the newer methods one with AVX-512
  BF16. No table compares the two.
* **float32 / bf16** above 1 says that the machine is faster in bfloat16, below 1 that it is slower: `--precision auto` tries that.
  The weights are random here, and the cosine of the gradients with them is lower than with trained ones.
* "needs more than", "takes more than": the plain side was not run; the numbers with ~ are estimates from its rows.
* Classes shared out over processes are measured [apart](results/benchmarks/sharding_cpu_float32.json), by
  `python -m examples.benchmarks.sharding`.
* Freed memory is kept by the process on both sides ([why](../README.md#memory-on-cpu-machines)).

{machine}

## Bars

What the package is meant to reach in float32, at 100 classes and four images unless said otherwise. Nothing is
approximated, so a ratio far above the number of times fewer products is out of reach: RPO's 2,400 read-only prompts and CoCoOp's
rows for every image have to be computed, and the frozen image pass is the same on both sides.

{bars}

{sections}

{apart}
"""


def load(folder: Path) -> dict[str, dict]:
    """The files by experiment and device, e.g. `methods_cpu_float32`, in the order of the experiments."""
    paths = [path for name in EXPERIMENTS for path in sorted(folder.glob(f"{name}_*.json"))]
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def time_of(side: dict | None) -> str:
    """Milliseconds, an estimate, or a dash."""
    if side is None:
        return DASH
    if "ms" in side:
        return f"{side['ms']:,.0f}" if side["ms"] >= 100 else f"{side['ms']:.1f}"
    estimate = f"~{side['estimated_ms']:,.0f}; " if "estimated_ms" in side else ""
    return f"{estimate}{side['skipped']}"


def memory_of(side: dict | None) -> str:
    """Megabytes, an estimate, or a dash."""
    if side is None:
        return DASH
    if "peak_bytes" in side:
        return f"{side['peak_bytes'] / 1e6:,.0f}"
    return f"~{side['estimated_bytes'] / 1e6:,.0f}" if "estimated_bytes" in side else DASH


def weights_of(side: dict | None) -> str:
    """Megabytes of the frozen weights, or a dash."""
    return f"{side['weight_bytes'] / 1e6:,.0f}" if side and "weight_bytes" in side else DASH


def rows_of(side: dict | None) -> str:
    """Rows of text and images."""
    rows = (side or {}).get("rows", {})
    return " + ".join(f"{rows[tower]:,.0f}" for tower in ("text", "vision") if tower in rows) or DASH


def worst_agreement(files: dict[str, dict]) -> float:
    """The largest difference of ours and plain in any float32 cell."""
    errors = [
        error
        for file in files.values()
        if file["inputs"]["dtype"] == "float32"
        for cell in file["cells"].values()
        for error in (cell.get("agreement") or {}).values()
    ]
    return max(errors, default=float("nan"))


#: Sides by their columns.
SIDES = ("ours", "plain", "bare", "one", "compiled", "transformers", "open_clip", "bf16", "fixed")


def cell_row(cell: dict, machines: dict[str, str]) -> list[str]:
    """One line of an experiment's table; `machines` has letters by environment, where there are several."""
    case, sides = cell["case"], cell["sides"]
    ours, plain, bare, one, compiled, theirs, open_clip, bf16, fixed = (sides.get(name) for name in SIDES)
    many = f"{case['adapters']} x " if case["adapters"] > 1 else ""
    title, tokens = TITLES[case["method"]], case["tokens"]
    if tokens:
        title = f"{title.partition(' (')[0]}, {tokens} token{'s' * (tokens > 1)}"
    return [
        many + title,
        str(case["classes"]),
        str(case["batch"]),
        time_of(ours),
        time_of(plain),
        number(cell.get("ratio"), ".1f") + ("x" if "ratio" in cell else ""),
        time_of(theirs),
        number(cell.get("transformers_ratio"), ".1f") + ("x" if "transformers_ratio" in cell else ""),
        time_of(open_clip),
        number(cell.get("open_clip_ratio"), ".1f") + ("x" if "open_clip_ratio" in cell else ""),
        time_of(bare),
        number(cell.get("bare_ratio"), ".3f"),
        time_of(fixed),
        number(cell.get("fixed_ratio"), ".3f"),
        time_of(one),
        number(cell.get("one_ratio"), ".2f"),
        time_of(compiled),
        number(cell.get("compiled_ratio"), ".2f"),
        number(compiled.get("warm_up_seconds"), ".0f") if compiled else DASH,
        time_of(bf16),
        number(cell.get("bf16_ratio"), ".2f") + ("x" if "bf16_ratio" in cell else ""),
        number(cell.get("gradient_cosine"), ".5f"),
        weights_of(ours),
        weights_of(bf16),
        memory_of(ours),
        memory_of(plain),
        memory_of(bf16),
        number(cell.get("products_ratio"), ".1f"),
        rows_of(ours),
        rows_of(plain),
        number(cell.get("floor_ratio"), ".2f"),
        number(cell.get("bf16_floor_ratio"), ".2f"),
        number(cell.get("repeats"), "d"),
        f"{cell['threads']}, {cell['clock']}",
        machines.get(cell["environment"], DASH),
    ]


HEADINGS = (
    "Method",
    "Classes",
    "Batch",
    "Ours, ms",
    "Plain, ms",
    "Ratio",
    "transformers, ms",
    "transformers / ours",
    "open_clip, ms",
    "open_clip / ours",
    "Bare, ms",
    "Ours / bare",
    "Fixed weights, ms",
    "Fixed / bare",
    "One, ms",
    "Ours / one",
    "Compiled, ms",
    "Ours / compiled",
    "Compiling, s",
    "bf16, ms",
    "float32 / bf16",
    "Cosine of gradients",
    "Weights, MB",
    "Weights in bf16, MB",
    "Ours, MB",
    "Plain, MB",
    "bf16, MB",
    "Fewer products",
    "Rows",
    "Plain rows",
    "x floor",
    "bf16 x floor",
    "Repeats",
    "Timed",
    "Machine",
)


def section(name: str, file: dict, machines: dict[str, str]) -> str:
    """One experiment on one device: a table for each part."""
    device = name.removeprefix(f"{file['experiment']}_")
    parts = [f"## {file['title']}" + ("" if device == REFERENCE else f" ({device.replace('_', ', ')})")]
    for part, about in PARTS.items():
        cells = [cell for cell in file["cells"].values() if cell["case"]["part"] == part]
        if cells:
            parts += [f"One run: {about}.", markdown(HEADINGS, [cell_row(cell, machines) for cell in cells])]
    if (image := plot_path(name)) is not None and image.is_file():
        parts.append(f"![{file['title']}](images/{image.name})")
    return "\n\n".join(parts)


def bars_table(files: dict[str, dict]) -> str:
    """Every bar with the number that was measured for it."""
    rows = []
    for file in files.values():
        for bar in file["bars"]:
            verdict = {True: "reached", False: "**missed**", None: "not measured"}[bar["passed"]]
            is_bytes = bar["metric"] == "process_bytes"
            limit, value = (
                DASH if one is None else f"{one / 1e9:.2f} GB" if is_bytes else f"{one:.2f}x"
                for one in (bar["limit"], bar["value"])
            )
            fewer = file["cells"].get(bar["case"], {}).get("products_ratio") if bar["metric"] == "ratio" else None
            at_least = ("≥ " if bar["at_least"] else "≤ ") + limit
            rows.append([bar["text"], at_least, value, number(fewer, ".2f") + ("x" if fewer else ""), verdict])
    return markdown(("Bar", "Limit", "Measured", "Fewer products", ""), rows) if rows else "None measured."


def machine_letters(files: dict[str, dict]) -> dict[str, str]:
    """A letter for each machine by the environments that name it; nothing where there is one machine."""
    names = {key: machine_name(each) for file in files.values() for key, each in file["environments"].items()}
    distinct = list(dict.fromkeys(names.values()))
    return {key: "ABCDEFGH"[distinct.index(name)] for key, name in names.items()} if len(distinct) > 1 else {}


def machine_name(environment: dict) -> str:
    """What a machine computes with."""
    machine = environment["machine"]
    return ", ".join(machine["gpus"]) or f"{machine['cpu']}, {machine['cores']} cores"


def machine_text(files: dict[str, dict]) -> str:
    """Where and with which versions, and how much of the machine the measurements had."""
    letters = machine_letters(files)
    commits: dict[str, set[str]] = {}
    for file in files.values():
        for cell in file["cells"].values():
            environment = file["environments"][cell["environment"]]
            versions = environment["versions"]
            packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "peft"))
            letter = f"{letters[cell['environment']]}: " if letters else ""
            threads = environment["machine"]["torch_threads"]
            line = f"{letter}{machine_name(environment)} (threads used: {threads}); {packages}"
            commits.setdefault(line, set()).add(cell["commit"])
    lines = [f"{line}; commit {', '.join(sorted(found))}." for line, found in sorted(commits.items())]
    return "Measured on\n\n" + "\n".join(f"* {line}" for line in lines)


# ---- plots ----------------------------------------------------------------------------------------------------------


def plot_path(name: str) -> Path | None:
    """Where the plot of a file goes; None for experiments without one."""
    return IMAGES / f"benchmarks_{name}.png" if name.split("_cpu_")[0] in PLOTS and REFERENCE in name else None


def plot_methods(file: dict, figure) -> None:
    """Bars: a training step of each method, ours and plain, at the classes and batch of the first cell."""
    cells = list(file["cells"].values())
    first = [cells[0]["case"][name] for name in ("classes", "batch")]
    cells = [
        cell for cell in cells if [cell["case"][name] for name in ("classes", "batch")] == first and "ratio" in cell
    ]
    axes = figure.subplots()
    for offset, (name, label) in enumerate((("plain", "plain path"), ("ours", "peft_vprompt"))):
        places = [index + 0.4 * offset - 0.2 for index in range(len(cells))]
        bars = axes.bar(places, [cell["sides"][name]["ms"] / 1e3 for cell in cells], 0.4, label=label)
        if name == "ours":
            axes.bar_label(bars, [f"{cell['ratio']:.1f}x" for cell in cells], fontsize=8)
    axes.set_xticks(
        range(len(cells)), [TITLES[cell["case"]["method"]].replace(" (", "\n(") for cell in cells], fontsize=8
    )
    axes.set_ylabel("seconds per training step")
    figure.legend(frameon=False, ncols=2, loc="outside upper center")


def plot_scaling(file: dict, figure) -> None:
    """Lines: time against classes, context length and batch."""
    axes = ("classes", "text"), ("tokens", "text"), ("batch", "step")
    for plot, (name, part) in zip(figure.subplots(1, 3), axes, strict=True):
        cells = [
            cell for cell in file["cells"].values() if cell["case"]["part"] == part and cell["case"][name] is not None
        ]
        cells = [cell for cell in cells if name == "tokens" or cell["case"]["tokens"] is None]
        for side, label in (("plain", "plain path"), ("ours", "peft_vprompt"), ("floor", "matrix products alone")):
            points = sorted(
                (cell["case"][name], cell["sides"][side]["ms"] / 1e3)
                for cell in cells
                if "ms" in cell["sides"].get(side, {})
            )
            if points:
                plot.plot(
                    *zip(*points, strict=True), marker="o", label=label, linestyle=":" if side == "floor" else "-"
                )
        plot.set_xscale("log")
        plot.set_yscale("log")
        plot.set_xlabel({"tokens": "context tokens"}.get(name, name))
    figure.axes[0].set_ylabel("seconds, forward and backward")
    figure.axes[-1].legend(frameon=False, fontsize=8)


PLOTS = {"methods": plot_methods, "scaling": plot_scaling}


def draw(files: dict[str, dict]) -> None:
    """Write the plots."""
    for name, file in files.items():
        if (path := plot_path(name)) is not None:
            figure = plt.figure(figsize=(10, 4), layout="constrained")
            PLOTS[file["experiment"]](file, figure)
            with atomic_path(path) as partial:
                figure.savefig(partial, format="png", dpi=110)
            plt.close(figure)


# ---- pages ----------------------------------------------------------------------------------------------------------


def page(files: dict[str, dict]) -> str:
    """`docs/benchmarks.md`."""
    return PAGE_TEXT.format(
        tolerance=next(iter(files.values()))["tolerance"],
        worst=worst_agreement(files),
        machine=machine_text(files),
        bars=bars_table(files),
        sections="\n\n".join(section(name, files[name], machine_letters(files)) for name in files),
        apart=sections_apart(RESULTS),
    )


def with_table(text: str, files: dict[str, dict]) -> str:
    """A page with a fresh table of ratios between its marks."""
    rows = []
    file = files[f"methods_{REFERENCE}"]
    for key, cell in file["cells"].items():
        if key.endswith("/step/100 classes/batch 4") and "ratio" in cell:
            ours, plain = cell["sides"]["ours"], cell["sides"]["plain"]
            row = [TITLES[cell["case"]["method"]], time_of(ours), time_of(plain), f"{cell['ratio']:.1f}x"]
            place = file["environments"][cell["environment"]]["machine"]["cpu"]
            rows.append([*row, memory_of(ours), memory_of(plain), place])
    headings = ("Training step", "Ours, ms", "Plain path, ms", "Faster", "Ours, MB", "Plain path, MB", "On")
    begin, end = "<!-- speed: generated by examples/benchmarks/render.py -->", "<!-- end of speed -->"
    return re.sub(f"{begin}.*?{end}", f"{begin}\n{markdown(headings, rows)}\n{end}", text, flags=re.DOTALL)


def with_alternatives(text: str, files: dict[str, dict]) -> str:
    """A page with a fresh table of what one would pick instead between its marks, where it has any."""
    begin, end = "<!-- alternatives: generated by examples/benchmarks/render.py -->", "<!-- end of alternatives -->"
    file = files.get(f"alternatives_{REFERENCE}")
    if file is None:
        return text
    names = {"peft_vprompt": "ours", "The authors' way": "plain"}
    names |= {"transformers' CLIP, padded prompts": "transformers", "open_clip, learned context": "open_clip"}
    cells = [cell for cell in file["cells"].values() if "ms" in cell["sides"]["ours"]]
    rows = []
    for title, name in names.items():
        sides = [cell["sides"].get(name) for cell in cells]
        ratio = {"ours": None, "plain": "ratio"}.get(name, f"{name}_ratio")
        ratios = [1.0 if ratio is None else cell[ratio] for cell in cells if ratio is None or ratio in cell]
        rows.append([title, *map(time_of, sides), " and ".join(f"{ratio:.1f}x" for ratio in ratios) or DASH])
    headings = ("A CoOp step", *(f"{cell['case']['classes']} classes, ms" for cell in cells), "Of ours")
    return re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{markdown(headings, rows)}\n{end}", text, flags=re.DOTALL)


def refreshed(path: Path, files: dict[str, dict]) -> str:
    """A page with fresh tables between its marks."""
    return with_alternatives(with_table(path.read_text(encoding="utf-8"), files), files)


def main(
    check: Annotated[bool, typer.Option(help="Only compare; exit status 1 if a page is stale.")] = False,
) -> None:
    """Write the pages and plots."""
    files = load(RESULTS)
    if not check:
        draw(files)
    pages = {PAGE: page(files)} | {path: refreshed(path, files) for path in WITH_TABLE}
    if check:
        raise typer.Exit(int(any(path.read_text(encoding="utf-8") != text for path, text in pages.items())))
    for path, text in pages.items():
        with atomic_path(path) as partial:
            partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
