"""Two image encoders under wrong labels, a ViT and a ResNet that saw the same pictures; docs/results/noise_on_backbones.json.

    python -m examples.studies.noise_on_backbones runs/backbones   # goes on where it was stopped
    python docs/render/noise_on_backbones.py                       # the page from the JSON

The ViT is the embedded CLIP's, the ResNet that of `pretrain_demo --tower resnet`, in runs/backbones/resnet-clip; it is made
if it is not there. Both are studied as `vprompt noise-study` does: the embedded task, the demo's recipe, the same shots and seeds,
random wrong labels and those that the CLIP itself takes for right.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import datasets
import transformers
import typer
from datasets import DatasetDict
from rich.console import Console

from peft_vprompt.demo import demo_model_path, demo_task
from peft_vprompt.experiments.models import DEMO_CHANGES
from peft_vprompt.experiments.noise_plots import study_table
from peft_vprompt.experiments.noise_study import Study, run_study
from peft_vprompt.experiments.settings import Settings
from peft_vprompt.utils.io import read_json, write_json

from .pretrain_demo import Options, pretrain


RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "noise_on_backbones.json"

#: What is compared: prompt tuning with two losses, and a logistic regression on the image features.
GRID: dict[str, Any] = {
    "methods": ("coop", "linear-probe"),
    "kinds": ("symmetric", "confusion"),
    "rates": (0.0, 0.25, 0.5),
    "losses": ("ce", "gce"),
    "seeds": (1, 2, 3),
}

#: How the ResNet is trained: beside the ViT's own text tower, so that the two CLIPs differ in how they see alone.
RESNET = Options(steps=800, tower="resnet", locked_text=True)

#: What the page says about a CLIP, of the record of its training.
SAID = ("options", "parameters", "world_accuracy", "task_accuracy")


def compare(folder: Path, resnet: Path, **grid) -> dict:
    """Run the study on both CLIPs, as far as it is not done yet.

    Args:
        folder: Folder for the runs.
        resnet: Folder of the ResNet CLIP.
        **grid: Changes to `GRID`.

    Returns:
        What the JSON holds: of each CLIP its size and what it knew before, zero-shot, the runs and their summary.
    """
    data = DatasetDict(train=demo_task("train"), test=demo_task("test"))
    models = {"vit": None, "resnet": str(resnet)}
    results: dict[str, Any] = {"models": {}}
    for tower, model in models.items():
        base = Settings("coop", model=model, cache_features=True, **DEMO_CHANGES["coop"])
        study = Study(base, **GRID | grid)
        result = run_study(study, data, folder / tower)
        Console().print(f"[bold]{tower}[/]", study_table(result))
        record = read_json(Path(model or demo_model_path()) / "training.json")
        said = {name: record[name] for name in SAID}
        results["models"][tower] = said | {name: result[name] for name in ("zero_shot", "runs", "summary")}
        results |= {"chance": result["chance"], "environment": result["environment"]}
    return results


def main(
    folder: Annotated[Path, typer.Argument(help="Folder for the runs.")],
    resnet: Annotated[
        Path | None,
        typer.Option(help="Folder of the ResNet CLIP, which is trained there if it is empty [FOLDER/resnet-clip]."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of the shots, the noise, the prompts and the order.")] = 3,
):
    """Run the comparison and write docs/results/noise_on_backbones.json."""
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    resnet = resnet or folder / "resnet-clip"
    if not (resnet / "training.json").is_file():
        pretrain(RESNET, resnet)
    write_json(compare(folder, resnet, seeds=tuple(range(1, seeds + 1))), RESULTS)


if __name__ == "__main__":
    typer.run(main)
