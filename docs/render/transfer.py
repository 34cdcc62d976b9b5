"""Render docs/transfer.md and its picture from docs/results/transfer.json, which compare_transfer.py writes.

python docs/render/transfer.py
"""

import json
import statistics
from pathlib import Path

from peft_vprompt.utils.io import atomic_path


DOCS = Path(__file__).resolve().parents[1]
RESULTS, PAGE, PICTURE = DOCS / "results" / "transfer.json", DOCS / "transfer.md", DOCS / "results" / "transfer.png"

#: What the paper says -> two rows, of which the first is said to do better.
CLAIMS = {
    "Deep prompts beat shallow ones": ("VPT-deep", "VPT-shallow"),
    "Shallow prompts beat a linear head": ("VPT-shallow", "Linear"),
    "Deep prompts beat a linear head": ("VPT-deep", "Linear"),
    "VPT-deep beats full fine-tuning": ("VPT-deep", "Full"),
    "Prompts beside the tokens beat prompts added to them": ("VPT-shallow", "VPT-shallow, add"),
    "Prompts added to tokens beat prompts in pixel space": ("VPT-shallow, add", "VPT-shallow, prepend-pixel"),
}

#: What the numbers say, in words: whoever measures anew reads them anew.
READING = """full fine-tuning leads from four shots on, and prompts with under 1 % of the encoder stay within a few points of
it. With one shot VPT-deep leads, but there the draw of the shots moves others by ten points. With 16 shots prompts, deep or
shallow, are clearly above the linear head; with four and eight they are level with it. Which location is best changes with
the number of shots. One run is known to about 1.5 points (320 images), so most differences between single rows are within
what chance does. The rate was chosen with the shots of one seed: with eight shots one of LoRA's three runs diverges at the
rate that was best there."""

PAGE_TEXT = """# Fine-tuning baselines

<!-- Rendered by docs/render/transfer.py from docs/results/transfer.json; do not edit. -->

Prompts are compared with what else adapts a pretrained image encoder to other classes. The baselines of the VPT paper
(Jia et al., "Visual Prompt Tuning", ECCV 2022, section 4.1) are PEFT adapters here, so that they train on the same data, by
the same schedule, and are saved, loaded, switched and reported like the prompts.

| On the command line | Config | Trains | On ViT-B/16, 100 classes |
|---|---|---|--:|
{methods}

The counts include the head's 76,900 and are the paper's, but for Sidetune (another side network) and LoRA (not in the paper,
PEFT's own). `partial-k` and `mlp-k` take any k, `adapter` any
`--set reduction_factor=r`. In Python:

```python
from peft import get_peft_model
from peft_vprompt import FineTuningConfig

model = get_peft_model(vit, FineTuningConfig(num_layers=1))  # the last layer, the final norm and the head
```

* Fine-tuned modules and biases are copies: `disable_adapter`, `unload` and further adapters find the base model as it
  was, and `merge_and_unload` writes them into it. Adapters and side networks cannot be merged and say so.
* They are saved and loaded like prompts: never half-written, refused as a whole where they do not fit, with a model card
  (LoRA by PEFT itself).
* A model with a text tower gives its image encoder and a new head: `vprompt train --method linear` works on a CLIP.
* The authors' adapters start with both matrices at zero, where no gradient reaches either; ours start with one, like
  PEFT's LoRA (`--set init_weights=zero` for theirs).
* The authors' side network is a pretrained AlexNet; ours is transformers' `ResNetModel` with one basic block per stage,
  32, 64 and 128 channels, from random weights.

## The protocol

`vprompt sweep` does what the paper does: every pair of ten base rates (the learning rate for a batch of 256) and four
weight decays is trained and rated on validation images; the best is trained on training and validation images with five
seeds and tested; the report has the mean and the standard deviation. Started again
it goes on where it was stopped; started several times at once, it
[shares the runs out](scaling.md#grids-on-several-workers).

```bash
vprompt sweep --model google/vit-base-patch16-224-in21k --data path/to/vtab-1k --benchmark vtab-1k/caltech101 \\
  --method vpt-deep --set num_virtual_tokens=10 --output runs/caltech101
vprompt sweep --model google/vit-base-patch16-224-in21k --data path/to/vtab-1k --benchmark vtab-1k --output runs/vtab
```

`--benchmark` reads the splits as published from a local folder and downloads nothing:

* FGVC (`fgvc/cub`, `nabirds`, `flowers`, `dogs`, `cars`): `train.json`, `val.json`, `test.json`, {{image path: class id}};
  short side to 256, random crop of 224 and flip; centre crop to test.
* VTAB-1k (19 tasks): `train800.txt`, `val200.txt`, `test.txt`, lines of an image path and a label; resized to 224, not
  augmented. With the whole benchmark the report has the means of the natural, specialised and structured tasks.

None of these data sets is part of this repository, and no number on them is claimed here.

## What holds on a small task

A ViT of 4 layers of width 128 ({encoder:,} parameters), which `examples/studies/pretrain_vit.py` trains with labels on the procedural
world of the embedded CLIP: {pretrain_steps:,} batches of {pretrain_batch} pictures, labelled with shape, fill and colour, which
it tells on new pictures of that world in {shape:g}, {fill:g} and {colour:g} % of the cases. The head reads the class token, as
in pretraining. It starts from the embedded CLIP's image encoder, which saves time.

The task: {classes} classes, each a shape, a fill and a colour, in a style that pretraining never showed. SGD with momentum,
batch {batch_size}, weight decay {weight_decay:g}, a tenth of the epochs as warm-up, cosine, every training image augmented once, for
all methods alike: {lengths}. The paper trains longer (100 epochs of 800 to 1,000 images in its shortest tasks).

The base rate is the best of {rates} on {validation} validation images, chosen anew at each number of shots, the grid extended until
the best was not at its end (or at the end of all rates, 10); with that rate every method is trained with {seeds} seeds (which draw the shots, the first values and
the order) and tested on {test} images that chose nothing. Accuracy in percent, mean and standard deviation. Measured on
{cpu}, by `examples/studies/compare_transfer.py`.

| Method | Trained | Without the head | Base rates | {columns} |
|---|--:|--:|--:|{rules}
{rows}

![Accuracy against trained parameters](results/transfer.png)

What the paper found on ViT-B/16, and whether it holds here, with a higher mean and in more than half of the seeds. The
numbers are the differences of the means in points and the seeds in which the first is better:

{verdicts}

How to read this: {reading} One small encoder, one drawn task, few steps and three seeds: this shows a fair comparison at
work, not how large models behave.
"""


