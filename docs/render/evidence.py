"""Render docs/evidence.md and its picture from docs/results/evidence.json, which examples/studies/evidence.py writes.

python docs/render/evidence.py           # page and picture
python docs/render/evidence.py --check   # fail where the page is not what the results give
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from peft_vprompt.experiments.bench.grid import ZERO_SHOT
from peft_vprompt.experiments.bench.results import title_of
from peft_vprompt.utils.io import atomic_path
from peft_vprompt.utils.plotting import saved_figure


DOCS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(DOCS.parent))

from examples.benchmarks.tables import DASH, markdown  # noqa: E402 - after the path
from examples.studies import evidence  # noqa: E402 - likewise


RESULTS, PAGE = DOCS / "results" / "evidence.json", DOCS / "evidence.md"
PICTURE = DOCS / "results" / "evidence.png"

#: Where the runs were made, by the names that results are collected under.
WORLDS = {
    "embedded": (
        "The embedded world",
        "Three tasks of 32 classes each, in three styles that the embedded CLIP (48 x 48 pixels) has not seen; averages over them.",
        "--tasks shapes,toys,signs",
    ),
    "emoji": (
        "Emoji drawings",
        "OpenMoji colour drawings, 64 x 64 pixels, by subgroup, and a CLIP of 5.3 M parameters that was trained on other artists' "
        "drawings of the same emoji; [neither is published](real_data.md#the-files).",
        "--model path/to/emoji-clip --data path/to/emoji.parquet --label-column subgroup --where vendor=openmoji --where "
        "style=color --where 'group!=flags' --min-images 24 --test-fraction 0.33",
    ),
}
#: Methods in the picture.
SHOWN = ("coop", "cocoop", "kgcoop", "maple", "promptsrc", "mmrl", "rpo", "clip-lora")

PAGE_TEXT = """# Which claims hold

<!-- Rendered by docs/render/evidence.py from docs/results/evidence.json; do not edit. -->

What the papers say of these methods on CLIP ViT-B/16, asked of two small CLIPs with 1, 2, 4, 8 and 16 images per class, three
seeds, one recipe per method: all methods on the embedded world; on emoji drawings all with 16 images, and those of the claims
with fewer. Both models are far weaker than OpenAI's, so a claim that fails here may hold there; what is counted is written
beside it.

{claims}

**How to read it.** The difference of two methods in points, and the interval that holds 95 % of 2,000 paired bootstrap
resamples over images and seeds, by images per class. ✔ the whole interval is on the side of the claim, ✘ the whole interval is
on the other side, without a mark it holds 0 and nothing can be said. Three seeds make intervals rather too narrow than too wide,
and there are {count} of them: of so many, one or two lie on one side by chance.

{steadiness}

![Harmonic mean against images per class](results/evidence.png)

Prompt tuning against a linear probe when labels are wrong is measured [apart](noisy_labels.md), on a ViT and on a ResNet
[too](noise_on_backbones.md).

## How it was measured

* **Recipes** were chosen before, on a task that is none of those below: the classes of `shapes` as a mosaic, {shots} images per class, one seed, the
  authors' learning rate and {factors} of it, by the harmonic mean (by base accuracy where a method has nothing for novel classes).
  The choice, `examples/studies/recipes.json`, was written down and not touched again. The rest is the authors', at most {steps} optimiser steps in whole epochs.
* Training images are augmented once; the seed draws the shots, the first values and the order; test images stay the same.
* {machine}

The commands run all methods at all numbers of shots, of which the figures here are a part; cells that are done are not repeated.

```bash
python -m examples.studies.evidence recipes runs/recipes
{commands}
python docs/render/evidence.py
```

{sections}
{precision}
## The recipes

The learning rate that was chosen, and what each reached on the validation task, by the share of the authors' rate.

{recipes}
"""


def claims_table(results: Mapping) -> str:
    """Every claim with its differences, by world and number of shots."""
    shots = sorted({claim["shots"] for world in results.values() for claim in world["claims"]})
    rows = []
    for name, world in results.items():
        by_claim: dict[str, dict[int, dict]] = {}
        for claim in world["claims"]:
            by_claim.setdefault(claim["text"], {})[claim["shots"]] = claim
        for text, found in by_claim.items():
            cells = [difference(found[count]) if count in found else DASH for count in shots]
            rows.append([text, WORLDS[name][0], *cells])
    order = list(dict.fromkeys(row[0] for row in rows))
    rows.sort(key=lambda row: order.index(row[0]))
    return markdown(("Claim", "Where", *(f"{count} shot{'s' * (count > 1)}" for count in shots)), rows)


def difference(claim: Mapping) -> str:
    """A difference with its interval, and whether the claim holds."""
    sides = sorted(claim["sign"] * claim[end] for end in ("low", "high"))
    mark = " ✔" if sides[0] > 0 else " ✘" if sides[1] < 0 else ""
    return f"{claim['difference']:+.1f} [{claim['low']:+.1f}, {claim['high']:+.1f}]{mark}"


def steadiness_text(results: Mapping) -> str:
    """How often RPO's spread over seeds is the smaller one."""
    lines = []
    for name, world in results.items():
        title = WORLDS[name][0]
        for other in dict.fromkeys(row["against"] for row in world["steadiness"]):
            rows = [row for row in world["steadiness"] if row["against"] == other]
            smaller = sum(row["own"] < row["other"] for row in rows)
            own, theirs = (sum(row[side] for row in rows) / len(rows) for side in ("own", "other"))
            lines.append(
                f"* on {title[0].lower()}{title[1:]} smaller than {title_of(other)}'s in {smaller} of {len(rows)} tasks and numbers of shots; on average "
                f"{own:.2f} against {theirs:.2f} points."
            )
    return "**RPO's spread over seeds** (standard deviation of the harmonic mean) is\n\n" + "\n".join(lines)


