"""Render docs/noise_on_backbones.md and its picture from docs/results/noise_on_backbones.json.

python docs/render/noise_on_backbones.py           # page and picture
python docs/render/noise_on_backbones.py --check   # fail where the page is not what the results give

The results are written by examples/studies/noise_on_backbones.py.
"""

import json
import sys
from itertools import product
from pathlib import Path

from peft_vprompt.experiments.noise_plots import plot_lines, show, with_clean
from peft_vprompt.experiments.noise_study import LINEAR_PROBE
from peft_vprompt.utils.io import atomic_path


DOCS = Path(__file__).resolve().parents[1]
RESULTS = DOCS / "results" / "noise_on_backbones.json"
PAGE = DOCS / "noise_on_backbones.md"
PICTURE = DOCS / "results" / "noise_on_backbones.png"

TITLES = {"vit": "ViT", "resnet": "ResNet"}
LOSSES = {"ce": "cross-entropy", "gce": "GCE"}

#: Kinds of noise -> what the paper calls them.
KINDS = {"symmetric": "random", "confusion": "confusion"}

PAGE_TEXT = """# Wrong labels on a ResNet and on a ViT

<!-- Rendered by docs/render/noise_on_backbones.py from docs/results/noise_on_backbones.json; do not edit. -->

The paper on [noisy labels](noisy_labels.md) compares image encoders, CLIP's ResNets and ViTs. Here are two small CLIPs of one drawn
world: the embedded one, with a ViT, and one with a ResNet (`ResNetCLIPModel`: modified ResNet with an attention pool), which
was trained beside the embedded one's text encoder. That stayed as it was, so that both compare images with the same texts and
prompts start from the same place.

| CLIP | Parameters | Pictures seen | Pictures of that world: full name | shape | Zero-shot on the task: base | novel | all 32 |
|---|--:|--:|--:|--:|--:|--:|--:|
{models}

```bash
python -m examples.studies.pretrain_demo --tower resnet --locked-text --steps {steps} --output runs/resnet-clip
python -m examples.studies.noise_on_backbones runs/backbones --resnet runs/resnet-clip
python docs/render/noise_on_backbones.py
vprompt noise-study --model runs/resnet-clip --data path/to/images --output runs/noise   # the ResNet on data of yours
```

The embedded task, 32 classes in a style that neither CLIP has seen, 16 shots. Accuracy in percent, mean ± standard deviation
over seeds {seeds}; the seed draws the shots, the wrong labels, the first prompts and the order of images, and with random noise
both CLIPs are given the same ones. Confusion noise gives an image the wrong class that *this* CLIP likes most, so it differs
between them. One recipe for all, the demo's, which is shorter than the paper's: SGD, lr {learning_rate}, batch {batch_size}, {epochs} epochs, on cached image
features; what the paper's does for the ViT is shown [there](noisy_labels.md#the-embedded-task). Measured on {cpu}, {cores} cores.

{table}

{claims}

![Accuracy against the share of wrong labels](results/noise_on_backbones.png)

Both CLIPs are tiny and know one drawn world: this shows that the comparison runs on either encoder, and which of the paper's
observations these two share. It says nothing on the size of the effects with OpenAI's models.
"""


def render(results: dict) -> str:
    """Return the page as Markdown."""
    rows = rows_of(results)
    models = results["models"].values()
    recipe = next(run["recipe"] for model in models for run in model["runs"] if run["recipe"])
    return PAGE_TEXT.format(
        steps=results["models"]["resnet"]["options"]["steps"],
        models="\n".join(_model(TITLES[name], model) for name, model in results["models"].items()),
        seeds=", ".join(map(str, sorted({run["seed"] for model in models for run in model["runs"]}))),
        cpu=results["environment"]["machine"]["cpu"],
        cores=results["environment"]["machine"]["cores"],
        table=_table(rows),
        claims="\n".join(f"* {line}" for line in claims(results)),
        **recipe,
    )


def rows_of(results: dict) -> list[dict]:
    """Return the summaries of both CLIPs in one list; each row says whose it is, and clean labels belong to each kind."""
    return [
        row | {"model": TITLES[name]}
        for name, model in results["models"].items()
        for row in with_clean(model["summary"])
    ]


def _model(title: str, model: dict) -> str:
    world, task = model["world_accuracy"], model["task_accuracy"]
    numbers = (world["name"], world["shape"], task["base"], task["novel"], model["zero_shot"])
    pairs = model["options"]["steps"] * model["options"]["batch_size"]
    return f"| {title} | {model['parameters']:,} | {pairs:,} | {' | '.join(f'{number:.1f}' for number in numbers)} |"


