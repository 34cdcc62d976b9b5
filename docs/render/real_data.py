"""Collect the runs on real images into docs/results/real_data.json and render docs/real_data.md from it.

python docs/render/real_data.py runs     # collect runs/<data set>/<method>[-<variant>][-<seed>]/results.json, then render
python docs/render/real_data.py          # render again
"""

import json
import statistics
import sys
from pathlib import Path

from peft_vprompt.utils.io import atomic_path, write_json


DOCS = Path(__file__).resolve().parents[1]
RESULTS, PAGE = DOCS / "results" / "real_data.json", DOCS / "real_data.md"
#: What `examples.studies.pretrain_emoji` wrote of the CLIP that it trained further, in several runs one after another.
FURTHER = DOCS / "results" / "emoji_clip.json"

VARIANTS = {
    "long": ("--epochs 50 --batch-size 32 --lr 0.02", "longer and at a higher rate than the published recipe"),
    "words": (
        "--set prompt_init=text --set 'prompt_init_text=a photo of a'",
        "four context words instead of 16 random",
    ),
}

TASKS = {
    "emoji": {
        "title": "Emoji drawings in a style the model has not seen",
        "about": "OpenMoji colour drawings, 64 x 64 pixels; the classes are the 23 emoji subgroups (flags left out) "
        "with at least 24 images. The CLIP was trained on other artists' drawings of the same emoji, so this is a "
        "moderate shift. There is no published split: a third of every class is the test set, the same in all runs; with so few images an accuracy has a "
        "standard error of about 4 points.",
        "command": "vprompt train --output runs/emoji/maple-1 --model path/to/emoji-clip --data path/to/emoji.parquet \\\n"
        "  --label-column subgroup --where vendor=openmoji --where style=color --where 'group!=flags' \\\n"
        "  --min-images 24 --test-fraction 0.33 --method maple --base-novel --shots 16 --seed 1",
    },
    "grocery": {
        "title": "Photographs of groceries",
        "about": "The Grocery Store data set (Klasson et al. 2019), photographs reduced to 112 pixels, 81 classes, "
        "published training and test split. The CLIP has seen emoji drawings only, never a photograph: this shows what "
        "prompts can do where the frozen model knows next to nothing.",
        "command": "vprompt train --output runs/grocery/maple-1 --model path/to/emoji-clip --data path/to/grocery.parquet \\\n"
        "  --label-column classname --split-column split --method maple --base-novel --shots 16 --seed 1",
    },
}  # fmt: skip

PAGE_TEXT = """# Real images

<!-- Rendered by docs/render/real_data.py from docs/results/real_data.json; do not edit. -->

Few-shot prompt learning on real images with a small real CLIP (5.3 M parameters, 64 x 64 pixels, trained from random weights
on emoji drawings in under an hour on two CPU cores). It is far weaker than OpenAI's models: what matters here is the
difference to its own zero-shot accuracy, not the level.

All runs: 16 shots per base class, base = first half of the classes in alphabetical order, the authors' recipe of each
method ({recipes}); no value was tuned on these data.
{variants}
Accuracy in percent, mean and standard deviation over seeds {seeds} (the seed draws the shots, the first prompts and the order of images; the test images stay the same).
{machine}

## The files

Neither the CLIP nor the two tables is published, so these numbers, and those of the emoji drawings on other pages, cannot be
made again elsewhere. The CLIP was trained by a program that is not part of this repository. The commands take files of yours: any
CLIP of transformers, and a table with these columns.

| File | Columns that are read | Rows |
|---|---|---|
| `emoji.parquet` | `image` (bytes of a PNG), `subgroup` (the class), `group`, `vendor`, `style`; for training a CLIP also `name`, `keywords` | 15,401 drawings of 1,914 emoji by several artists (OpenMoji, Twemoji, Noto and others), 64 x 64 pixels |
| `grocery.parquet` | `image` (bytes of a WebP), `classname`, `split` (train, val, test) | 5,421 photographs of the [Grocery Store data set](https://github.com/marcusklasson/GroceryStoreDataset), the short side 112 pixels |

{further}

{sections}"""

SECTION = """## {title}

{about} Test images: {images}.

```bash
{command}
vprompt evaluate --adapter runs/{task}/maple-1 --subset novel
```

| Method | Trainable | Adapter, bytes | s/step | Training, s | Base | Novel | HM |
|---|---:|---:|---:|---:|---:|---:|---:|
{rows}

{verdict}
"""


