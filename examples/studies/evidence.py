"""Do the claims of the papers hold here? Recipes chosen on one task, then every method on others, and what the numbers say.

python -m examples.studies.evidence recipes runs/recipes
vprompt bench base-to-novel --methods all,mrpo:prompt_update=accumulate --tasks shapes,toys,signs \
    --recipes examples/studies/recipes.json --shots 1,2,4,8,16 --max-steps 192 --cached --precision float32 \
    --output runs/embedded
python -m examples.studies.evidence collect embedded runs/embedded --scores runs/recipes/scores.json
vprompt bench base-to-novel --methods all --tasks shapes --recipes examples/studies/recipes.json --shots 16 --max-steps 96 --cached \
    --precision float32 --output runs/float32    # and likewise with bf16
python -m examples.studies.evidence precision embedded runs/float32 runs/bf16
python docs/render/evidence.py

`recipes` writes `recipes.json`, before anything else is run; `collect` writes docs/results/evidence.json, in which what was
collected under other names stays; `precision` writes there what float32 and bfloat16 give.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from peft_vprompt.experiments.bench.bench import run_bench
from peft_vprompt.experiments.bench.grid import ZERO_SHOT, Grid, learning_from_names
from peft_vprompt.experiments.bench.protocols import PROTOCOLS
from peft_vprompt.experiments.bench.results import BenchResults
from peft_vprompt.experiments.bench.statistics import harmonic
from peft_vprompt.experiments.bench.summary import MEAN, intervals, summarise
from peft_vprompt.experiments.bench.tasks import BenchTask
from peft_vprompt.tuners.base.registry import get_method
from peft_vprompt.utils.io import read_json, write_json


ROOT = Path(__file__).parents[2]
RECIPES = Path(__file__).with_name("recipes.json")
RESULTS = ROOT / "docs/results/evidence.json"

PROTOCOL = PROTOCOLS["base-to-novel"]
#: Where recipes are chosen: the classes of `shapes` in a look that no evidence is of.
VALIDATION = BenchTask("mosaic", "Mosaic of shapes")
#: Learning rates that are tried, by the authors'.
FACTORS = (1, 0.1, 0.3, 3, 10)
SHOTS = 16
MOST_STEPS = 192


class Claim(NamedTuple):
    """What papers say of one method beside another.

    Attributes:
        text: the claim in words.
        method: as a bench has it.
        against: the other method.
        what: base, novel or hm (the harmonic mean of averages).
        sign: 1 where the method should be above the other, -1 where below.
        shots: numbers of shots that the claim is of; None for all.
    """

    text: str
    method: str
    against: str
    what: str
    sign: int = 1
    shots: tuple[int, ...] | None = None


ACCUMULATE = "mrpo:prompt_update=accumulate"
FEW = (1, 2, 4)
CLAIMS = (
    Claim("CoOp gains on base classes", "coop", ZERO_SHOT, "base"),
    Claim("CoOp loses on novel classes", "coop", ZERO_SHOT, "novel", -1),
    Claim("CoCoOp keeps novel classes better than CoOp", "cocoop", "coop", "novel"),
    Claim("MaPLe is above CoOp in the harmonic mean", "maple", "coop", "hm"),
    Claim("MRPO is at least MaPLe with few shots (as published: replace)", "mrpo", "maple", "hm", 1, FEW),
    Claim("MRPO is at least MaPLe with few shots (accumulate)", ACCUMULATE, "maple", "hm", 1, FEW),
    Claim("MRPO: accumulate is above replace", ACCUMULATE, "mrpo", "hm"),
    Claim("PromptSRC is above IVLP on novel classes", "promptsrc", "ivlp", "novel"),
    Claim("KgCoOp keeps novel classes better than CoOp", "kgcoop", "coop", "novel"),
)
#: What is kept of a row of a bench's summary.
KEPT = ("scope", "method", "title", "shots", "seeds", "accuracy", "hm")
#: Methods whose spread over seeds is compared.
STEADY, UNSTEADY = "rpo", ("coop", "cocoop", "maple")

app = typer.Typer(help=__doc__)


@app.command()
def recipes(
    folder: Annotated[Path, typer.Argument(help="Folder for the runs, which are taken up where they were stopped.")],
    output: Annotated[Path, typer.Option(help="JSON file of the changes by method.")] = RECIPES,
    methods: Annotated[str | None, typer.Option(help="Separated by commas; default: all with a recipe.")] = None,
    shots: Annotated[int, typer.Option(help="Images per class.")] = SHOTS,
    max_steps: Annotated[int, typer.Option(help="Steps that bound every training, in whole epochs.")] = MOST_STEPS,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 1,
):
    """Choose the learning rate of every method on a task of its own: the authors', unless another is better."""
    names = methods.split(",") if methods else learning_from_names(PROTOCOL)
    names = [name for name in names if get_method(name).recipe is not None]
    rates = {name: get_method(name).recipe.learning_rate for name in names}
    variants = {
        (name, factor): f"{name}:learning_rate={rates[name] * factor:.6g}" for name, factor in product(names, FACTORS)
    }
    grid = Grid(PROTOCOL, (VALIDATION,), tuple(variants.values()), shots=(shots,), seeds=(seed,), max_steps=max_steps)
    run_bench(grid, folder, cached=True)
    results = BenchResults.read(folder)
    chosen, scores = {}, {}
    for name in names:
        scores[name] = {
            factor: score
            for factor in FACTORS
            if (score := score_of(results, variants[name, factor], shots, seed)) is not None
        }
        best = max(scores[name], key=lambda factor: scores[name][factor])  # the first of equals, the authors'
        if best != 1:
            chosen[name] = {"learning_rate": float(f"{rates[name] * best:.6g}")}
        typer.echo(f"{name}: {best} x {rates[name]}, {scores[name]}")
    write_json(chosen, output)
    write_json(
        {name: {str(factor): score for factor, score in by.items()} for name, by in scores.items()},
        folder / "scores.json",
    )


