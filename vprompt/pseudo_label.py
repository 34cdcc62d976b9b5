"""`vprompt pseudo-label`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.markup import escape

from .app import command, console, given, say_next, say_saved
from .label_options import SELECTOR_HELP, UNLABELLED
from .options import (
    SAME_IMAGES,
    SEVERAL_LABELS,
    ImageSize,
    Machine,
    Templates,
    Wait,
    option,
    read_data,
    require_model,
    takes_data,
    takes_machine,
)


if TYPE_CHECKING:
    from datasets import DatasetDict

    from peft_vprompt.data import DataOptions
    from peft_vprompt.experiments.pseudo_labels import PseudoLabels


@command(several_processes=True)
@takes_data(without=SEVERAL_LABELS)
@takes_machine
def pseudo_label(
    machine: Machine,
    output: Annotated[Path, option("File for the labels and their scores (.safetensors).")],
    data: "DataOptions | None",
    model: Annotated[
        list[str] | None,
        option("Folder or Hub id of a CLIP; several are averaged. Needed with --data; the embedded task has its own."),
    ] = None,
    template: Templates = None,
    combine: Annotated[
        str, option("What several CLIPs average: probabilities, logits or features.")
    ] = "probabilities",
    selector: Annotated[str, option(SELECTOR_HELP, panel=UNLABELLED)] = "top-k",
    per_class: Annotated[int, option("Images per class; 0 for all.", panel=UNLABELLED)] = 16,
    min_confidence: Annotated[
        float | None, option("Take every image above this confidence instead.", panel=UNLABELLED)
    ] = None,
    seed: Annotated[int, option("Seed of a random choice.", panel=UNLABELLED)] = 1,
    check: Annotated[
        bool, option("Compare with the true labels afterwards; writes a report and a plot beside.", "--check")
    ] = False,
    image_size: ImageSize = None,
    wait: Wait = False,
):
    """Label the training images by zero-shot and choose those to train on. True labels are not read.

    **Examples**

    - `vprompt pseudo-label --output runs/labels.safetensors`
    - `vprompt pseudo-label --output labels.safetensors --model path/to/a --model path/to/b --data path/to/folder
      --template "a photo of a {}, a type of pet." --selector random-k`
    - `vprompt pseudo-label --output labels.safetensors --model path/to/a --data path/to/unlabelled/images
      --class-names names.txt`
    - `vprompt train --method coop --pseudo-labels runs/labels.safetensors --output runs/upl`
    """
    from peft_vprompt.experiments.diagnostics import plot_reliability, pseudo_label_report
    from peft_vprompt.experiments.models import as_published, build_model, published_fields
    from peft_vprompt.experiments.pseudo_labels import PseudoLabels
    from peft_vprompt.experiments.results import holds, require_own
    from peft_vprompt.experiments.templates import read_templates
    from peft_vprompt.experiments.zero_shot_scores import zero_shot
    from peft_vprompt.metrics import calibration
    from peft_vprompt.utils.devices import find_device
    from peft_vprompt.utils.environment import environment
    from peft_vprompt.utils.io import write_json
    from peft_vprompt.utils.locks import only_writer
    from peft_vprompt.utils.processes import all_processes

    require_own(output, "pseudo-labels", lambda path: PseudoLabels.load(path) is not None)
    if check:
        require_own(output.with_suffix(".json"), "a report on pseudo-labels", holds("chosen", "coverage"))
    require_model(model, data)
    images = read_data(data, output, unlabelled=True)
    names = _class_names(images, data)
    if min_confidence is not None and (ignored := given("selector", "per_class")):
        console.print(
            f"--min-confidence takes every image above it; not used: {escape(' '.join(map(str, ignored)))}.",
            soft_wrap=True,
        )
    truth = _true_labels(data, len(images["train"])) if check else None
    benchmark = data.benchmark if data else None
    templates = read_templates(template, benchmark)
    fields: dict[str, Any] = {"template": templates} if templates else published_fields(benchmark, "zero-shot")
    fields |= {"image_size": image_size, "device": find_device(machine.device), "precision": machine.precision}
    with only_writer(output, wait, is_file=True):
        clips = [as_published(build_model(name, "zero-shot", names, **fields), benchmark) for name in model or [None]]
        processes = all_processes(machine.device)
        table = zero_shot(clips, images["train"], names, combine=combine, processes=processes)
        if not processes.is_first:
            return
        chosen = _choose(table, names, selector, per_class or None, min_confidence, seed)
        report = pseudo_label_report(chosen, truth)
        console.print(
            f"{report['chosen']} of {report['images']} images, {100 * report['coverage']:.0f} % of {len(names)} classes "
            "covered."
        )
        if truth is not None:
            write_json(report | {"environment": environment()}, output.with_suffix(".json"))
            reliability = calibration(table, truth)
            plot_reliability(reliability, output.with_suffix(".png"), "Zero-shot")
            of_chosen = f"{100 * report['accuracy']:.1f} %" if len(chosen) else "none"
            console.print(
                f"Right: {of_chosen} of the chosen, {100 * report['accuracy_of_all']:.1f} % of all; "
                f"calibration error {100 * reliability.ece:.1f} %. Details: {escape(str(output.with_suffix('.json')))}.",
                soft_wrap=True,
            )
        chosen.save(output)
    say_saved(output)
    first = ["--model", model[0]] if model else []
    same = given(*SAME_IMAGES, "device", "precision", "image_size")
    trained = output.with_suffix("")
    say_next("train", *first, *same, "--method", "coop", "--pseudo-labels", output, "--output", f"{trained}-coop")


def _class_names(images: "DatasetDict", data: "DataOptions | None") -> list[str]:
    from peft_vprompt.experiments.eval_sets import class_names_of

    return class_names_of(images, data.listed_names if data else None)


def _choose(table, names, selector: str, per_class: int | None, minimum: float | None, seed: int) -> "PseudoLabels":
    from peft_vprompt.experiments.pseudo_labels import SELECTORS, threshold

    if minimum is not None:
        return threshold(table, names, minimum)
    if selector not in SELECTORS:
        raise ValueError(f"Expected --selector to be one of {', '.join(SELECTORS)}. Received: {selector!r}.")
    return SELECTORS[selector](table, names, per_class, seed)


def _true_labels(data: "DataOptions | None", count: int) -> list[int]:
    """What the labels of so many training images really are: asked for by `--check` alone."""
    from peft_vprompt.data import load_images
    from peft_vprompt.demo import demo_task

    train = demo_task("train") if data is None else load_images(data)["train"]
    if len(train) != count:
        raise ValueError(
            f"--check compares with the labels of all training images. Received: {count} images, of which {len(train)} have "
            "one. Leave it out, or take the images without a label out of the data."
        )
    return train["label"][:]
