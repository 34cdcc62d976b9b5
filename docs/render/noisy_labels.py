"""Collect the studies of label noise into docs/results/noisy_labels.json and render docs/noisy_labels.md and its plots.

python docs/render/noisy_labels.py runs    # collect runs/<task>*/study.json, then render
python docs/render/noisy_labels.py         # render again
"""

import json
import sys
from pathlib import Path

from peft_vprompt.experiments.noise_plots import context_length, name_of, plot_study, show, with_clean
from peft_vprompt.experiments.noise_study import summarise
from peft_vprompt.utils.io import atomic_path, write_json


DOCS = Path(__file__).resolve().parents[1]
RESULTS, PAGE, PLOTS = (
    DOCS / "results" / "noisy_labels.json",
    DOCS / "noisy_labels.md",
    DOCS / "images" / "noisy_labels",
)

#: The kind of noise that the claims are about.
KIND = "symmetric"

TASKS = {
    "embedded": {
        "title": "The embedded task",
        "about": "32 classes drawn by this package, in a style that the embedded CLIP has not seen; 16 shots.",
        "setting": "",
    },
    "emoji": {
        "title": "Emoji drawings",
        "about": "OpenMoji colour drawings, 64 x 64 pixels, 23 subgroups, 16 shots; a small CLIP that has seen other "
        "artists' drawings of the same emoji (see [Real images](real_data.md)); [neither is published](real_data.md#the-files).",
        "setting": " --model path/to/emoji-clip --data path/to/emoji.parquet\n  --label-column subgroup --where vendor=openmoji "
        "--where style=color --where 'group!=flags'\n  --min-images 24 --test-fraction 0.33",
    },
}  # fmt: skip

PAGE_TEXT = """# Noisy labels and no labels

<!-- Rendered by docs/render/noisy_labels.py from docs/results/noisy_labels.json; do not edit. -->

{guide}
## What of the papers holds here

Three seeds; mean ± standard deviation of the accuracy in percent. The seed draws the shots, the wrong labels, the first
prompts and the order of images. The recipe is PTNL's and the same for all methods; nothing was tuned. Image features are
cached: every training image is augmented once (one random crop, perhaps of a small part). The linear probe is a logistic
regression on whole images, whose strength of regularisation is chosen by cross-validation; that it sees no crops may be
part of its lead. Both CLIPs are tiny, and a large one may differ. [A ResNet beside the ViT](noise_on_backbones.md) is a
study of its own.
{machine}

{sections}"""

GUIDE = """## Training when labels are wrong

```bash
mine=(--model openai/clip-vit-base-patch16 --data path/to/images)
vprompt train "${{mine[@]}}" --method coop --loss gce --q 0.7 --output runs/robust
vprompt evaluate --adapter runs/robust --split train --zero-shot --diagnose runs/diagnosis   # how wrong are my labels?
vprompt noise-study "${{mine[@]}}" --output runs/noise                                            # which method stands noise best?
```

Every loss of `peft_vprompt.losses` works alone, `loss(logits, labels)`, and in the stock `Trainer`:

```python
from peft_vprompt.losses import GeneralizedCrossEntropy

trainer = Trainer(model=model, args=args, train_dataset=rows, compute_loss_func=GeneralizedCrossEntropy(q=0.7))
```

| Loss | Class | Parameters |
|---|---|---|
{losses}

`peft_vprompt.data.label_noise` puts wrong labels in, to try this out: symmetric, pair, confusion (the wrong class that zero-shot
likes most), any transition matrix, and false positives as in the PTNL authors' code. It never touches a test split or
the global random numbers.

## Training without labels

```bash
vprompt train "${{mine[@]}}" --method coop --unlabelled --cache-features --output runs/upl
vprompt train "${{mine[@]}}" --method coop --unlabelled --selector random-k --loss gce \\
  --ensemble 4 --cache-features --output runs/robust-upl
```

Zero-shot CLIP labels the images, the most confident (`top-k`, UPL) or random ones (`random-k`, robust UPL) of each
predicted class are kept, and a context is trained on them. A class that zero-shot hardly ever predicts gets few images, or none;
with `--selector quota` every class gets as many as `--shots` says, in the order of the probabilities of all classes, and no image
is taken twice. `--ensemble n` trains n contexts from n seeds, saves them in one adapter and averages their logits; the adapter
takes any class names. `vprompt pseudo-label` makes the labels alone,
with several CLIPs or templates if you like, and `--check` says how good they are where true labels exist.

## Cached image features

Without visual prompts the image features never change, so they are computed once and kept on disk (`--cache-features`,
`peft_vprompt.training.cached_features`), keyed by encoder, preprocessing and images; training is then the text side alone. The
augmentation is fixed: `--views n` keeps n augmentations of every image and draws one in each epoch. One view trains
fastest and suits noise studies; 4 to 8 keep most of what a fresh augmentation gives, for n times the time and space of
the first pass. Methods with visual prompts refuse.
"""