def collect(runs: Path) -> dict:
    """Everything the page needs from the runs' results.json, without paths of this machine."""
    tasks, environment = {}, None
    for task in TASKS:
        files = sorted((runs / task).glob("*/results.json"))
        if not files:
            raise FileNotFoundError(f"No runs in {runs / task}.")
        reports = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        environment = reports[0]["environment"]
        kept = ("title", "recipe", "trainable_parameters", "adapter_bytes", "steps", "seconds_per_step")
        tasks[task] = {
            "classes": reports[0]["classes"],
            "test_images": reports[0]["test_images"],
            "runs": [
                {name: report["settings"][name] for name in ("method", "shots", "seed")}
                | {"variant": _variant(file.parent.name)}
                | {name: report[name] for name in (*kept, "train_seconds", "accuracy")}
                for file, report in zip(files, reports, strict=True)
            ],
        }
    return {"tasks": tasks, "environment": environment}


def _variant(folder: str) -> str | None:
    parts = folder.removeprefix("zero-shot").split("-")
    return next((part for part in parts if part in VARIANTS), None)


def render(results: dict) -> str:
    """The page as Markdown."""
    machine = results["environment"]["machine"]
    trained = [run for task in results["tasks"].values() for run in task["runs"] if run["recipe"]]
    runs = [run for run in trained if not run["variant"]]
    recipes = {
        f"{run['title']}: lr {run['recipe']['learning_rate']}, batch {run['recipe']['batch_size']}, "
        f"{run['recipe']['epochs']} epochs" + (" instead of 200" if run["method"] == "coop" else "")
        for run in runs
    }
    seeds = sorted({run["seed"] for run in trained})
    used = sorted({run["variant"] for run in trained if run["variant"]})
    return PAGE_TEXT.format(
        recipes="; ".join(sorted(recipes)),
        seeds=", ".join(map(str, seeds)),
        variants="\n".join('Rows marked "{}": `{}`, {}.'.format(name, *VARIANTS[name]) for name in used),
        machine=f"Measured on {machine['cpu']}, {machine['cores']} cores, shared with other work, so times are upper bounds.",
        further=_further(json.loads(FURTHER.read_text(encoding="utf-8"))),
        sections="\n".join(_section(task, results["tasks"][task]) for task in TASKS),
    )  # fmt: skip


def _further(runs: list[dict]) -> str:
    """What more training of the CLIP gave, as Markdown."""
    first, last = runs[0], runs[-1]
    shown = ", ".join(f"{style} {before} → {last['after'][style]} %" for style, before in first["before"].items())
    steps = " and ".join(f"{run['options']['steps']:,}" for run in runs)
    minutes = sum(run["cpu_seconds"] for run in runs) / 60
    return (
        f"`python -m examples.studies.pretrain_emoji` trains the CLIP further. After {steps} steps of "
        f"{first['options']['batch_size']} drawings ({minutes:.0f} minutes of processor time) zero-shot tells one of "
        f"{first['subgroups']} subgroups: {shown}. Nothing but the trained styles was trained on; that drawings are outlined, "
        "inked and made smaller on the way, and the second run, were chosen with the other styles in view. The runs below start from the CLIP as it was."
    )


def _section(task: str, results: dict) -> str:
    groups = {}
    for run in results["runs"]:
        groups.setdefault((run["method"] != "zero-shot", run["title"], run["variant"] or ""), []).append(run)
    groups = [groups[key] for key in sorted(groups)]  # zero-shot first
    return SECTION.format(
        task=task,
        images=", ".join(f"{count} {name}" for name, count in results["test_images"].items()),
        rows="\n".join(_row(runs) for runs in groups),
        verdict=_verdict(*groups),
        **TASKS[task],
    )


def _row(runs: list[dict]) -> str:
    first = runs[0]
    cells = [_title(first), f"{first['trainable_parameters']:,}"]
    if first["adapter_bytes"] is None:
        cells += ["–"] * 3
    else:
        steps, seconds = ([run[name] for run in runs] for name in ("seconds_per_step", "train_seconds"))
        cells += [
            f"{first['adapter_bytes']:,}",
            f"{statistics.median(steps):.3f}",
            f"{statistics.median(seconds):.0f}",
        ]
    cells += [_mean(runs, column) for column in ("base", "novel", "hm")]
    return f"| {' | '.join(cells)} |"


def _mean(runs: list[dict], column: str) -> str:
    values = [run["accuracy"][column] for run in runs]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _title(run: dict) -> str:
    return f"{run['title']}, {run['variant']}" if run["variant"] else run["title"]


def _verdict(zero_shot: list[dict], *groups: list[dict]) -> str:
    """Each method against zero-shot, in words that follow from the numbers."""
    lines = []
    for runs in groups:
        words = []
        for column in ("base", "novel"):
            changes = [run["accuracy"][column] - zero_shot[0]["accuracy"][column] for run in runs]
            better = sum(change > 0 for change in changes)
            words.append(f"{column} {statistics.mean(changes):+.1f} (better in {better} of {len(runs)} seeds)")
        lines.append(f"* {_title(runs[0])} against zero-shot: {', '.join(words)}.")
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) > 1:
        write_json(collect(Path(sys.argv[1])), RESULTS)
    with atomic_path(PAGE) as partial:
        partial.write_text(render(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