def render(results: dict) -> str:
    """The page as Markdown."""
    rows = {row["title"]: row for row in results["rows"]}
    shots = list(results["rows"][0]["shots"])
    return PAGE_TEXT.format(
        methods="\n".join(
            f"| `{row['name']}` | `{row['config']}` | {row['trains']} | {row['parameters']:,} |"
            for row in results["vit_b16"]
        ),
        encoder=encoder_size(results),
        classes=results["classes"],
        **_pretraining(results["pretraining"]),
        lengths=_lengths(results, shots),
        batch_size=results["batch_size"],
        weight_decay=results["weight_decay"],
        rates=", ".join(f"{rate:g}" for rate in results["rates"]),
        validation=results["images"]["validation"],
        test=results["images"]["test"],
        seeds=len(results["rows"][0]["shots"][shots[0]]["runs"]),
        cpu=results["environment"]["machine"]["cpu"],
        columns=" | ".join(f"{count} shot{'s' if count != '1' else ''}" for count in shots),
        rules="--:|" * len(shots),
        rows="\n".join(_row(row, results) for row in results["rows"]),
        verdicts="\n".join(
            [*(_claim(text, pair, rows) for text, pair in CLAIMS.items()), _close_to_full(results, rows)]
        ),
        reading=READING,
    )


def _pretraining(record: dict) -> dict:
    """What the page says about the pretraining."""
    return {"pretrain_steps": record["steps"], "pretrain_batch": record["batch_size"], **record["accuracy"]}