SECTION = """### {title}

{about} {recipe}

```bash
task=(--lr 0.002 --batch-size 32 --epochs 50{setting})
vprompt noise-study --output runs/{task}-ce --losses ce --gradients --without-labels "${{task[@]}}"
vprompt noise-study --output runs/{task}-gce --losses gce --gradients "${{task[@]}}" \\
  --methods coop,full-prompt,class-name,classifier-c,classifier-r,tenc-ft
vprompt noise-study --output runs/{task}-contexts --losses ce "${{task[@]}}" \\
  --methods "coop:prompt_init=text:prompt_init_text=a photo of a,coop:num_virtual_tokens=4"
vprompt noise-study --output runs/{task}-kinds --losses ce --kinds pair,confusion --rates 0.25,0.5 "${{task[@]}}" \\
  --methods coop,classifier-r,linear-probe
```

| Symmetric noise | Loss | {headings} |
|---|---|{rule}|
{rows}

{kinds}
{without}
{claims}

{plots}
"""


def collect(runs: Path) -> dict:
    """Everything the page needs from the studies, without paths of this machine."""
    tasks, environment = {}, None
    for task in TASKS:
        studies = sorted(runs.glob(f"{task}*/study.json"))
        found = [json.loads(path.read_text(encoding="utf-8")) for path in studies]
        if found:
            records = [run for study in found for run in study["runs"]]
            tasks[task] = {"runs": records, "summary": summarise(records)}
            environment = found[0]["environment"]
    if not tasks:
        raise FileNotFoundError(f"No study.json in {', '.join(str(runs / task) for task in TASKS)}.")
    return {"tasks": tasks, "environment": environment}


def render(results: dict) -> str:
    """The page as Markdown."""
    machine = results["environment"]["machine"]
    return PAGE_TEXT.format(
        guide=GUIDE.format(losses=_losses()),
        machine=f"Measured on {machine['cpu']}, {machine['cores']} cores.",
        sections="\n".join(_section(task, results["tasks"][task]) for task in TASKS if task in results["tasks"]),
    )


def _losses() -> str:
    import inspect

    from peft_vprompt.losses.classification import LOSSES

    rows = []
    for name, loss in LOSSES.items():
        own = [p for p in inspect.signature(loss).parameters.values() if p.name not in ("shared", "weight", "ignore_index", "reduction")]  # fmt: skip
        options = ", ".join(f"`{p.name}={p.default:g}`" for p in own) or "–"
        rows.append(f"| `{name}` | `{loss.__name__}` | {options} |")
    return "\n".join(rows)


def _section(task: str, result: dict) -> str:
    labelled = [row for row in with_clean(result["summary"]) if row["unlabelled"] is None]
    groups: dict[tuple, dict] = {}
    for row in labelled:
        groups.setdefault((row["noise"], name_of(row), row["loss"]), {})[row["rate"]] = show(row)
    rates = sorted({row["rate"] for row in labelled})
    symmetric = {key: by_rate for key, by_rate in groups.items() if key[0] == KIND}
    recipe = next(run["recipe"] for run in result["runs"] if run["recipe"])
    plots = [
        f"![{path.stem.replace('_', ' ')}]({path.relative_to(DOCS)})" for path in sorted((PLOTS / task).glob("*.png"))
    ]
    return SECTION.format(
        headings=" | ".join(f"{100 * rate:g} %" for rate in rates),
        rule="|".join(["---:"] * len(rates)),
        rows="\n".join(
            f"| {name} | {loss} | {' | '.join(by_rate.get(rate, '–') for rate in rates)} |"
            for (_, name, loss), by_rate in symmetric.items()
        ),
        kinds=_other_kinds(groups, rates),
        without=_without_labels(result["summary"]),
        claims="\n".join(f"* {line}" for line in claims(result)),
        plots="\n".join(plots),
        recipe=f"SGD, lr {recipe['learning_rate']}, batch {recipe['batch_size']}, {recipe['epochs']} epochs, one of them at 1e-5.",
        task=task,
        **TASKS[task],
    )


