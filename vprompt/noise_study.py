"""`vprompt noise-study`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .app import command, console, given, say_next, say_saved, show_grid
from .choices import LINEAR_PROBE, LOSSES, NOISE_KINDS, STUDY_METHODS
from .label_options import Q
from .options import (
    SAME_IMAGES,
    SEVERAL_LABELS,
    Machine,
    Model,
    Shots,
    Status,
    Storage,
    Views,
    describe_data,
    option,
    read_data,
    require_model,
    split_list,
    split_numbers,
    takes_data,
    takes_machine,
    takes_recipe,
)


if TYPE_CHECKING:
    from peft_vprompt.data import DataOptions


#: Losses with the parameter q.
LOSSES_WITH_Q = ("gce", "phuber-gce")


@command
@takes_data(without=SEVERAL_LABELS)
@takes_recipe(without=("config", "class_descriptions"))
@takes_machine
def noise_study(
    machine: Machine,
    output: Annotated[Path, option("Folder for the runs, study.json and the plots.")],
    data: "DataOptions | None",
    recipe: dict,
    methods: Annotated[
        str,
        option(
            f"Methods of `vprompt train`, and {LINEAR_PROBE}, separated by commas. Fields of the config follow a colon: "
            "coop:num_virtual_tokens=4."
        ),
    ] = ",".join(STUDY_METHODS),
    kinds: Annotated[str, option(f"Kinds of noise: {', '.join(NOISE_KINDS)}.")] = "symmetric",
    rates: Annotated[str, option("Shares of wrong labels.")] = "0,0.125,0.25,0.5",
    losses: Annotated[str, option(f"Losses: {', '.join(LOSSES)}.")] = "ce,gce",
    seeds: Annotated[str, option("Seeds of the shots, the noise, the prompts and the order of images.")] = "1,2,3",
    q: Q = None,
    gradients: Annotated[
        bool,
        option(
            "Also measure the gradients of clean and of noisy samples, at the highest rate: of their mean losses, without "
            "dropout, on one augmentation that stays the same.",
            "--gradients",
        ),
    ] = False,
    without_labels: Annotated[
        bool, option("Also compare zero-shot, UPL and robust UPL, which read no label.", "--without-labels")
    ] = False,
    model: Model = None,
    shots: Shots = 16,
    views: Views = None,
    storage: Storage = None,
    status: Status = False,
):
    """Find out which method and loss stand wrong labels best on your data.

    Trains methods x kinds of noise x rates x losses x seeds on cached image features and writes `study.json` and
    plots. Runs that are done are not repeated: started again, a study goes on where it was stopped. Started several times
    at once, on as many machines as share the output folder, each start takes the runs that no other has, and `--status`
    shows who has which. The recipe is PTNL's for all methods (on the embedded model: the demo's, which is shorter) unless
    you change it.

    **Examples**

    - `vprompt noise-study --output runs/noise --methods coop,classifier-r --seeds 1`
    - `vprompt noise-study --output runs/noise --model path/to/clip --data path/to/folder --kinds symmetric,confusion
      --gradients --without-labels`
    - `vprompt noise-study --output runs/length --methods coop:num_virtual_tokens=1,coop:num_virtual_tokens=16
      --losses ce`
    """
    from peft_vprompt.experiments.models import DEMO_CHANGES
    from peft_vprompt.experiments.noise_plots import explain_study, plot_study, study_table
    from peft_vprompt.experiments.noise_study import Study, run_study
    from peft_vprompt.experiments.settings import Settings

    if status:
        show_grid(output, storage)
        return
    require_model(model, data)
    if model is None:
        recipe |= {name: value for name, value in DEMO_CHANGES["coop"].items() if recipe[name] is None}
    base = Settings(
        "coop",
        model=model,
        shots=shots or None,
        cache_features=True,
        views=views,
        precision=machine.precision,
        **recipe,
    )
    compared = split_list("--losses", losses)
    if q is not None and not without_labels and not set(compared) & set(LOSSES_WITH_Q):
        raise ValueError(
            f"--q is of {' and '.join(LOSSES_WITH_Q)}. Received: --losses {losses}. Leave it out, or compare one of them."
        )
    study = Study(
        base,
        methods=tuple(split_list("--methods", methods)),
        kinds=tuple(split_list("--kinds", kinds)),
        rates=tuple(split_numbers("--rates", rates)),
        losses=tuple(compared),
        seeds=tuple(split_numbers("--seeds", seeds, int)),
        loss_options={} if q is None else dict.fromkeys(LOSSES_WITH_Q, {"q": q}),
        gradients=gradients,
        without_labels=without_labels,
    )
    result = run_study(study, read_data(data, output), output, describe_data(data), machine.device, storage)
    plot_study(result, output)
    console.print(study_table(result))
    console.print(explain_study(result), soft_wrap=True)
    say_saved(output)
    same = given("model", *SAME_IMAGES, "shots", "device", "precision", "image_size")
    say_next("train", *same, *_best(result["summary"]), "--cache-features", "--output", output / "best")


def _best(summary: list[dict]) -> list[str]:
    """Return the options of the method and loss that `vprompt train` knows and that did best where labels are wrong most."""
    able = [row for row in summary if row["unlabelled"] is None and row["method"] != LINEAR_PROBE]
    if not able:
        return ["--method", "coop", "--loss", "gce"]
    highest = max(row["rate"] for row in able)
    best = max((row for row in able if row["rate"] == highest), key=lambda row: row["mean"])
    method, *fields = best["method"].split(":")
    changes = [text for field in fields for text in ("--set", field)]
    return ["--method", method, *changes, "--all-classes", "--loss", best["loss"]]