def _table(rows: list[dict]) -> str:
    rates = sorted({row["rate"] for row in rows})
    columns = [(None, 0.0), *((kind, rate) for kind in KINDS for rate in rates if rate)]
    names = ["clean", *(f"{KINDS[kind]}, {100 * rate:g} %" for kind, rate in columns[1:])]
    lines = [f"| Method | Loss | Encoder | {' | '.join(names)} |", f"|---|---|---|{'|'.join(['--:'] * len(columns))}|"]
    cells = {(row["title"], row["loss"], row["model"], row["noise"], row["rate"]): show(row) for row in rows}
    for title, loss, model in dict.fromkeys(key[:3] for key in sorted(cells, key=lambda key: _order(rows, key))):
        found = [cells.get((title, loss, model, kind or "symmetric", rate), "–") for kind, rate in columns]
        lines.append(f"| {title} | {loss} | {model} | {' | '.join(found)} |")
    return "\n".join(lines)


def _order(rows: list[dict], key: tuple) -> tuple[int, str, int]:
    """By method as they were run, then by loss, then by encoder."""
    titles = list(dict.fromkeys(row["title"] for row in rows))
    return titles.index(key[0]), key[1], list(TITLES.values()).index(key[2])


# ---- what the numbers say ---------------------------------------------------------------------------------------------


def claims(results: dict) -> list[str]:
    """Return what the paper says and what came out, in sentences that follow from the numbers."""
    rows = rows_of(results)
    top = max(row["rate"] for row in rows)
    mean = {(row["model"], row["method"], row["loss"], row["noise"], row["rate"]): row["mean"] for row in rows}
    titles = {row["method"]: row["title"] for row in rows}
    lines = []
    for kind, loss in product(KINDS, LOSSES):
        lost = {
            model: {
                method: mean[model, method, loss, kind, 0.0] - mean[model, method, loss, kind, top]
                for method in titles
                if (model, method, loss, kind, top) in mean
            }
            for model in TITLES.values()
        }
        if all("coop" in points and len(points) > 1 for points in lost.values()):
            holds = {model: min(points, key=points.get) == "coop" for model, points in lost.items()}
            listed = "; ".join(f"{model}: {_points(points, titles)}" for model, points in lost.items())
            lines.append(
                f"*Prompt tuning degrades least* ({KINDS[kind]} noise, {LOSSES[loss]}; points lost from 0 to "
                f"{100 * top:g} %): {listed}. {_verdict(holds)}"
            )
    for kind in KINDS:
        keys = {model: [(model, "coop", loss, kind, top) for loss in LOSSES] for model in TITLES.values()}
        if all(key in mean for pair in keys.values() for key in pair):
            gain = {model: mean[gce] - mean[ce] for model, (ce, gce) in keys.items()}
            listed = ", ".join(f"{model} {points:+.1f}" for model, points in gain.items())
            holds = {model: points > 0 for model, points in gain.items()}
            lines.append(
                f"*GCE helps CoOp at {100 * top:g} % {KINDS[kind]} noise* (GCE minus cross-entropy): {listed}. {_verdict(holds)}"
            )
    return lines + _same_order(mean, titles, top)


def _points(points: dict[str, float], titles: dict[str, str]) -> str:
    return ", ".join(f"{titles[method]} {points[method]:.1f}" for method in sorted(points, key=points.get))


def _verdict(holds: dict[str, bool]) -> str:
    if len(set(holds.values())) == 1:
        return "**Holds on both.**" if all(holds.values()) else "**Holds on neither.**"
    return f"**Holds on the {next(model for model, held in holds.items() if held)} alone.**"


def _same_order(mean: dict, titles: dict[str, str], top: float) -> list[str]:
    """Say in how many settings the encoder that is better with clean labels is better with wrong ones."""
    first, second = TITLES.values()
    kept, settings = 0, 0
    for method, loss, kind in product(titles, LOSSES, KINDS):
        clean, noisy = (
            [mean.get((model, method, loss, kind, rate)) for model in (first, second)] for rate in (0.0, top)
        )
        if None not in (*clean, *noisy):
            settings += 1
            kept += (clean[0] > clean[1]) == (noisy[0] > noisy[1])
    if not settings:
        return []
    return [
        f"The encoder that is better with clean labels is better with {100 * top:g} % wrong ones, too, in {kept} of "
        f"{settings} settings (method, loss, kind of noise)."
    ]


def plot(results: dict) -> None:
    """Draw accuracy against the share of wrong labels, a panel for each kind of noise and loss."""
    rows = rows_of(results)
    probes = [
        row | {"loss": "gce"} for row in rows if row["method"] == LINEAR_PROBE
    ]  # has no loss: it is in every panel
    panels = [
        row | {"panel": f"{KINDS[kind]} noise, {LOSSES[loss]}"}
        for kind, loss in product(KINDS, LOSSES)
        for row in rows + probes
        if (row["noise"], row["loss"]) == (kind, loss)
    ]
    plot_lines(PICTURE, panels, "panel", lambda row: f"{row['model']}, {row['title']}")


def main() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    text = render(results)
    if sys.argv[1:] == ["--check"]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit(f"{PAGE.name} is not what {RESULTS.name} gives: run `python docs/render/noise_on_backbones.py`.")
        return
    plot(results)
    with atomic_path(PAGE) as partial:
        partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