def _other_kinds(groups: dict[tuple, dict], rates: list[float]) -> str:
    """What other kinds of noise do to the methods that were tried with them, beside the symmetric one."""
    others = {key: by_rate for key, by_rate in groups.items() if key[0] != KIND and by_rate.keys() - {0.0}}
    if not others:
        return ""
    kinds = dict.fromkeys([KIND, *(kind for kind, *_ in others)])
    columns = [(kind, rate) for rate in rates if rate in next(iter(others.values())) and rate for kind in kinds]
    names = dict.fromkeys((name, loss) for _, name, loss in others)
    lines = [
        f"| Kind of noise | Loss | {' | '.join(f'{kind}, {100 * rate:g} %' for kind, rate in columns)} |",
        f"|---|---|{'|'.join(['---:'] * len(columns))}|",
    ]
    for name, loss in names:
        cells = [groups.get((kind, name, loss), {}).get(rate, "–") for kind, rate in columns]
        lines.append(f"| {name} | {loss} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _without_labels(summary: list[dict]) -> str:
    rows = [row for row in summary if row["unlabelled"]]
    if not rows:
        return ""
    lines = ["| Without labels | Loss | Accuracy |", "|---|---|---:|"]
    names = {"zero-shot": "zero-shot", "top-k": "most confident 16 per class", "random-k": "random 16 per class"}
    for row in rows:
        loss = "–" if row["unlabelled"] == "zero-shot" else row["loss"]
        lines.append(f"| {names[row['unlabelled']]} | {loss} | {show(row)} |")
    return "\n".join(lines) + "\n"


def claims(result: dict) -> list[str]:
    """What the papers say and what came out, in sentences that follow from the numbers."""
    result = result | {"summary": [row for row in result["summary"] if row["noise"] in (KIND, None)]}
    mean = {}
    for row in with_clean(result["summary"]):
        mean[row["method"], row["loss"], row["unlabelled"] or row["rate"]] = row["mean"]
    top = max(row["rate"] for row in result["summary"])
    checks = (_degrades_least, _untrained, _words, _gce_helps, _names_regularise, _length, _upl, _gradients)
    return [line for check in checks for line in check(mean, top, result)]


LOSS_NAMES = {"ce": "cross-entropy", "gce": "GCE"}


def _verdict(holds: bool) -> str:
    return "**Holds here.**" if holds else "**Does not hold here.**"


def _degrades_least(mean: dict, top: float, result: dict) -> list[str]:
    titles = {row["method"]: row["title"] for row in result["summary"] if ":" not in row["method"]}
    lines = []
    for loss in ("ce", "gce"):
        ends = {m: (mean.get((m, loss, 0.0)), mean.get((m, loss, top))) for m in titles}
        lost = {m: clean - noisy for m, (clean, noisy) in ends.items() if None not in (clean, noisy)}
        if loss == "gce":  # what has learned nothing has nothing to lose
            lost = {m: points for m, points in lost.items() if ends[m][0] > zero_shot(mean)}
        order = sorted(lost, key=lost.get)
        if "coop" in lost and len(lost) > 1:
            listed = ", ".join(f"{titles[m]} {lost[m]:.1f}" for m in order)
            lines.append(
                f"*Prompt tuning degrades least* (points lost with {LOSS_NAMES[loss]} from 0 to {100 * top:g} % wrong "
                f"labels{'; methods above zero-shot' * (loss == 'gce')}): {listed}. {_verdict(order[0] == 'coop')}"
            )
    return lines


def zero_shot(mean: dict) -> float:
    """Accuracy of zero-shot classification; 0 if it was not measured."""
    return mean.get(("zero-shot", "ce", "zero-shot"), 0.0)


def _untrained(mean: dict, top: float, result: dict) -> list[str]:
    """Methods that have learned too little for noise to take anything away."""
    clean = {name_of(row): row["mean"] for row in result["summary"] if (row["loss"], row["rate"]) == ("ce", 0.0)
             and not row["unlabelled"]}  # fmt: skip
    weak = [f"{name} {value:.1f}" for name, value in clean.items() if value <= zero_shot(mean)]
    if not weak:
        return []
    return [
        f"Below zero-shot ({zero_shot(mean):.1f}) with clean labels, so trained too little, or at too high a rate, for their loss "
        f"of points to mean much: {', '.join(weak)}."
    ]


def _words(mean: dict, top: float, result: dict) -> list[str]:
    """What a context loses that starts from words."""
    specs = sorted({row["method"] for row in result["summary"] if "prompt_init=text" in row["method"]})
    rows = [row for row in result["summary"] if (row["method"], row["loss"], row["rate"]) == ("coop", "ce", top)]
    return [
        f'*CoOp from the words "a photo of a"* loses {mean[spec, "ce", 0.0] - mean[spec, "ce", top]:.1f} points '
        f"({mean[spec, 'ce', 0.0]:.1f} to {mean[spec, 'ce', top]:.1f}); from 16 random tokens "
        f"(± {rows[0]['std']:.1f} over seeds at {100 * top:g} %), "
        f"{mean['coop', 'ce', 0.0] - mean['coop', 'ce', top]:.1f}."
        for spec in specs
    ]


def _gce_helps(mean: dict, top: float, result: dict) -> list[str]:
    methods = {
        row["method"]: row["title"] for row in result["summary"] if (row["loss"] == "gce" and not row["unlabelled"])
    }
    lines = []
    for rate, words in (
        (top, f"GCE helps at {100 * top:g} % wrong labels"),
        (0.0, "GCE costs little on clean labels"),
    ):
        gain = {
            m: mean[m, "gce", rate] - mean[m, "ce", rate]
            for m in methods
            if (m, "gce", rate) in mean and (m, "ce", rate) in mean
        }
        if gain:
            listed = ", ".join(f"{methods[m]} {gain[m]:+.1f}" for m in sorted(gain, key=gain.get, reverse=True))
            good = sum(g > (0 if rate else -2) for g in gain.values())
            verdict = (
                _verdict(good > 0) if good in (0, len(gain)) else f"**Holds for {good} of {len(gain)} methods here.**"
            )
            within = "" if rate else ", within 2 points"
            lines.append(f"*{words}* (GCE minus cross-entropy{within}): {listed}. {verdict}")
    return lines


def _names_regularise(mean: dict, top: float, result: dict) -> list[str]:
    keys = [(m, "ce", top) for m in ("coop", "full-prompt", "class-name")]
    if not all(key in mean for key in keys):
        return []
    fixed, full, names = (mean[key] for key in keys)
    return [
        f"*Fixed class names regularise* (accuracy at {100 * top:g} % wrong labels, cross-entropy): context with fixed "
        f"names {fixed:.1f}, with tuned names {full:.1f}, names alone {names:.1f}. {_verdict(fixed > full and fixed > names)}"
    ]


def _length(mean: dict, top: float, result: dict) -> list[str]:
    lengths = {
        context_length(row): row["method"]
        for row in result["summary"]
        if context_length(row) and not row["unlabelled"]
    }
    if len(lengths) < 2:
        return []
    lost = {n: mean[m, "ce", 0.0] - mean[m, "ce", top] for n, m in sorted(lengths.items())}
    listed = ", ".join(f"{n} tokens {value:.1f}" for n, value in lost.items())
    return [f"*Context length* (points lost with cross-entropy from 0 to {100 * top:g} %): {listed}."]


def _upl(mean: dict, top: float, result: dict) -> list[str]:
    ways = {name: mean.get(("zero-shot" if name == "zero-shot" else "coop", loss, name)) for name, loss in
            (("zero-shot", "ce"), ("top-k", "ce"))}  # fmt: skip
    robust = mean.get(("coop", "gce", "random-k"))
    if None in (*ways.values(), robust):
        return []
    zero_shot, upl = ways.values()
    return [
        f"*UPL beats zero-shot*: {upl:.1f} against {zero_shot:.1f}. {_verdict(upl > zero_shot)}",
        f"*Robust UPL (random images, GCE) beats UPL*: {robust:.1f} against {upl:.1f}, zero-shot {zero_shot:.1f}. "
        f"{_verdict(robust > upl)}",
    ]


def _gradients(mean: dict, top: float, result: dict) -> list[str]:
    lines = []
    for loss in ("ce", "gce"):
        probed = [
            run["gradients"]
            for run in result["runs"]
            if run["gradients"] and (run["method"], run["loss"]) == ("coop", loss)
        ]
        if probed:
            ratio = [h[-1]["noisy_norm"] / h[-1]["clean_norm"] for h in probed]
            cosine = [h[-1]["cosine"] for h in probed]
            lines.append(
                f"*Gradients of CoOp with {loss}* after training, {100 * top:g} % wrong labels: norm of wrong over right "
                f"{sum(ratio) / len(ratio):.2f}, cosine {sum(cosine) / len(cosine):+.2f}."
            )
    return lines


def main() -> None:
    if len(sys.argv) > 1:
        write_json(collect(Path(sys.argv[1])), RESULTS)
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
        for task, result in results["tasks"].items():
            plot_study(result, PLOTS / task)
    with atomic_path(PAGE) as partial:
        partial.write_text(render(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
