"""`vprompt evaluate`."""

from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    saved_data_options,
    takes_data,
    takes_machine,
)


if TYPE_CHECKING:
    from datasets import Dataset

    from peft_vprompt.data import DataOptions
    from peft_vprompt.experiments.models import ModelBundle
    from peft_vprompt.experiments.test_time import TestTimeSettings
    from peft_vprompt.experiments.trained import SavedAdapter
    from peft_vprompt.training.evaluation import EvalSet
    from peft_vprompt.utils.processes import Processes


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
    from peft_vprompt.data import EvalTransform
    from peft_vprompt.data.multi_hot import is_multi_label
    from peft_vprompt.data.options import require_outside
    from peft_vprompt.experiments.adapter_classes import classes_to_tell_apart, require_moves, subsets, warn_trained
    from peft_vprompt.experiments.authors import fields_elsewhere
    from peft_vprompt.experiments.eval_sets import eval_sets
    from peft_vprompt.experiments.models import as_published
    from peft_vprompt.experiments.results import holds, require_local_data, require_own
    from peft_vprompt.experiments.several_labels import MEAN_AVERAGE_PRECISION, chance_of_several
    from peft_vprompt.experiments.templates import set_templates
    from peft_vprompt.experiments.trained import SavedAdapter
    from peft_vprompt.training.cached_features import require_features_of
    from peft_vprompt.training.eval_classes import among_own_classes, compares_with_text, own_classes
    from peft_vprompt.training.evaluation import chance, main_metric
    from peft_vprompt.utils.devices import find_device
    from peft_vprompt.utils.environment import environment
    from peft_vprompt.utils.io import write_json
    from peft_vprompt.utils.processes import all_processes

    if output is not None:
        require_own(output, "the result of an evaluation", holds("adapter", "subset", "accuracy"))
    if diagnosis is not None:
        file = diagnosis / "diagnosis.json"
        require_own(file, "a diagnosis", holds("calibration", "estimated_noise"), "--diagnose")
    tuning = _read_tuning(test_time, test_time_set, words, adapter, zero_shot or diagnosis is not None)
    found = SavedAdapter.find(adapter) if adapter else None
    saved = found.run if found else None
    if adapter is None:
        require_model(model, data)
    elif data is None and saved is not None:
        require_local_data(saved["data"], Path(adapter) / "results.json")
    if found is not None:
        say_named(found.config, model is not None or found.is_embedded)
    trained_on = saved_data_options(saved, adapter) if saved and adapter else None
    listed = data.listed_names if data is not None and isinstance(data.class_names, tuple) else None
    if data is None and adapter is not None:
        _require_results(adapter, saved)
    data = _as_trained(data, trained_on)
    target = _other_task(data, found)
    described = class_descriptions is not None
    elsewhere = {} if found is None or described else fields_elsewhere(found.config, target)
    published = elsewhere.pop("template", None)
    templates = _templates(template, data, found, described) or published
    plain_text = None if template or described else _published_text(data, found)
    if zero_shot:
        templates = templates or plain_text
    new = new_classes or (found is not None and target is not None and found.moves)
    rows = _read(data, split, trained_on)
    rows = classes_to_tell_apart(rows, listed, found.known_classes if found else None, new)
    require_outside(data, output, diagnosis)
    classes = subsets(rows.features["label"].names, saved)
    if subset not in classes:
        raise ValueError(f"The classes to evaluate are base, novel or all. Received: --subset {subset}.")
    if not zero_shot:
        warn_trained(subset, classes[subset], saved, found is not None and found.is_classifier)
    several = is_multi_label(rows)
    if several and (diagnosis is not None or tuning is not None):
        raise ValueError(
            "Diagnosis and test-time tuning compare one class with another for each image. Leave --diagnose and "
            "--test-time out with --multi-label."
        )
    size = image_size or (found.image_size if found else None)
    place = {
        "image_size": size,
        "device": find_device(machine.device),
        "precision": machine.precision,
        "class_descriptions": class_descriptions,
    }
    bundle = as_published(_load(found, words, model, classes["all"], **place), data.benchmark if data else None)
    with bundle.model.disable_adapter() if zero_shot else nullcontext():
        require_features_of(bundle.model, EvalTransform(bundle.image_processor), rows)
    if templates is not None and (template or compares_with_text(bundle.model)):
        set_templates(bundle.model, templates)
    for name, value in elsewhere.items():
        setattr(bundle.model.active_peft_config, name, value)
    if target is not None:
        _say_other_task(target, new, templates)
    asked = {subset: classes[subset]}
    sets = eval_sets(rows, asked, bundle.image_processor)
    if new_classes:
        require_moves(own_classes(bundle.model), classes["all"])
    sets = {subset: among_own_classes(bundle.model, sets[subset])}
    processes = all_processes(machine.device)
    measured, plain, untuned = _measure(bundle, rows, asked, sets, zero_shot, tuning, processes, plain_text)
    if not processes.is_first:
        return
    guessed = chance_of_several(rows, asked) if several else chance({subset: sets[subset].class_names})
    result = {
        "adapter": adapter,
        "subset": subset,
        "zero_shot": zero_shot,
        "images": len(sets[subset].rows),
        "classes": sets[subset].class_names,
        **({"metric": MEAN_AVERAGE_PRECISION} if several else {}),
        "accuracy": main_metric(measured),
        **({"per_class": measured["per_class"]} if "per_class" in measured else {}),
        "zero_shot_accuracy": plain,
        **({"template": templates} if templates else {}),
        **({"words": words} if words else {}),
        **({"test_time": asdict(tuning), "untuned_accuracy": untuned} if tuning else {}),
        "chance": guessed,
        "image_size": size,
        "environment": environment(),
    }
    _say(result)
    if output is not None:
        write_json(result, output)
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
    if several:
        return
    if diagnosis is None:
        if adapter is not None:
            say_next("evaluate", "--adapter", adapter, *same, "--diagnose", Path(adapter).name + "-diagnosis")
        return
    _diagnose(bundle, sets[subset], diagnosis, zero_shot)
    if not zero_shot and plain is not None:
        say_next("evaluate", "--adapter", adapter, *same, "--zero-shot", "--diagnose", f"{diagnosis}-zero-shot")