def _lengths(results: dict, shots: list[str]) -> str:
    """Epochs and steps at every number of shots, in words."""
    parts = []
    for count in shots:
        epochs = results["epochs"][count]
        steps = epochs * (int(count) * results["classes"] // results["batch_size"])
        parts.append(f"{epochs} epochs ({steps} steps) at {count} shot{'s' if count != '1' else ''} per class")
    return _and(parts)


def encoder_size(results: dict) -> int:
    """Parameters of the encoder: all of full fine-tuning but the head."""
    full, linear = (_by_title(results, title)["trainable_parameters"] for title in ("Full", "Linear"))
    return full - linear


def share(row: dict, results: dict) -> float:
    """What a method trains beside the head, in percent of the encoder."""
    head = _by_title(results, "Linear")["trainable_parameters"]
    return 100 * (row["trainable_parameters"] - head) / encoder_size(results)


def _by_title(results: dict, title: str) -> dict:
    return next(row for row in results["rows"] if row["title"] == title)


def _row(row: dict, results: dict) -> str:
    accuracies = [part["accuracy"] for part in row["shots"].values()]
    cells = [row["title"], f"{row['trainable_parameters']:,}", f"{share(row, results):.2f} %"]
    rates = ", ".join(f"{part['best']['base_rate']:g}" for part in row["shots"].values())
    cells += [rates, *(f"{a['mean']:.1f} ± {a['std']:.1f}" for a in accuracies)]
    return f"| {' | '.join(cells)} |"


def difference(first: dict, second: dict, shots: str) -> tuple[float, int, int]:
    """Mean difference in points, the seeds in which the first is better, and the number of seeds."""
    pairs = zip(first["shots"][shots]["runs"], second["shots"][shots]["runs"], strict=True)
    changes = [one["accuracy"] - other["accuracy"] for one, other in pairs]
    return statistics.mean(changes), sum(change > 0 for change in changes), len(changes)


def _claim(text: str, pair: tuple[str, str], rows: dict) -> str:
    """A claim about two rows with where it holds, and the numbers."""
    better, worse = pair
    words, holds = [], {}
    for shots in rows[better]["shots"]:
        mean, wins, seeds = difference(rows[better], rows[worse], shots)
        holds[shots] = mean > 0 and 2 * wins > seeds
        words.append(f"{mean:+.1f} at {shots} ({wins} of {seeds})")
    return f"* {text} ({better} against {worse}): **{_verdict(holds)}**. {', '.join(words)}"


def _verdict(holds: dict[str, bool]) -> str:
    """In words: at which numbers of shots something holds."""
    found = [shots for shots, true in holds.items() if true]
    if len(found) == len(holds):
        return "holds"
    return f"holds at {_and(found)} shots only".replace(" 1 shots", " 1 shot") if found else "does not hold"


def _and(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _close_to_full(results: dict, rows: dict) -> str:
    """The best method that trains under one percent of the encoder, against full fine-tuning."""
    small = [row for row in results["rows"] if 0 < share(row, results) < 1]
    words, holds = [], {}
    for shots in rows["Full"]["shots"]:
        best = max((row for row in small), key=lambda row: row["shots"][shots]["accuracy"]["mean"])
        mean, _, _ = difference(best, rows["Full"], shots)
        holds[shots] = mean > -2
        words.append(f"{best['title']} {mean:+.1f} at {shots}")
    return (
        "* Under 1 % of the encoder's parameters, the head aside, come close to full fine-tuning (within 2 points, or better; "
        f"the best of {len(small)} such methods): **{_verdict(holds)}**. {', '.join(words)}"
    )


def draw(results: dict, path: Path) -> None:
    """Accuracy against trained parameters, one panel for each number of shots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shots = list(results["rows"][0]["shots"])
    figure, panels = plt.subplots(1, len(shots), figsize=(4.6 * len(shots), 4.4), squeeze=False, layout="constrained")
    markers = "osD^v<>pP*XhHd8"
    for panel, count in zip(panels[0], shots, strict=True):
        for index, row in enumerate(results["rows"]):
            accuracy = row["shots"][count]["accuracy"]
            panel.errorbar(
                row["trainable_parameters"],
                accuracy["mean"],
                yerr=accuracy["std"],
                marker=markers[index % len(markers)],
                color=f"C{index % 10}",
                linestyle="",
                capsize=2,
                label=row["title"],
            )
        show_the_others(panel, results["rows"], count)
        panel.set_xscale("log")
        panel.set_title(f"{count} shot{'s' if count != '1' else ''} per class")
        panel.set_xlabel("trained parameters")
    panels[0, 0].set_ylabel("test accuracy (%)")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
    plt.close(figure)


def show_the_others(panel, rows: list[dict], shots: str) -> None:
    """Where a row is far below all others, leave it out of the scale and write its mean at the lower edge."""
    below = {row["title"]: row["shots"][shots]["accuracy"] for row in rows}
    lowest = min(below, key=lambda title: below[title]["mean"])
    others = [accuracy for title, accuracy in below.items() if title != lowest]
    ends = [a["mean"] - a["std"] for a in others], [a["mean"] + a["std"] for a in others]
    bottom, top = min(ends[0]), max(ends[1])
    if below[lowest]["mean"] < bottom - (top - bottom):
        panel.set_ylim(bottom - 0.15 * (top - bottom), top + 0.05 * (top - bottom))
        text = f"{lowest} {below[lowest]['mean']:.1f} ± {below[lowest]['std']:.1f} (mean not shown)"
        panel.text(0.02, 0.02, text, transform=panel.transAxes, fontsize=8)


def main() -> None:
    """Write the page and the picture."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    draw(results, PICTURE)
    with atomic_path(PAGE) as partial:
        partial.write_text(render(results), encoding="utf-8")


if __name__ == "__main__":
    main()
