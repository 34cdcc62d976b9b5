"""`vprompt evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.markup import escape

from .app import command, console, say_named
from .options import option, saved_data_options, saved_run, takes_data


if TYPE_CHECKING:
    from peft_vprompt.data import DataOptions


@command
@takes_data(default="the data of the training", without=("train_split", "test_split"))
def evaluate(
    adapter: Annotated[str, option("Folder or Hub id (id@revision) of a trained adapter.")],
    data: "DataOptions | None",
    model: Annotated[str | None, option("Base model; default: the one the adapter names.")] = None,
    split: Annotated[
        str | None, option("Split to evaluate on; default: the one that the training tested on.", panel="Data")
    ] = None,
    subset: Annotated[str, option("Classes: base, novel or all.")] = "all",
    zero_shot: Annotated[bool, option("Switch the adapter off.", "--zero-shot")] = False,
    output: Annotated[Path | None, option("JSON file for the result.")] = None,
    diagnosis: Annotated[
        Path | None, option("Folder for calibration, confusion and an estimate of wrong labels.", "--diagnose")
    ] = None,
):
    """Evaluate a trained adapter on any images and any classes.

    **Examples**

    - `vprompt evaluate --adapter runs/demo/maple --subset novel`
    - `vprompt evaluate --adapter runs/b --data path/to/other.parquet --label-column name --split test`
    - `vprompt evaluate --adapter runs/b --data path/to/folder --class-names names.txt --output result.json`
    - `vprompt evaluate --adapter runs/b --diagnose runs/b/diagnosis`
    """
    from peft_vprompt.data import load_split
    from peft_vprompt.demo import demo_task
    from peft_vprompt.experiments.diagnostics import diagnose
    from peft_vprompt.experiments.models import adapter_config, load_adapter
    from peft_vprompt.experiments.results import require_local_data
    from peft_vprompt.experiments.run import as_published, eval_sets, split_classes
    from peft_vprompt.training.evaluation import evaluate as evaluate_model
    from peft_vprompt.utils.environment import environment
    from peft_vprompt.utils.io import write_json

    config = adapter_config(adapter)  # before anything is said about what lies beside it
    saved = saved_run(adapter)
    if data is None and saved is not None:
        require_local_data(saved["data"], Path(adapter) / "results.json")
    if model is None and (saved is None or saved["settings"]["model"] is not None):
        say_named(config)
    data = data or _data_of_the_training(adapter, saved)
    # pyrefly: ignore[bad-argument-type]  # refused there, if there is no such split
    rows = load_split(data, split or data.test_split) if data else demo_task(split or "test")
    names = rows.features["label"].names
    classes = split_classes(names, subset != "all") | {"all": names}
    if subset not in classes:
        raise ValueError(f"The classes to evaluate are base, novel or all. Received: --subset {subset}.")
    trained = next(iter(saved["classes"].values())) if saved else names
    embedded = saved is not None and saved["settings"]["model"] is None
    bundle = as_published(load_adapter(adapter, model, trained, embedded=embedded), data.benchmark if data else None)
    sets = eval_sets(rows, {subset: classes[subset]}, bundle.image_processor)
    accuracy = evaluate_model(bundle.model, sets, zero_shot=zero_shot)
    result = {
        "adapter": adapter,
        "subset": subset,
        "zero_shot": zero_shot,
        "images": len(sets[subset].rows),
        "classes": classes[subset],
        "accuracy": accuracy,
        "environment": environment(),
    }
    console.print(
        f"Accuracy on {subset} ({len(classes[subset])} classes, {result['images']} images): "
        f"[bold]{accuracy[subset]:.2f} %[/]"
    )
    if output is not None:
        write_json(result, output)
    if diagnosis is not None:
        report = diagnose(bundle.model, sets[subset], diagnosis, zero_shot)
        console.print(
            f"Calibration error {100 * report['calibration']['ece']:.1f} %, estimated wrong labels "
            f"{100 * report['estimated_noise']['rate']:.1f} %. Details: {escape(str(diagnosis))}.",
            soft_wrap=True,
        )


def _data_of_the_training(adapter: str, saved: dict | None) -> "DataOptions | None":
    """How to read the images that the adapter was trained with; None for the embedded task."""
    if saved is None:
        raise ValueError(f"{adapter} has no results.json that names its data. Give --data.")
    return saved_data_options(saved)
