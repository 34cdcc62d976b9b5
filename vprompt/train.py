"""`vprompt train`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .app import command, console, say_saved
from .options import (
    UNLABELLED,
    Cached,
    MethodName,
    Model,
    Seed,
    Shots,
    Views,
    Wait,
    Workers,
    option,
    read_data,
    takes_data,
    takes_loss,
    takes_recipe,
    takes_supervision,
)


if TYPE_CHECKING:
    from peft_vprompt.data import DataOptions
    from peft_vprompt.experiments.supervision import Supervision


BaseNovel = Annotated[
    bool,
    option(
        "Train on the first half of the classes and test on both halves, or use all.", "--base-novel/--all-classes"
    ),
]
CacheFeatures = Annotated[
    bool,
    option(
        "Keep image features on the disk and train the text side alone (methods without visual prompts).",
        "--cache-features",
    ),
]


@command(several_processes=True)
@takes_data()
@takes_recipe()
@takes_loss
@takes_supervision
def train(
    output: Annotated[Path, option("Folder for the adapter and results.json.")],
    data: "DataOptions | None",
    recipe: dict,
    loss: dict,
    supervision: "Supervision",
    method: MethodName = "maple",
    model: Model = None,
    shots: Shots = 16,
    seed: Seed = 1,
    base_novel: BaseNovel = True,
    ensemble: Annotated[int, option("Contexts to train and to average in one adapter.", panel=UNLABELLED)] = 1,
    watch: Annotated[bool, option("Test after every epoch.", "--watch")] = False,
    cached: Cached = False,
    cache_features: CacheFeatures = False,
    views: Views = 1,
    workers: Workers = 0,
    wait: Wait = False,
):
    """Train one method on your images and evaluate it.

    The recipe is the authors' (SGD, cosine per epoch after a warm-up) unless you change it; CoOp on noisy labels or
    without labels takes PTNL's. Saves the adapter and `results.json`. A run that was stopped goes on from its last
    epoch when started again in the same way, with the same images and base model; where they changed it says so and
    trains afresh.

    **Examples**

    - `vprompt train --output runs/a --model openai/clip-vit-base-patch16 --data path/to/folder --method maple`
    - `vprompt train --output runs/b --model path/to/clip --data path/to/grocery.parquet --label-column classname
      --split-column split --method coop --shots 16`
    - `vprompt train --output runs/c --model google/vit-base-patch16-224-in21k --data path/to/folder --method vpt
      --all-classes --shots 0`
    - `vprompt train --output runs/d --method coop --set num_virtual_tokens=4 --epochs 20`
    - `vprompt train --output runs/e --method coop --cache-features --views 8`
    - `vprompt train --output runs/f --method coop --noise symmetric --noise-rate 0.25 --loss gce --q 0.7`
    - `vprompt train --output runs/g --method coop --all-classes --unlabelled --selector random-k --loss gce
      --ensemble 4 --cache-features`
    """
    from peft_vprompt.experiments.reports import results_table
    from peft_vprompt.experiments.run import Settings, run_experiment
    from peft_vprompt.tuners.base.registry import get_method

    settings = Settings(
        method=method,
        model=model,
        shots=shots or None,
        seed=seed,
        base_novel=base_novel,
        cache_features=cache_features,
        views=views,
        supervision=supervision,
        ensemble=ensemble,
        **recipe,
        **loss,
    )
    get_method(method)
    images = read_data(data, unlabelled=not supervision.uses_labels)
    about = asdict(data) if data else None
    run = run_experiment(
        settings,
        images,
        output,
        data_description=about,
        cached=cached,
        watch=watch,
        workers=workers,
        wait=wait,
    )
    console.print(results_table([run]))
    say_saved(output)