def score_of(results: BenchResults, method: str, shots: int, seed: int) -> float | None:
    """Return what a method is chosen by: the harmonic mean, or base where it has nothing for novel classes."""
    base, novel = (results.values(VALIDATION.name, method, shots, test).get(seed) for test in ("base", "novel"))
    if base is None or novel is None:
        return base
    return round(float(harmonic(base, novel)), 2)


@app.command()
def collect(
    name: Annotated[str, typer.Argument(help="What the figures stand under.")],
    folder: Annotated[Path, typer.Argument(help="Folder of the bench.")],
    recipes: Annotated[Path, typer.Option(help="The changes of recipes that it was run with.")] = RECIPES,
    scores: Annotated[Path | None, typer.Option(help="Scores of the validation task to keep beside them.")] = None,
    output: Annotated[Path, typer.Option(help="JSON file.")] = RESULTS,
):
    """Write down the tables of a bench, without cells of fewer seeds, and for every claim the difference with its interval."""
    results = BenchResults.read(folder).of_protocol(PROTOCOL)
    (part,) = summarise(results)["protocols"]
    tasks = list(results.tasks())
    scope = MEAN if len(tasks) > 1 else tasks[0]
    most = max(row["seeds"] for row in part["rows"])
    whole = [row for row in part["rows"] if row["shots"] is None or row["seeds"] == most]
    rows = [{key: row[key] for key in KEPT if key in row} for row in whole]
    environments = [report["environment"] for by in results.cells.values() for report in by.values()]
    written = read_json(output, missing_ok=True) or {"worlds": {}}
    world = {
        "tasks": results.tasks(),
        "tests": part["tests"],
        "shots": part["shots"],
        "scope": scope,
        "chance": part["chance"],
        "rows": rows,
        "claims": [claim for each in CLAIMS for claim in verdicts(results, scope, tasks, each)],
        "steadiness": steadiness(part, list(part["chance"])),
        "notes": [note for note in part["notes"] if "not all seeds" not in note],  # the page says which were run
        "recipes": read_json(recipes),
        "environment": environments[0],
    }
    kept = written["worlds"].get(name, {}).get("scores") if scores is None else read_json(scores)
    if kept is not None:
        world["scores"] = kept
    write_json(written | {"worlds": written["worlds"] | {name: world}, "environment": environments[0]}, output)
    typer.echo(f"Wrote {output}. Next: python docs/render/evidence.py")


@app.command()
def precision(
    name: Annotated[str, typer.Argument(help="What the figures stand under.")],
    float32: Annotated[Path, typer.Argument(help="Folder of a bench with --precision float32.")],
    bf16: Annotated[Path, typer.Argument(help="Folder of the same bench with --precision bf16.")],
    output: Annotated[Path, typer.Option(help="JSON file.")] = RESULTS,
):
    """Write down what each method reaches with frozen weights in float32 and in bfloat16."""
    accuracies: dict[str, dict[str, dict]] = {}
    for held, folder in (("float32", float32), ("bf16", bf16)):
        summary = summarise(BenchResults.read(folder).of_protocol(PROTOCOL))
        (part,) = summary["protocols"]
        for row in part["rows"]:
            if row["scope"] == list(part["chance"])[-1]:
                accuracies.setdefault(row["title"], {})[held] = row["accuracy"]
    written = read_json(output)
    found = {
        "tasks": part["tasks"],
        "shots": part["shots"],
        "seeds": max(row["seeds"] for row in part["rows"]),
        "rows": {title: by for title, by in accuracies.items() if len(by) == 2},
        "environment": summary["environments"][0],
    }
    write_json(written | {"precision": written.get("precision", {}) | {name: found}}, output)
    typer.echo(f"Wrote {output}. Next: python docs/render/evidence.py")


def verdicts(results: BenchResults, scope: str, tasks: list[str], claim: Claim) -> list[dict]:
    """Return the difference with its interval for each number of shots that both methods were run with."""
    found = []
    for shots in claim.shots or results.shots():
        rows = intervals(results, scope, tasks, (claim.method, claim.against), shots)
        found += [claim._asdict() | row | {"shots": shots} for row in rows if row["what"] == claim.what]
    return found


def steadiness(part: dict, scopes: list[str]) -> list[dict]:
    """Return the spreads over seeds of the harmonic means of RPO and of others, by task and shots."""
    spreads = {
        (row["method"], row["scope"], row["shots"]): row["hm"]["std"]
        for row in part["rows"]
        if "hm" in row and row["hm"]["std"] is not None
    }
    return [
        {"scope": scope, "shots": shots, "against": other, "own": spreads[STEADY, scope, shots], "other": spreads[key]}
        for other, scope, shots in product(UNSTEADY, [scope for scope in scopes if scope != MEAN], part["shots"])
        if (key := (other, scope, shots)) in spreads and (STEADY, scope, shots) in spreads
    ]


if __name__ == "__main__":
    app()