def _measure(
    bundle: "ModelBundle",
    rows: "Dataset",
    asked: dict[str, list[str]],
    sets: "dict[str, EvalSet]",
    zero_shot: bool,
    tuning: "TestTimeSettings | None",
    processes: "Processes",
    plain_text: str | None,
) -> tuple[dict[str, dict], dict | None, dict | None]:
    """Return metrics by name, and beside them the accuracies of zero-shot and without tuning, where they are others.

    Zero-shot reads `plain_text`, where there is one, in the place of the adapter's template.
    """
    from peft_vprompt.experiments.test_time import view_sets
    from peft_vprompt.training.evaluation import among_own_classes, main_metric, measure, measure_beside_zero_shot
    from peft_vprompt.training.test_time import evaluate_at_test_time

    options: dict[str, Any] = {"progress": "Test", "processes": processes}
    if zero_shot:
        return measure(bundle.model, sets, zero_shot=True, **options), None, None
    if tuning is None:
        measured, plain = measure_beside_zero_shot(bundle.model, sets, template=plain_text, **options)
        return measured, None if plain is None else main_metric(plain), None
    views = view_sets(rows, asked, bundle.image_processor, tuning)
    views = {subset: among_own_classes(bundle.model, each) for subset, each in views.items()}
    accuracy, untuned = evaluate_at_test_time(bundle.model, views, tuning, **options)
    plain = main_metric(measure(bundle.model, sets, zero_shot=True, **options))
    return {"accuracy": accuracy}, plain, untuned


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


