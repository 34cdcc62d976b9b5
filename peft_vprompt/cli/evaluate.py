"""`vprompt evaluate`."""

from pathlib import Path
from typing import Annotated

from datasets import Dataset

from ..build import load_adapter
from ..data import DataOptions, load_split
from ..evaluation import evaluate as evaluate_model
from ..experiment import eval_sets, split_classes
from ..reports import environment, write_json
from . import options
from .app import command, console
from .options import option, saved_data_options, saved_run, takes_data


@command
@takes_data(default="the data of the training", without=("train_split", "test_split"))
def evaluate(
    adapter: Annotated[str, option("Folder or Hub id of a trained adapter.")],
    data: DataOptions | None,
    model: Annotated[str | None, option("Base model; default: the one the adapter names.")] = None,
    split: Annotated[str, option("Split to evaluate on.", panel="Data")] = "test",
    subset: Annotated[str, option("Classes: base, novel or all.")] = "all",
    zero_shot: Annotated[bool, option("Switch the adapter off.", "--zero-shot")] = False,
    output: Annotated[Path | None, option("JSON file for the result.")] = None,
):
    """Evaluate a trained adapter on any images and any classes.

    **Examples**

    - `vprompt evaluate --adapter runs/demo/maple --subset novel`
    - `vprompt evaluate --adapter runs/b --data path/to/other.parquet --label-column name --split test`
    - `vprompt evaluate --adapter runs/b --data path/to/folder --class-names names.txt --output result.json`
    """
    saved = saved_run(adapter)
    rows = _rows(adapter, saved, data, split)
    names = rows.features["label"].names
    classes = split_classes(names, subset != "all") | {"all": names}
    if subset not in classes:
        raise ValueError(f"The classes to evaluate are base, novel or all. Received: --subset {subset}.")
    trained = next(iter(saved["classes"].values())) if saved else names
    embedded = saved is not None and saved["settings"]["model"] is None
    built = load_adapter(adapter, model, trained, embedded=embedded)
    sets = eval_sets(rows, {subset: classes[subset]}, built.image_processor)
    accuracy = evaluate_model(built.model, sets, zero_shot=zero_shot)
    result = {
        "adapter": adapter,
        "subset": subset,
        "zero_shot": zero_shot,
        "images": len(sets[subset].rows),
        "classes": classes[subset],
        "accuracy": accuracy,
        "environment": environment(),
    }
    if output is not None:
        write_json(result, output)
    console.print(
        f"Accuracy on {subset} ({len(classes[subset])} classes, {result['images']} images): "
        f"[bold]{accuracy[subset]:.2f} %[/]"
    )


def _rows(adapter: str, saved: dict | None, data: DataOptions | None, split: str) -> Dataset:
    """The images to evaluate on: those asked for, or those the adapter was trained with."""
    if data is None:
        if saved is None:
            raise ValueError(f"{adapter} has no results.json that names its data. Give --data.")
        data = saved_data_options(saved)
    return load_split(data, split) if data else options.demo_task(split)
