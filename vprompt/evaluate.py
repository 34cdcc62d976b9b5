"""`vprompt evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.markup import escape

from .app import command, console, given, say_named, say_next
from .options import (
    DATA_OPTIONS,
    SAME_IMAGES,
    ClassDescriptions,
    ImageSize,
    Machine,
    Templates,
    option,
    require_model,
    takes_data,
    takes_machine,
)


if TYPE_CHECKING:
    from peft_vprompt.data import DataOptions
    from peft_vprompt.experiments.test_time import TestTimeSettings


TUNING = "Test-time tuning"
#: Words that the context starts from where there is no adapter.
WORDS = "a photo of a"


@command(several_processes=True)
@takes_data(default="the data of the training", without=("train_split", "test_split"))
@takes_machine
def evaluate(
    machine: Machine,
    data: "DataOptions | None",
    adapter: Annotated[
        str | None, option("Folder or Hub id (id@revision) of a trained adapter. Needed, but for --words.")
    ] = None,
    model: Annotated[str | None, option("Base model; default: the one the adapter names.")] = None,
    split: Annotated[
        str | None, option("Split to evaluate on; default: the one that the training tested on.", panel="Data")
    ] = None,
    subset: Annotated[str, option("Classes: base, novel or all.")] = "all",
    new_classes: Annotated[
        bool,
        option("Tell the classes of the data apart, in the place of the adapter's.", "--new-classes", panel="Data"),
    ] = False,
    template: Templates = None,
    class_descriptions: ClassDescriptions = None,
    zero_shot: Annotated[bool, option("Switch the adapter off.", "--zero-shot")] = False,
    test_time: Annotated[
        bool,
        option("Tune the context of each image on its own views, without labels (TPT).", "--test-time", panel=TUNING),
    ] = False,
    test_time_set: Annotated[
        list[str] | None,
        option(
            "How, as NAME=VALUE: views, confident (share of them), steps, learning_rate, weight_decay, augmix, seed. May be "
            "repeated.",
            panel=TUNING,
        ),
    ] = None,
    words: Annotated[
        str | None,
        option(f"Tune a context of these words, such as '{WORDS}', in the place of an adapter's.", panel=TUNING),
    ] = None,
    output: Annotated[Path | None, option("JSON file for the result.")] = None,
    diagnosis: Annotated[
        Path | None, option("Folder for calibration, confusion and an estimate of wrong labels.", "--diagnose")
    ] = None,
    image_size: ImageSize = None,
):
    """Evaluate a trained adapter on any images and any classes.

    Images are told apart among all classes that the adapter knows, also where the data have some of them. Folders are
    found among these by their names; `--class-names` with two columns, folder and name, says what is called otherwise.
    The data's own classes are told apart with `--new-classes`, and those of a published task (`--benchmark`) that the
    adapter was not trained on by themselves, in the task's template where the text is not learned.

    **Examples**

    - `vprompt evaluate --adapter runs/demo/maple --subset novel`
    - `vprompt evaluate --adapter runs/b --data path/to/other.parquet --label-column name --split test --new-classes`
    - `vprompt evaluate --adapter runs/b --data path/to/folder --class-names names.txt --output result.json`
    - `vprompt evaluate --adapter runs/imagenet --data path/to/data --benchmark coop-11/oxford_pets`
    - `vprompt evaluate --adapter runs/b --zero-shot --template ensemble-80`
    - `vprompt evaluate --adapter runs/b --diagnose runs/b/diagnosis`
    - `vprompt evaluate --adapter runs/demo/coop --subset novel --test-time`
    - `vprompt evaluate --words "a photo of a" --test-time --test-time-set views=32 --model path/to/clip
      --data path/to/folder`
    """
    from peft_vprompt.experiments.evaluation import Evaluation, EvaluationSettings, trained_data
    from peft_vprompt.experiments.results import holds, require_own
    from peft_vprompt.experiments.trained import SavedAdapter
    from peft_vprompt.utils.devices import find_device
    from peft_vprompt.utils.io import write_json
    from peft_vprompt.utils.processes import all_processes

    if output is not None:
        require_own(output, "the result of an evaluation", holds("adapter", "subset", "accuracy"))
    if diagnosis is not None:
        file = diagnosis / "diagnosis.json"
        require_own(file, "a diagnosis", holds("calibration", "estimated_noise"), "--diagnose")
    settings = EvaluationSettings(
        model,
        data,
        said={name for name in DATA_OPTIONS if given(name)},
        split=split,
        subset=subset,
        new_classes=new_classes,
        template=template,
        class_descriptions=class_descriptions,
        zero_shot=zero_shot,
        tuning=_read_tuning(test_time, test_time_set, words, adapter),
        words=words,
        image_size=image_size,
        device=find_device(machine.device),
        precision=machine.precision,
    )
    saved = SavedAdapter.find(adapter) if adapter else None
    if saved is None:
        require_model(model, data)
    else:
        trained_data(saved, data)  # refused before anything is said
        say_named(saved.config, model is not None or saved.is_embedded)
    evaluation = Evaluation.prepare(saved, settings, (output, diagnosis))
    if diagnosis is not None:
        evaluation.check_diagnosis()
    if evaluation.note:
        console.print(evaluation.note, soft_wrap=True, highlight=False, markup=False)
    processes = all_processes(machine.device)
    result = evaluation.measure(processes, "Test")
    if not processes.is_first:
        return
    _say(result)
    if output is not None:
        write_json(result, output)
    if adapter is None or evaluation.is_multi_label:
        return
    same = given(
        "model",
        *SAME_IMAGES,
        "split",
        "subset",
        "new_classes",
        "template",
        "class_descriptions",
        "device",
        "precision",
        "image_size",
    )
    if diagnosis is None:
        say_next("evaluate", "--adapter", adapter, *same, "--diagnose", Path(adapter).name + "-diagnosis")
        return
    _say_diagnosis(evaluation.diagnose(diagnosis), diagnosis)
    if result["zero_shot_accuracy"] is not None:
        say_next("evaluate", "--adapter", adapter, *same, "--zero-shot", "--diagnose", f"{diagnosis}-zero-shot")


def _say(result: dict) -> None:
    """Print the accuracy beside those that it is to be compared with."""
    from peft_vprompt.experiments.reports import WORSE, is_worse
    from peft_vprompt.experiments.several_labels import metric_of

    subset, accuracy, plain = result["subset"], result["accuracy"], result["zero_shot_accuracy"]
    untuned = result.get("untuned_accuracy")
    beside = [f"without tuning {untuned[subset]:.2f} %"] if untuned else []
    beside += [f"zero-shot {plain[subset]:.2f} %"] if plain else []
    beside += [f"chance {result['chance'][subset]:.2f} %"]
    value, mean = (f"{found[subset]:.2f} %" for found in (accuracy, result.get("per_class", accuracy)))
    of_classes = "" if mean == value else f", mean over classes {mean}"  # classes of different size
    worse = f" [yellow]{WORSE} worse than zero-shot[/]" if plain and is_worse(accuracy[subset], plain[subset]) else ""
    console.print(
        f"{metric_of(result).capitalize()} on {subset} ({len(result['classes'])} classes, {result['images']} images): "
        f"[bold]{value}[/]{of_classes}; {', '.join(beside)}.{worse}",
        soft_wrap=True,
    )


def _say_diagnosis(report: dict, folder: Path) -> None:
    """Print what stands out in a diagnosis."""
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
    console.print(f"All of them are in {escape(str(folder / 'diagnosis.json'))}.", soft_wrap=True)


def _read_tuning(
    test_time: bool, test_time_set: list[str] | None, words: str | None, adapter: str | None
) -> "TestTimeSettings | None":
    """Read the options of test-time tuning; None without it."""
    from peft_vprompt.experiments.test_time import TestTimeSettings
    from peft_vprompt.utils.validation import parse_fields

    if (adapter is None) == (words is None):
        raise ValueError("Expected --adapter, or --words with --test-time. Received neither or both.")
    if not test_time:
        if needs := ["--test-time-set"] * bool(test_time_set) + ["--words"] * bool(words):
            raise ValueError(f"{' and '.join(needs)} need --test-time. Add it, or leave them out.")
        return None
    return TestTimeSettings.of(parse_fields(test_time_set, "--test-time-set"))