def _diagnose(bundle: "ModelBundle", test_set: "EvalSet", folder: Path, zero_shot: bool) -> None:
    """Write the diagnosis and print what stands out in it."""
    from peft_vprompt.experiments.diagnostics import diagnose

    report = diagnose(bundle.model, test_set, folder, zero_shot)
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
    test_time: bool, test_time_set: list[str] | None, words: str | None, adapter: str | None, other: bool
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
    if other:
        raise ValueError(
            "Expected --test-time alone. Received: --zero-shot or --diagnose, which are of the adapter as it is. Run them "
            "apart."
        )
    return TestTimeSettings.of(parse_fields(test_time_set, "--test-time-set"))


def _load(
    found: "SavedAdapter | None", words: str | None, model: str | None, names: list[str], **place
) -> "ModelBundle":
    """Load the adapter, or make a context of words."""
    from peft_vprompt.experiments.models import build_model

    if found is not None:
        return found.load(model, names, **place)
    return build_model(model, "coop", names, prompt_init="text", prompt_init_text=words, **place)


def _as_trained(data: "DataOptions | None", trained_on: "DataOptions | None") -> "DataOptions | None":
    """Return where the images to evaluate on are, with what is not said of them as in the training, where they are its own."""
    from peft_vprompt.data.options import as_trained, same_images

    if data is None or trained_on is None:
        return data or trained_on
    said = {name for name in DATA_OPTIONS if given(name)}
    if same_images(data, trained_on):
        return as_trained(data, trained_on, said)
    return data if "background" in said else replace(data, background=trained_on.background)


def _read(data: "DataOptions | None", split: str | None, trained_on: "DataOptions | None") -> "Dataset":
    """Read the images to evaluate on; of other data than the training's all, where they are not split."""
    from peft_vprompt.data import load_split
    from peft_vprompt.data.options import same_images
    from peft_vprompt.data.sources import require_same_split
    from peft_vprompt.demo import demo_task

    if data is None:
        # pyrefly: ignore[bad-argument-type]  # refused there, if there is no such split
        return demo_task(split or "test")
    cut = bool(given("test_fraction"))
    if trained_on is not None and same_images(data, trained_on):
        require_same_split(data, split, trained_on)
        cut = True
    return load_split(data, split or (data.test_split if cut else None))


def _other_task(data: "DataOptions | None", found: "SavedAdapter | None") -> str | None:
    """Return the published task to evaluate on, where it is not the one that the adapter was trained on."""
    target = data.benchmark if data is not None else None
    return target if found is not None and target != found.benchmark else None


def _templates(
    given: list[str] | None, data: "DataOptions | None", found: "SavedAdapter | None", described: bool
) -> str | list[str] | None:
    """Return the text around class names that is asked for; None where none is."""
    from peft_vprompt.experiments.templates import read_templates

    known = data if data is not None else found
    return read_templates(given, None if known is None else known.benchmark, described)


def _published_text(data: "DataOptions | None", found: "SavedAdapter | None") -> str | None:
    """Return the published text of the task that is evaluated on; None where the adapter was trained with another one."""
    from peft_vprompt.experiments.templates import published_template

    changed = found.run["settings"].get("config") if found is not None and found.run is not None else None
    if isinstance(changed, dict) and changed.keys() & {"template", "class_descriptions"}:
        return published_template(_other_task(data, found))
    known = data if data is not None else found
    return None if known is None else published_template(known.benchmark)


def _say_other_task(task: str, new: bool, templates: str | list[str] | None) -> None:
    """Print what changes with the task: the classes to tell apart, and the text around their names."""
    said = [f"the {'task' if new else 'adapter'}'s own classes are told apart"]
    if isinstance(templates, str):
        said.append(f"in the template {templates!r} where the text is not learned")
    console.print(
        f"{task} is not what was trained on: {', '.join(said)}.", soft_wrap=True, highlight=False, markup=False
    )


def _require_results(adapter: str, saved: dict | None) -> None:
    if saved is None:
        raise ValueError(f"{adapter} has no results.json of its own that names its data. Give --data.")
