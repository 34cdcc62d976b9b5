"""Render docs/methods_compared.md and its picture from docs/results/methods.json, which compare_methods.py writes.

python docs/render/methods.py
"""

import json
import statistics
from collections.abc import Callable
from itertools import product
from pathlib import Path

from peft_vprompt.utils.io import atomic_path


DOCS = Path(__file__).resolve().parents[1]
RESULTS, PAGE = DOCS / "results" / "methods.json", DOCS / "methods_compared.md"
PICTURE = DOCS / "results" / "methods.png"

TASKS = {
    "embedded": (
        "The embedded task",
        "Drawn shapes in a style that pretraining never showed, and the tiny embedded CLIP (48 x 48 pixels): what "
        "`vprompt demo` uses.",
    ),
    "emoji": (
        "Emoji drawings",
        "OpenMoji colour drawings, 64 x 64 pixels, by subgroup, and a CLIP of 5.3 M parameters that was trained on other artists' "
        "drawings of the same emoji: the task of [Real images](real_data.md), with the same split; [neither is published](real_data.md#the-files).",
    ),
}

#: Least difference of mean accuracies, in points, that the reading calls one.
NOTICEABLE = 1.0

PAGE_TEXT = """# Methods compared

<!-- Rendered by docs/render/methods.py from docs/results/methods.json; do not edit. -->

Every method of the method table that learns from class names, on the same images, the same shots, the same code: trained
on the base classes (the first half), tested on base and on novel classes, each among its own. Both CLIPs are small and far
weaker than OpenAI's: what counts is the difference to zero-shot, not the level. What is published on ViT-B/16 is in each
method's paper ([index](paper_index.md)).

{reading}

![Base against novel accuracy](results/methods.png)

## How it was measured

* **One recipe for each method, the same on both tasks, and none chosen by an accuracy**: the authors' of the [method table](paper_index.md),
  with its length cut by one rule for all: whole epochs, at most {most_steps} optimiser steps, but {least_epochs} epochs at least. That number was
  set by the time that runs take, after a timing of two epochs of each method on the embedded task. So a method whose recipe does not
  fit a small CLIP or a short training shows it (MRPO's paper states none: it has RPO's); `vprompt demo` and `vprompt sweep` are for
  finding better ones.
* Every training image is augmented once. {shots} images per base class, seeds {seeds}: the seed draws the shots, the first values and the
  order; the test images stay the same. Accuracy in percent, mean ± standard deviation over the seeds, in brackets the
  difference to zero-shot; ▼ marks what is worse than zero-shot.
* Methods that learn a vector or a cache for each class have nothing for novel ones: their novel and HM stay empty, and base is
  what they are for. {left_out}
* One thread of {cpu}, shared with other work, so times are upper bounds; image features of a frozen image encoder are
  computed once for each draw of the shots and are not in the training time.

```bash
python examples/studies/compare_methods.py runs/methods
python examples/studies/compare_methods.py runs/methods --task emoji --model path/to/emoji-clip --data path/to/emoji.parquet
python docs/render/methods.py
```

{missing}

{sections}

## The recipes

The authors' rate, batch, optimiser and length, and the epochs that were run.

{recipes}
"""


def render(results: dict) -> str:
    """The page as Markdown."""
    left_out = "; ".join(f"{title} is left out ({why})" for title, why in results["left_out"].items())
    return PAGE_TEXT.format(
        reading=_reading(results),
        **results["rule"],
        shots=_and([str(shots) for shots in results["shots"]]),
        seeds=_and([str(seed) for seed in results["seeds"]]),
        left_out=f"{left_out}." if left_out else "",
        cpu=" or ".join(results["machines"]),
        missing=_missing(results),
        sections="\n\n".join(_section(task, results) for task in results["tasks"]),
        recipes=_recipes(results),
    )


def runs_of(results: dict, task: str, shots: int, method: str) -> list[dict]:
    """The runs of a cell, one for each seed that was run."""
    wanted = (task, shots, method)
    return [run for run in results["runs"] if (run["task"], run["shots"], run["method"]) == wanted]


def is_run(results: dict, task: str, shots: int) -> bool:
    """Whether there is any run."""
    return any((run["task"], run["shots"]) == (task, shots) for run in results["runs"])


def trained(results: dict) -> dict[str, dict]:
    """The rows that learn."""
    return {name: row for name, row in results["rows"].items() if row["trains"]}