def section(name: str, world: Mapping) -> str:
    """The tables of one world: harmonic mean, base and novel by shots."""
    title, about, _ = WORLDS[name]
    parts = [f"## {title}", about]
    parts += world["notes"]
    parts += ["### Harmonic mean", curve(world, lambda row: row.get("hm"), "of_averages", "hm")]
    for test, heading in (("base", "Base classes"), ("novel", "Novel classes")):
        parts += [f"### {heading}", curve(world, lambda row, test=test: row["accuracy"].get(test), "mean", test)]
    return "\n\n".join(parts)


def curve(world: Mapping, of_row, key: str, test: str) -> str:
    """A table with a column for each number of shots, the best of the most shots first."""
    chosen = [row for row in world["rows"] if row["scope"] == world["scope"] and of_row(row)]
    by_title: dict[str, dict] = {}
    for row in chosen:
        by_title.setdefault(row["title"], {})[row["shots"]] = of_row(row)
    plain = by_title.pop(title_of(ZERO_SHOT), {}).get(None)
    most = max(world["shots"])
    ranked = sorted(by_title.items(), key=lambda pair: pair[1].get(most, {}).get(key, 0), reverse=True)
    chance = f"{world['chance'][world['scope']][test]:.1f}"
    rows = [["Chance", *[chance] * len(world["shots"])]]
    if plain:
        rows.append(["Zero-shot", *[f"{plain[key]:.1f}"] * len(world["shots"])])
    for title, by_shots in ranked:
        cells = [value_of(by_shots.get(count) or by_shots.get(None), key, plain) for count in world["shots"]]
        rows.append([title, *cells])
    return markdown(("Method", *map(str, world["shots"])), rows)


def value_of(found: Mapping | None, key: str, plain: Mapping | None) -> str:
    """Mean and spread, marked where it is below zero-shot."""
    if not found:
        return DASH
    spread = f" ± {found['std']:.1f}" if found.get("std") is not None else ""
    below = " ▼" if plain and found[key] < plain[key] else ""
    return f"{found[key]:.1f}{spread}{below}"


PRECISION_TEXT = """
## Frozen weights in bfloat16

Base and novel accuracy with frozen weights in float32 and in bfloat16 (`--precision`), {seeds} seeds, the recipes below, at most 96
steps. ◆ in bfloat16 lower by more than the standard deviation of the seeds in float32 ({lower} of {count} accuracies;
{higher} are higher by as much).

```bash
{commands}
```

{tables}
"""


def precision_text(results: Mapping) -> str:
    """The tables of accuracies by precision; nothing where none were collected."""
    if not results:
        return ""
    tables, signs, commands = [], [], []
    for name, found in results.items():
        tasks = f"--tasks {','.join(found['tasks'])}" if name == "embedded" else WORLDS[name][2]
        bench = f"vprompt bench base-to-novel --methods all --recipes examples/studies/recipes.json --shots 16 --max-steps 96 --cached {tasks}"
        folders = {precision: f"runs/{name}-{precision}" for precision in ("float32", "bf16")}
        commands += [f"{bench} --precision {precision} --output {folder}" for precision, folder in folders.items()]
        commands.append(f"python -m examples.studies.evidence precision {name} {' '.join(folders.values())}")
        rows = []
        for title, by in found["rows"].items():
            cells = []
            for test in ("base", "novel"):
                if test not in by["float32"]:
                    cells += [DASH, DASH]
                    continue
                plain, held = by["float32"][test], by["bf16"][test]
                off = (held["mean"] - plain["mean"]) / plain["std"] if plain["std"] else 0.0
                signs.append(-1 if off < -1 else 1 if off > 1 else 0)
                cells += [value_of(plain, "mean", None), value_of(held, "mean", None) + " ◆" * (off < -1)]
            rows.append([title, *cells])
        headings = ("Method", "Base, float32", "Base, bf16", "Novel, float32", "Novel, bf16")
        machine = found["environment"]["machine"]["cpu"]
        tables += [f"{WORLDS[name][0]} ({', '.join(found['tasks'].values())}), {machine}:", markdown(headings, rows)]
    return PRECISION_TEXT.format(
        seeds=found["seeds"],
        lower=signs.count(-1),
        higher=signs.count(1),
        count=len(signs),
        commands="\n".join(commands),
        tables="\n\n".join(tables),
    )


