"""`vprompt train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .app import command, console, given, say_named_by, say_next, say_next_line, say_saved
from .label_options import UNLABELLED, takes_loss, takes_supervision
from .options import (
    SAME_IMAGES,
    Cached,
    ImageSize,
    Language,
    License,
    Machine,
    MethodName,
    Model,
    Private,
    PushToHub,
    ReportTo,
    Seed,
    Shots,
    Templates,
    Views,
    Wait,
    Workers,
    describe_data,
    option,
    read_data,
    read_workers,
    require_model,
    takes_data,
    takes_machine,
    takes_recipe,
)
from .push import say_published


if TYPE_CHECKING:
    from peft_vprompt.data import DataOptions
    from peft_vprompt.experiments.supervision import Supervision


TEACHER = "Distillation"
BaseNovel = Annotated[
    bool | None,
    option(
        "Train on the first half of the classes and test on both halves, or train on all. Default: all with --data.",
        "--base-novel/--all-classes",
    ),
]
CacheFeatures = Annotated[
    bool,
    option(
        "Keep image features on the disk and train the text side alone (methods without visual prompts).",
        "--cache-features",
    ),
]

DraftJpeg = Annotated[
    bool,
    option(
        "Decode large JPEGs to train on at a part of their size, of twice the model's at least: quicker, with a little other "
        "pixels. Those to test on are read whole.",
        "--draft-jpeg",
        panel="Machine",
    ),
]


@command(several_processes=True)
@takes_data()
@takes_recipe()
@takes_loss
@takes_supervision
@takes_machine
def train(
    machine: Machine,
    output: Annotated[Path, option("Folder for the adapter and results.json.")],
    data: "DataOptions | None",
    recipe: dict,
    loss: dict,
    supervision: "Supervision",
    method: MethodName = "maple",
    model: Model = None,
    shots: Shots = 16,
    seed: Seed = 1,
    base_novel: BaseNovel = None,
    template: Templates = None,
    ensemble: Annotated[int, option("Contexts to train and to average in one adapter.", panel=UNLABELLED)] = 1,
    watch: Annotated[bool, option("Test after every epoch; changes nothing that is trained.", "--watch")] = False,
    cached: Cached = False,
    cache_features: CacheFeatures = False,
    views: Views = None,
    workers: Workers = "auto",
    draft_jpeg: DraftJpeg = False,
    image_size: ImageSize = None,
    report_to: ReportTo = None,
    report: Annotated[
        bool,
        option("Write report.html: what was trained and what it gets wrong, on one page.", "--report/--no-report"),
    ] = True,
    teacher: Annotated[
        str | None,
        option(
            "Adapter, or base model as it is, whose predictions promptkd learns (folder or Hub id).", panel=TEACHER
        ),
    ] = None,
    teacher_model: Annotated[
        str | None, option("Base model of the teacher's adapter; default: the one it names.", panel=TEACHER)
    ] = None,
    push_to_hub: PushToHub = None,
    private: Private = False,
    language: Language = None,
    license: License = None,
    wait: Wait = False,
):
    """Train one method on your images and evaluate it.

    All classes are learned, unless you ask for the field's test on classes that were never trained on
    (`--base-novel`), which the embedded task is for.

    The recipe (optimizer, rate, schedule, batch, length) is that of the method's authors unless you change it; CoOp on
    noisy labels or without labels takes PTNL's. Saves the adapter and `results.json`. A run that was stopped goes on from its last
    epoch when started again in the same way, with the same images and base model; where they changed it says so and
    trains afresh.

    **Examples**

    - `vprompt train --output runs/a --model openai/clip-vit-base-patch16 --data path/to/folder --method maple`
    - `vprompt train --output runs/b --model path/to/clip --data path/to/grocery.parquet --label-column classname
      --split-column split --method coop --shots 16`
    - `vprompt train --output runs/c --model google/vit-base-patch16-224-in21k --data path/to/folder --method vpt
      --shots 0`
    - `vprompt train --output runs/all --model openai/clip-vit-base-patch16 --data photos.csv --method coop
      --test-fraction 0`
    - `vprompt train --output runs/m --model google/siglip-base-patch16-224 --data scenes.csv --multi-label --method coop`
    - `vprompt train --output runs/d --method coop --set num_virtual_tokens=4 --epochs 20`
    - `torchrun --nproc_per_node 2 -m peft_vprompt train --output runs/d2 --method maple` (as one process, on two devices)
    - `vprompt train --output runs/e --method coop --cache-features --views 8`
    - `vprompt train --output runs/f --method coop --noise symmetric --noise-rate 0.25 --loss gce --q 0.7`
    - `vprompt train --output runs/g --method coop --unlabelled --selector random-k --loss gce --ensemble 4
      --cache-features`
    - `vprompt train --output runs/z --method zero-shot --template ensemble-80 --model openai/clip-vit-base-patch16 --data
      path/to/folder`
    - `vprompt train --output runs/h --method promptkd --teacher runs/large --model openai/clip-vit-base-patch16
      --data path/to/folder --views 4`
    """
    from peft_vprompt.experiments.authors import published_choices
    from peft_vprompt.experiments.reports import explain, results_table
    from peft_vprompt.experiments.run import run_experiment
    from peft_vprompt.experiments.settings import Settings
    from peft_vprompt.experiments.sharing import check_hub, publish
    from peft_vprompt.experiments.templates import read_templates
    from peft_vprompt.tuners.base.registry import get_method
    from peft_vprompt.utils.processes import launched_number

    row = get_method(method)
    require_model(model, data, method)
    if private and not push_to_hub:
        raise ValueError("--private is about the repository of --push-to-hub. Give that, too, or leave it out.")
    if push_to_hub and not row.trains:
        raise ValueError(
            f"Expected a method that leaves an adapter to publish. Received: --push-to-hub with {method}."
        )
    if push_to_hub:
        check_hub(push_to_hub)
    described = "class_descriptions" in recipe["config"]
    if templates := read_templates(template, data.benchmark if data else None, described):
        recipe["config"] |= {"template": templates}
    distils = teacher is not None
    if supervision.pseudo_labels is not None and given("shots"):
        console.print(
            "All images of the file of pseudo-labels are trained on; --shots decides the length of the training alone. "
            "`vprompt pseudo-label --per-class` chooses how many images a class has.",
            soft_wrap=True,
        )
    if base_novel is None:
        base_novel = data is None and row.new_classes and supervision.uses_labels
    settings = Settings(
        method=method,
        model=model,
        shots=None if distils and not given("shots") else shots or None,
        seed=seed,
        base_novel=base_novel,
        cache_features=cache_features,
        views=views,
        supervision=supervision,
        ensemble=ensemble,
        image_size=image_size,
        teacher=teacher,
        teacher_model=teacher_model,
        precision=machine.precision,
        draft_jpeg=draft_jpeg,
        **recipe,
        **loss,
    )
    if teacher is not None:
        say_named_by(teacher, teacher_model)
    benchmark = data.benchmark if data else None
    if changes := published_choices(settings, benchmark).changes:
        shown = ", ".join(f"{name}={value}" for name, value in changes.items())
        console.print(f"{row.title}'s authors vary on {benchmark}: {shown}.", soft_wrap=True, highlight=False)
    # Of the data's own: those that were held out of the training images are there anyway.
    validation = bool(recipe["config"].get("search_scale")) or (watch and data is not None and not data.test_fraction)
    images = read_data(data, output, distils or not supervision.uses_labels, validation)
    run = run_experiment(
        settings,
        images,
        output,
        data_description=describe_data(data),
        cached=cached,
        watch=watch,
        workers=read_workers(workers),
        class_names=data.listed_names if data else None,
        device=machine.device,
        report_to=report_to or (),
        report=report,
        language=language,
        license=license,
        wait=wait,
    )
    console.print(results_table([run]))
    if "teacher" in run:
        shown = ", ".join(f"{name} {value:.2f} %" for name, value in run["teacher"].items())
        console.print(f"The teacher: {shown}.")
    console.print(explain([run]), soft_wrap=True)
    if "test" not in images:
        console.print("There are no test images, so no accuracy was measured on any.")
    if "validation" in run:
        shown = ", ".join(f"{name} {value:.2f} %" for name, value in run["validation"].items())
        which = "images held out of the training images" if data and data.val_fraction else "validation images"
        console.print(f"On the {which}: {shown}.")
    say_saved(output)
    if run["adapter_bytes"] is None:  # zero-shot, which leaves nothing to evaluate
        same = given(
            "model",
            *SAME_IMAGES,
            "shots",
            "base_novel",
            "template",
            "class_descriptions",
            "device",
            "precision",
            "image_size",
        )
        say_next("train", *same, "--method", "maple", "--output", output.with_name("maple"))
    else:
        novel = ["--subset", "novel"] if base_novel else []
        diagnosis = [] if "metric" in run else ["--diagnose", output / "diagnosis"]
        say_next("evaluate", "--adapter", output, *_tested_on(run), *novel, *diagnosis)
        predictions = output.with_name(f"{output.name}-predictions.csv")
        say_next("predict", "--adapter", output, "--data", "path/to/other/images", "--output", predictions)
        say_next("inspect", output)
    if "tensorboard" in (report_to or ()):
        say_next_line("tensorboard", "--logdir", output)
    if push_to_hub and not launched_number():  # of several processes the first one
        say_published(publish(output, push_to_hub, model, private=private or None))


def _tested_on(run: dict) -> list[str]:
    """Return the options that name images to evaluate on, where a run kept none to test on."""
    if run["test_images"]:
        return []
    return ["--split", "validation"] if "validation" in run else ["--data", "path/to/images"]
