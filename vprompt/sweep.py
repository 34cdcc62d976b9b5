"""`vprompt sweep`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .app import command, console, say_next, say_saved, show_grid
from .choices import BASE_RATES, WEIGHT_DECAYS
from .options import (
    SEVERAL_LABELS,
    Cached,
    ImageSize,
    Machine,
    MethodName,
    Model,
    Status,
    Storage,
    Workers,
    describe_data,
    option,
    read_data,
    require_model,
    split_numbers,
    takes_data,
    takes_machine,
    takes_recipe,
)


if TYPE_CHECKING:
    from peft_vprompt.data import DataOptions


@command
@takes_data(without=SEVERAL_LABELS)
@takes_recipe(without=("lr",))
@takes_machine
def sweep(
    machine: Machine,
    output: Annotated[Path, option("Folder for the journal, the runs, sweep.json and sweep.png.")],
    data: "DataOptions | None",
    recipe: dict,
    method: MethodName = "vpt-deep",
    model: Model = None,
    shots: Annotated[int, option("Training images per class; 0 for all.")] = 0,
    rates: Annotated[str, option("Learning rates for a batch of 256, separated by commas.", panel="Grid")] = ",".join(
        f"{rate:g}" for rate in BASE_RATES
    ),
    weight_decays: Annotated[str, option("Weight decays, separated by commas.", panel="Grid")] = ",".join(
        f"{decay:g}" for decay in WEIGHT_DECAYS
    ),
    seeds: Annotated[str, option("Seeds of the last runs, separated by commas.", panel="Grid")] = "1,2,3,4,5",
    cached: Cached = False,
    workers: Workers = 0,
    image_size: ImageSize = None,
    storage: Storage = None,
    status: Status = False,
):
    """Choose learning rate and weight decay on validation images, then train with several seeds and test.

    The protocol of the VPT paper: every pair of the grid is trained and rated on the validation images (a fifth of the
    training images where there are none), the best is trained anew with every seed, on training and validation images
    together, and tested. Started again, it goes on where it was stopped. Started several times at once, on as many machines
    as share the output folder, each start takes the runs that no other has, and `--status` shows who has which. With a
    whole benchmark (`--benchmark vtab-1k`), every task is swept, and the groups' means are written to `benchmark.json`.

    **Examples**

    - `vprompt sweep --method linear --epochs 10 --rates 1,0.25 --weight-decays 0 --seeds 1,2 --output runs/sweep`
    - `vprompt sweep --model google/vit-base-patch16-224-in21k --data path/to/vtab-1k --benchmark vtab-1k/caltech101
      --method vpt-deep --set num_virtual_tokens=10 --output runs/caltech101`
    - `vprompt sweep --model google/vit-base-patch16-224-in21k --data path/to/vtab-1k --benchmark vtab-1k
      --method vpt-deep --output runs/vtab`
    """
    from peft_vprompt.data import find_tasks
    from peft_vprompt.experiments.grid_search import Grid
    from peft_vprompt.experiments.settings import Settings
    from peft_vprompt.experiments.sweep import sweep as run_sweep
    from peft_vprompt.experiments.sweep_report import plot_sweep, sweep_table
    from peft_vprompt.tuners.base.registry import get_method

    if status:
        show_grid(output, storage)
        return
    get_method(method)
    require_model(model, data, method)
    settings = Settings(
        method=method,
        model=model,
        shots=shots or None,
        base_novel=False,
        image_size=image_size,
        precision=machine.precision,
        **recipe,
    )
    grid = Grid(split_numbers("--rates", rates), split_numbers("--weight-decays", weight_decays))
    chosen_seeds = split_numbers("--seeds", seeds, int)
    tasks = find_tasks(data.benchmark) if data and data.benchmark else [None]
    reports = {}
    place = output
    for task in tasks:
        place = output / task.name if task and len(tasks) > 1 else output
        options = replace(data, benchmark=task.full_name) if data and task else data
        report = run_sweep(
            settings,
            read_data(options, output, validation=task is None),  # a benchmark comes with its own
            place,
            grid=grid,
            seeds=chosen_seeds,
            data_description=describe_data(options),
            cached=cached,
            workers=workers,
            device=machine.device,
            storage=storage,
        )
        plot_sweep(report, place / "sweep.png")
        console.print(sweep_table(report, task.title if task else None))
        reports[task.full_name if task else method] = report
    if len(tasks) > 1:
        _save_means(reports, output)
    say_saved(output)
    say_next("evaluate", "--adapter", place / "final" / f"seed-{chosen_seeds[0]}", "--diagnose", place / "diagnosis")


def _save_means(reports: dict[str, dict], output: Path) -> None:
    """Write and show the means of the groups of a benchmark."""
    from peft_vprompt.data import group_means
    from peft_vprompt.experiments.sweep_report import means_table
    from peft_vprompt.utils.environment import environment
    from peft_vprompt.utils.io import write_json

    accuracies = {name: report["accuracy"]["mean"] for name, report in reports.items()}
    means = group_means(accuracies)
    write_json({"tasks": accuracies, "means": means, "environment": environment()}, output / "benchmark.json")
    console.print(means_table(means))