def recipes_table(results: Mapping) -> str:
    """The chosen rates and the scores of the validation task."""
    world = next((world for world in results.values() if "scores" in world), None)
    if world is None:
        return "The scores of the validation task were not kept."
    factors = sorted({float(factor) for by in world["scores"].values() for factor in by})
    rows = []
    for method, by in world["scores"].items():
        chosen = world["recipes"].get(method, {}).get("learning_rate")
        scores = {float(factor): score for factor, score in by.items()}
        cells = [f"{scores[factor]:.1f}" if factor in scores else "diverged" for factor in factors]
        rows.append([title_of(method), f"{chosen:g}" if chosen else "the authors'", *cells])
    return markdown(("Method", "Learning rate", *(f"x {factor:g}" for factor in factors)), rows)


def draw(results: Mapping) -> None:
    """Draw the harmonic mean of some methods against the number of shots."""
    with saved_figure(PICTURE, columns=len(results), size=(5.2 * len(results) + 1.4, 4.2)) as axes:
        for ax, (name, world) in zip(axes, results.items(), strict=True):
            rows = [row for row in world["rows"] if row["scope"] == world["scope"] and "hm" in row]
            for method in SHOWN:
                points = [
                    (row["shots"], row["hm"]["of_averages"], row["hm"]["std"])
                    for row in rows
                    if row["method"] == method
                ]
                if points:
                    count, mean, spread = zip(*points, strict=True)
                    ax.errorbar(count, mean, spread, marker="o", capsize=2, label=title_of(method))
            for row in rows:
                if row["method"] == ZERO_SHOT:
                    ax.axhline(row["hm"]["of_averages"], color="grey", linestyle="--", label="Zero-shot")
            ax.axhline(world["chance"][world["scope"]]["hm"], color="grey", linestyle=":", label="Chance")
            ax.set_xscale("log", base=2)
            ax.set_xticks(world["shots"], map(str, world["shots"]))
            ax.set_xlabel("images per class")
            ax.set_title(WORLDS[name][0])
        axes[0].set_ylabel("harmonic mean, %")
        axes[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def render(results: Mapping) -> str:
    """The page."""
    worlds = worlds_of(results)
    options = "--recipes examples/studies/recipes.json --shots 1,2,4,8,16 --max-steps 192 --cached --precision float32"
    methods = "--methods all,mrpo:prompt_update=accumulate"
    commands = [
        f"vprompt bench base-to-novel {methods} {options} {WORLDS[name][2]} --output runs/{name}\n"
        f"python -m examples.studies.evidence collect {name} runs/{name} --scores runs/recipes/scores.json"
        for name in worlds
    ]
    return PAGE_TEXT.format(
        claims=claims_table(worlds),
        count=sum(len(world["claims"]) for world in worlds.values()),
        steadiness=steadiness_text(worlds),
        shots=evidence.SHOTS,
        factors=", ".join(f"{factor:g}" for factor in sorted(evidence.FACTORS) if factor != 1),
        steps=evidence.MOST_STEPS,
        machine=f"In float32, one thread to a worker: {machines(worlds)}.",
        commands="\n".join(commands),
        sections="\n\n".join(section(name, world) for name, world in worlds.items()),
        precision=precision_text(results.get("precision", {})),
        recipes=recipes_table(worlds),
    )


def machines(worlds: Mapping) -> str:
    """Where the figures of each world were made."""
    said = []
    for name, world in worlds.items():
        machine, versions = (world["environment"][part] for part in ("machine", "versions"))
        packages = ", ".join(f"{package} {versions[package]}" for package in ("peft", "transformers", "torch"))
        title = WORLDS[name][0]
        said.append(f"{title[0].lower()}{title[1:]} on {machine['cpu']}, {machine['cores']} cores ({packages})")
    return "; ".join(said)


def worlds_of(results: Mapping) -> dict[str, Mapping]:
    """What was collected, in the order of `WORLDS`."""
    return {name: results["worlds"][name] for name in WORLDS if name in results["worlds"]}


def main() -> int:
    """Write the page and the picture, or compare."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    text = render(results)
    if "--check" in sys.argv:
        return int(PAGE.read_text(encoding="utf-8") != text)
    draw(worlds_of(results))
    with atomic_path(PAGE) as partial:
        partial.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
