"""`vprompt evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.markup import escape

from .app import command, console, given, say_named, say_next
from .choices import DATA
from .options import (
    SAME_IMAGES,
    ClassDescriptions,
    Device,
    EvalBf16,
    ImageSize,
    option,
    saved_data_options,
    saved_run,
    takes_data,
)


if TYPE_CHECKING:
    from datasets import Dataset

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
    new_classes: Annotated[
        bool,
        option("Tell the classes of the data apart, in the place of the adapter's.", "--new-classes", panel="Data"),
    ] = False,
    class_descriptions: ClassDescriptions = None,
    zero_shot: Annotated[bool, option("Switch the adapter off.", "--zero-shot")] = False,
    output: Annotated[Path | None, option("JSON file for the result.")] = None,
    diagnosis: Annotated[
        Path | None, option("Folder for calibration, confusion and an estimate of wrong labels.", "--diagnose")
    ] = None,
    device: Device = "auto",
    bf16: EvalBf16 = False,
    image_size: ImageSize = None,
):
    """Evaluate a trained adapter on any images and any classes.

    Images are told apart among all classes that the adapter knows, also where the data have some of them. Folders are
    found among these by their names; `--class-names` with two columns, folder and name, says what is called otherwise.
    The data's own classes are told apart with `--new-classes`.

    **Examples**

    - `vprompt evaluate --adapter runs/demo/maple --subset novel`
    - `vprompt evaluate --adapter runs/b --data path/to/other.parquet --label-column name --split test --new-classes`
    - `vprompt evaluate --adapter runs/b --data path/to/folder --class-names names.txt --output result.json`
    - `vprompt evaluate --adapter runs/b --diagnose runs/b/diagnosis`
    """
    from peft_vprompt.data.multi_hot import is_multi_label
    from peft_vprompt.experiments.adapter_classes import classes_to_tell_apart, known_classes, subsets
    from peft_vprompt.experiments.diagnostics import diagnose
    from peft_vprompt.experiments.models import adapter_config, load_adapter
    from peft_vprompt.experiments.reports import WORSE, is_worse
    from peft_vprompt.experiments.results import require_local_data
    from peft_vprompt.experiments.run import as_published, eval_sets
    from peft_vprompt.experiments.several_labels import MEAN_AVERAGE_PRECISION, chance_of_several
    from peft_vprompt.training.evaluation import among_own_classes, chance, evaluate_beside_zero_shot
    from peft_vprompt.training.evaluation import evaluate as evaluate_model
    from peft_vprompt.utils.devices import find_device
    from peft_vprompt.utils.environment import environment
    from peft_vprompt.utils.io import write_json

    config = adapter_config(adapter)  # before anything is said about what lies beside it
    saved = saved_run(adapter)
    if data is None and saved is not None:
        require_local_data(saved["data"], Path(adapter) / "results.json")
    if model is None and (saved is None or saved["settings"]["model"] is not None):
        say_named(config)
    trained_on = saved_data_options(saved, adapter) if saved else None
    if data is None:
        _require_results(adapter, saved)
        data = trained_on
    rows = _read_rows(data, split, trained_on)
    listed = data.listed_names if data and isinstance(data.class_names, tuple) else None
    rows = classes_to_tell_apart(rows, listed, known_classes(config, saved), new_classes)
    classes = subsets(rows.features["label"].names, saved)
    if subset not in classes:
        raise ValueError(f"The classes to evaluate are base, novel or all. Received: --subset {subset}.")
    if diagnosis is not None and is_multi_label(rows):
        raise ValueError(
            "A diagnosis compares one class with another for each image. Leave --diagnose out with --multi-label."
        )
    trained = next(iter(saved["classes"].values())) if saved else classes["all"]
    embedded = saved is not None and saved["settings"]["model"] is None
    size = image_size or (saved["settings"].get("image_size") if saved else None)
    loaded = load_adapter(
        adapter,
        model,
        trained,
        embedded=embedded,
        image_size=size,
        device=find_device(device),
        class_descriptions=class_descriptions,
    )
    bundle = as_published(loaded, data.benchmark if data else None)
    sets = eval_sets(rows, {subset: classes[subset]}, bundle.image_processor)
    sets = {subset: among_own_classes(bundle.model, sets[subset])}
    options = {"bf16": bf16, "progress": "Test"}
    plain = None
    if zero_shot:
        accuracy = evaluate_model(bundle.model, sets, zero_shot=True, **options)
    else:
        accuracy, plain = evaluate_beside_zero_shot(bundle.model, sets, **options)
    several = is_multi_label(rows)
    guessed = (
        chance_of_several(rows, {subset: classes[subset]}) if several else chance({subset: sets[subset].class_names})
    )
    result = {
        "adapter": adapter,
        "subset": subset,
        "zero_shot": zero_shot,
        "images": len(sets[subset].rows),
        "classes": sets[subset].class_names,
        **({"metric": MEAN_AVERAGE_PRECISION} if several else {}),
        "accuracy": accuracy,
        "zero_shot_accuracy": plain,
        "chance": guessed,
        "image_size": size,
        "environment": environment(),
    }
    beside = [f"zero-shot {plain[subset]:.2f} %"] if plain else []
    beside += [f"chance {guessed[subset]:.2f} %"]
    worse = f" [yellow]{WORSE} worse than zero-shot[/]" if plain and is_worse(accuracy[subset], plain[subset]) else ""
    console.print(
        f"{MEAN_AVERAGE_PRECISION.capitalize() if several else 'Accuracy'} on {subset} ({len(sets[subset].class_names)} classes, {result['images']} images): "
        f"[bold]{accuracy[subset]:.2f} %[/]; {', '.join(beside)}.{worse}",
        soft_wrap=True,
    )
    if output is not None:
        write_json(result, output)
    same = given("model", *SAME_IMAGES, "split", "subset", "device", "image_size")
    if several:
        return
    if diagnosis is None:
        say_next("evaluate", "--adapter", adapter, *same, "--diagnose", Path(adapter).name + "-diagnosis")
        return
    report = diagnose(bundle.model, sets[subset], diagnosis, zero_shot)
    noise = report["estimated_noise"]
    console.print(
        f"Calibration error {100 * report['calibration']['ece']:.1f} %, estimated wrong labels "
        f"{100 * noise['rate']:.1f} %. {noise['assumes']}",
        soft_wrap=True,
        highlight=False,
    )
    for title, images in (("Suspect labels", noise["suspects"]), ("Worst images", report["worst"])):
        if images:
            shown = ", ".join(str(each["image"] if isinstance(each, dict) else each) for each in images[:5])
            console.print(f"{title}: {escape(shown)}{', ...' if len(images) > 5 else ''}", soft_wrap=True)
    console.print(f"All of them are in {escape(str(diagnosis / 'diagnosis.json'))}.", soft_wrap=True)
    if not zero_shot and plain is not None:
        say_next("evaluate", "--adapter", adapter, *same, "--zero-shot", "--diagnose", f"{diagnosis}-zero-shot")


def _read_rows(data: "DataOptions | None", split: str | None, trained_on: "DataOptions | None") -> "Dataset":
    """Read the images to evaluate on; of other data than the training's all, where they are not split."""
    from peft_vprompt.data import load_split
    from peft_vprompt.data.options import describe
    from peft_vprompt.demo import demo_task

    if data is None:
        # pyrefly: ignore[bad-argument-type]  # refused there, if there is no such split
        return demo_task(split or "test")
    same = trained_on is not None and describe(data)["path"] == describe(trained_on)["path"]
    cut = same or data.test_fraction != DATA["test_fraction"]["default"]
    return load_split(data, split or (data.test_split if cut else None))


def _require_results(adapter: str, saved: dict | None) -> None:
    if saved is None:
        raise ValueError(f"{adapter} has no results.json that names its data. Give --data.")