def _and(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _missing(results: dict) -> str:
    """Which cells there are no runs of, or not of all seeds."""
    lines = []
    for task, shots in product(results["tasks"], results["shots"]):
        fewer: dict[int, list[str]] = {}
        for name, row in trained(results).items():
            if (count := len(runs_of(results, task, shots, name))) < len(results["seeds"]):
                fewer.setdefault(count, []).append(row["title"])
        for count, titles in sorted(fewer.items()):
            who = "all methods" if len(titles) == len(trained(results)) else ", ".join(titles)
            lines.append(f"* {TASKS[task][0]}, {shots} shots: {count} of {len(results['seeds'])} seeds of {who}.")
    if not lines:
        return "All cells were run with all seeds."
    return "**Not all cells were run with all seeds**; the command above runs those that are missing:\n\n" + "\n".join(
        lines
    )


def _section(task: str, results: dict) -> str:
    title, about = TASKS[task]
    facts = results["tasks"][task]
    counts = [f"{facts['classes'][split]} {split} classes with {facts['test_images'][split]} test images" for split in ("base", "novel")]  # fmt: skip
    parts = [f"## {title}", f"{about} {_and(counts)}."]
    for shots in results["shots"]:
        parts += [f"### {shots} shots", _table(task, shots, results) if is_run(results, task, shots) else "Not run."]
    return "\n\n".join(parts)


def _table(task: str, shots: int, results: dict) -> str:
    facts = results["tasks"][task]
    lines = ["| Method | Base | Novel | HM | Trained | Training, s |", "|---|--:|--:|--:|--:|--:|"]
    for title, values in (("Chance", facts["chance"]), ("Zero-shot", facts["zero_shot"])):
        lines.append(f"| {title} | {' | '.join(f'{values[name]:.1f}' for name in ('base', 'novel', 'hm'))} | 0 | – |")
    cells = {name: runs for name in trained(results) if (runs := runs_of(results, task, shots, name))}
    for name in sorted(cells, key=lambda name: _rank(cells[name])):
        lines.append(_row(results["rows"][name], cells[name], facts["zero_shot"]))
    return "\n".join(lines)


def _rank(runs: list[dict]) -> tuple[bool, float]:
    """By harmonic mean; what has none comes last, by base."""
    has_novel = "hm" in runs[0]
    return not has_novel, -mean(runs, "hm" if has_novel else "base")


def mean(runs: list[dict], name: str) -> float:
    """Mean over the seeds."""
    return statistics.mean(run[name] for run in runs)


def _row(row: dict, runs: list[dict], zero_shot: dict) -> str:
    cells = [_accuracy(runs, name, zero_shot[name]) for name in ("base", "novel", "hm")]
    seconds = statistics.median(run["seconds"] for run in runs)
    cells += [f"{runs[0]['trainable_parameters']:,}", f"{seconds:.1f}"]
    return f"| {row['title']} | {' | '.join(cells)} |"


def _accuracy(runs: list[dict], name: str, zero_shot: float) -> str:
    if name not in runs[0]:
        return "–"
    values = [run[name] for run in runs]
    change = statistics.mean(values) - zero_shot
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    mark = " ▼" if change < 0 else ""
    return f"{statistics.mean(values):.1f}{spread} ({change:+.1f}){mark}"


# ---- what the numbers say ---------------------------------------------------------------------------------------------


def settings_of(results: dict) -> list[tuple[str, int]]:
    """Task and shots wherever all methods that were run at all have a run."""
    names = {run["method"] for run in results["runs"]}
    return [
        (task, shots)
        for task, shots in product(results["tasks"], results["shots"])
        if names and all(runs_of(results, task, shots, name) for name in names)
    ]


def changes(results: dict, name: str, part: str) -> dict[tuple[str, int], float]:
    """Mean difference of a method to zero-shot in each of those settings; none in a part that it has nothing for.

    Args:
        results: what the JSON holds.
        name: a row.
        part: "base", "novel" or "hm".
    """
    cells = {setting: runs_of(results, *setting, name) for setting in settings_of(results)}
    return {
        (task, shots): mean(runs, part) - results["tasks"][task]["zero_shot"][part]
        for (task, shots), runs in cells.items()
        if runs and part in runs[0]
    }


def _reading(results: dict) -> str:
    """Plain sentences that follow from the numbers."""
    settings = settings_of(results)
    if not settings:
        return "No setting has been run with all methods yet."
    found = {part: _by_title(results, part) for part in ("base", "novel", "hm")}
    average = {
        part: {title: statistics.mean(values) for title, values in rows.items()} for part, rows in found.items()
    }
    order = {part: sorted(rows, key=rows.__getitem__, reverse=True) for part, rows in average.items()}

    def those(part: str, wanted: Callable[[float], bool]) -> str:
        titles = [title for title in order[part] if all(map(wanted, found[part][title]))]
        return _named(titles, average[part])

    where = _and(
        [
            f"{TASKS[task][0][0].lower()}{TASKS[task][0][1:]} at {shots} shots ({_seeds(results, task, shots)})"
            for task, shots in settings
        ]
    )
    everywhere = "in each of them" if len(settings) > 1 else "there"
    lines = [
        f"What the numbers say on {where}, where all methods were run. A difference counts from "
        f"{NOTICEABLE:g} point on; in brackets are mean differences to zero-shot.",
        "",
        f"* **Better in the harmonic mean** {everywhere}: {those('hm', lambda change: change >= NOTICEABLE)}.",
        f"* Hardly another harmonic mean {everywhere}: {those('hm', lambda change: abs(change) < NOTICEABLE)}.",
        f"* **Worse in the harmonic mean** {everywhere}: {those('hm', lambda change: change <= -NOTICEABLE)}.",
        f"* Worse on novel classes {everywhere}: {those('novel', lambda change: change <= -NOTICEABLE)}.",
        f"* Not worse on novel classes {everywhere}: {those('novel', lambda change: change > -NOTICEABLE)}.",
        f"* The highest base accuracies: {_named(order['base'][:5], average['base'])}.",
        *_agreement(results),
    ]
    return "\n".join(lines)


def _seeds(results: dict, task: str, shots: int) -> str:
    """The fewest seeds that a method has."""
    counts = [len(runs_of(results, task, shots, name)) for name in {run["method"] for run in results["runs"]}]
    return f"{min(counts)} seed{'s' if min(counts) > 1 else ''}"


def _by_title(results: dict, part: str) -> dict[str, list[float]]:
    rows = {row["title"]: list(changes(results, name, part).values()) for name, row in trained(results).items()}
    return {title: values for title, values in rows.items() if values}


def _named(titles: list[str], values: dict[str, float]) -> str:
    """Titles with their mean differences."""
    return ", ".join(f"{title} ({values[title]:+.1f})" for title in titles) if titles else "none"


def _agreement(results: dict) -> list[str]:
    """How far the order of the methods is the same on both tasks: a line, or none."""
    parts = []
    by_row = [changes(results, name, "hm") for name in trained(results)]
    for shots in results["shots"]:
        pairs = [
            tuple(found[task, shots] for task in TASKS)
            for found in by_row
            if {(task, shots) for task in TASKS} <= found.keys()
        ]
        if len(pairs) > 2:
            first, second = (_ranks(values) for values in zip(*pairs, strict=True))
            parts.append(f"{statistics.correlation(first, second):.2f} at {shots} shots")
    text = f"* The order of the methods on the one task and on the other has a rank correlation of {_and(parts)} (harmonic mean)."
    return [text] if parts else []


def _ranks(values: tuple[float, ...]) -> list[int]:
    order = sorted(values)
    return [order.index(value) for value in values]


def _recipes(results: dict) -> str:
    shots = results["shots"]
    columns = " | ".join(f"Authors' length, {count} shots" for count in shots)
    ran = [f"{TASKS[task][0]}, {count}" for task, count in product(results["tasks"], shots)]
    lines = [f"| Method | Rate | Batch | Optimiser | {columns} | {' | '.join(ran)} |"]
    lines.append("|---|--:|--:|---|" + "--:|" * (len(shots) + len(ran)))
    for name, row in trained(results).items():
        cells = [row["title"]]
        if row["recipe"] is None:
            cells += ["–"] * (3 + len(shots) + len(ran))
        else:
            recipe = row["recipe"]
            cells += [f"{recipe['learning_rate']:g}", str(recipe["batch_size"]), recipe["optimizer"]]
            cells += [_length(recipe["length"][str(count)]) for count in shots]
            for task, count in product(results["tasks"], shots):
                runs = runs_of(results, task, count, name)
                cells.append(f"{runs[0]['epochs']} ({runs[0]['steps']} steps)" if runs else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _length(length: dict) -> str:
    return f"{length['steps']:,} steps" if length["epochs"] is None else f"{length['epochs']} epochs"


# ---- the picture ------------------------------------------------------------------------------------------------------


def draw(results: dict, path: Path) -> None:
    """Base against novel accuracy, one panel for each task and number of shots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cells = [cell for cell in product(results["tasks"], results["shots"]) if is_run(results, *cell)]
    lines, columns = -(-len(cells) // 2), min(2, len(cells))
    size = (5.5 * columns, 4.4 * lines + 1)
    figure, panels = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for panel in panels.flat[len(cells) :]:
        panel.remove()
    for (task, shots), panel in zip(cells, panels.flat, strict=False):
        zero_shot = results["tasks"][task]["zero_shot"]
        panel.axvline(zero_shot["base"], color="gray", linestyle=":")
        panel.axhline(zero_shot["novel"], color="gray", linestyle=":", label="Zero-shot")
        for index, (name, row) in enumerate(trained(results).items()):
            runs = runs_of(results, task, shots, name)
            if not runs or "novel" not in runs[0]:
                continue
            panel.plot(
                mean(runs, "base"),
                mean(runs, "novel"),
                marker="osD^v<>pP*XhHd8"[index % 15],
                color=f"C{index % 10}",
                linestyle="",
                label=row["title"],
            )
        panel.set_title(f"{TASKS[task][0]}, {shots} shots")
        panel.set_xlabel("base classes, accuracy (%)")
        panel.set_ylabel("novel classes, accuracy (%)")
    labels = {label: line for panel in panels.flat[: len(cells)] for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}  # fmt: skip
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=6, fontsize=8)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=100)
    plt.close(figure)


def main() -> None:
    """Write the page and the picture."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    draw(results, PICTURE)
    with atomic_path(PAGE) as partial:
        partial.write_text(render(results), encoding="utf-8")


if __name__ == "__main__":
    main()
