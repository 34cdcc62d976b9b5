"""`vprompt bench`."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .app import command, console, given, say_next, say_saved, show_grid
from .choices import DEMO_METHODS, PROTOCOLS
from .options import (
    SEVERAL_LABELS,
    Cached,
    ImageSize,
    Machine,
    Model,
    Status,
    Storage,
    Workers,
    option,
    read_workers,
    require_model,
    split_list,
    split_numbers,
    takes_data,
    takes_machine,
    takes_recipe,
)
from .report import show_summary


if TYPE_CHECKING:
    from peft_vprompt.data import DataOptions


GRID = "Grid"


@command
@takes_data(default="the embedded tasks", without=SEVERAL_LABELS)
@takes_recipe(without=("config",))
@takes_machine
def bench(
    machine: Machine,
    output: Annotated[Path, option("Folder for the cells, report.md, report.html and summary.json.")],
    data: "DataOptions | None",
    recipe: dict,
    protocol: Annotated[str, typer.Argument(help=f"One of: {', '.join(PROTOCOLS)}.")] = next(iter(PROTOCOLS)),
    methods: Annotated[
        str,
        option(
            "Methods of `vprompt train`, separated by commas, or all. Fields of a method's config and recipe follow a colon: "
            "coop:num_virtual_tokens=4:epochs=10. Zero-shot is always measured.",
            panel=GRID,
        ),
    ] = ",".join(name for name in DEMO_METHODS if name != "zero-shot"),
    recipes: Annotated[
        Path | None,
        option(
            'JSON file of such changes by method, {"maple": {"learning_rate": 0.002, "prompt_depth": 3}}.', panel=GRID
        ),
    ] = None,
    shots: Annotated[
        str | None,
        option(
            "Training images per class, separated by commas. Default: the protocol's, 16, or 1,2,4,8,16.", panel=GRID
        ),
    ] = None,
    seeds: Annotated[str, option("Seeds of the shots, the prompts and the order of images.", panel=GRID)] = "1,2,3",
    tasks: Annotated[
        str | None,
        option(
            "Tasks of a whole benchmark, or embedded ones, separated by commas; of a transfer, the targets. Default: all.",
            panel=GRID,
        ),
    ] = None,
    source: Annotated[
        str | None,
        option(
            "Task that a transfer trains on. Default: coop-11/imagenet, the first embedded one, or --data.", panel=GRID
        ),
    ] = None,
    targets: Annotated[
        list[str] | None,
        option(
            "Other images that a transfer tests on: a folder or file that is read as --data is, or a published task. May be "
            "repeated.",
            "--targets",
            panel=GRID,
        ),
    ] = None,
    model: Model = None,
    max_steps: Annotated[
        int | None,
        option(
            "Bound every training by so many steps, in whole epochs. Default: the recipe's length.", panel="Recipe"
        ),
    ] = None,
    cached: Cached = False,
    checkpoints: Annotated[
        bool,
        option("Save one after every epoch, so that a cell that is stopped goes on where it was.", "--checkpoints"),
    ] = False,
    workers: Workers = "auto",
    image_size: ImageSize = None,
    against: Annotated[
        str | None,
        option("Method that the others are compared with, beside zero-shot. Default: the first.", panel=GRID),
    ] = None,
    storage: Storage = None,
    status: Status = False,
):
    """Compare methods as the papers do: base-to-novel, few-shot curves, transfer to other data sets and domains.

    Trains every method on every task with all numbers of shots and all seeds, tests it, and writes a report: tables with
    chance and zero-shot beside every accuracy, plots, and intervals of the differences. Cells that are done are not
    repeated: started again, a bench goes on where it was stopped. Started several times at once, on as many machines as
    share the output folder, each start takes the cells that no other has, and `--status` shows who has which.

    The recipes are the authors' unless you change them. Image features that no method changes are computed once for all
    cells; with `--cached` those of the training images, too, which are then augmented once.

    **Examples**

    - `vprompt bench base-to-novel --output runs/bench --methods coop,maple --tasks shapes --seeds 1 --max-steps 64 --cached`
    - `vprompt bench base-to-novel --output runs/b2n --model openai/clip-vit-base-patch16 --data path/to/datasets
      --benchmark coop-11 --methods coop,cocoop,maple`
    - `vprompt bench few-shot --output runs/curve --model openai/clip-vit-base-patch16 --data path/to/folder --methods all`
    - `vprompt bench cross-dataset --output runs/xd --model openai/clip-vit-base-patch16 --data path/to/datasets
      --benchmark coop-11 --methods maple`
    - `vprompt bench domain-generalization --output runs/dg --model openai/clip-vit-base-patch16 --data path/to/datasets
      --benchmark imagenet-shifts`
    - `vprompt bench few-shot --output runs/curve --status`
    """
    from peft_vprompt.data.options import require_outside
    from peft_vprompt.errors import FailedCellsError
    from peft_vprompt.experiments.authors import published_choices
    from peft_vprompt.experiments.bench.bench import run_bench
    from peft_vprompt.experiments.bench.grid import Grid, read_recipes
    from peft_vprompt.experiments.bench.protocols import find_protocol
    from peft_vprompt.experiments.bench.report import write_report
    from peft_vprompt.experiments.bench.tasks import find_bench_tasks
    from peft_vprompt.experiments.models import reads_texts
    from peft_vprompt.experiments.settings import Settings

    if status:
        show_grid(output, storage)
        return
    chosen = find_protocol(protocol)
    require_outside(data, output)
    require_model(model, data)
    names = split_list("--tasks", tasks) if tasks is not None else []
    trained, tested = find_bench_tasks(chosen, data, names, source, targets or [])
    base = Settings("zero-shot", model=model, image_size=image_size, precision=machine.precision, **recipe)
    grid = Grid(
        chosen,
        tuple(trained),
        tuple(split_list("--methods", methods)),
        base,
        shots=tuple(split_numbers("--shots", shots, int)) if shots is not None else (),
        seeds=tuple(split_numbers("--seeds", seeds, int)),
        targets=tuple(tested),
        recipes=read_recipes(recipes) if recipes is not None else {},
        max_steps=max_steps,
        zero_shot=reads_texts(model),
    )
    grid.require(against)
    varied = [c.method for c in grid.cells().values() if published_choices(c.settings, c.task.benchmark).changes]
    if varied:
        console.print(
            f"The authors vary recipe or config on some of these tasks, which is followed: {', '.join(dict.fromkeys(varied))}. "
            "Each cell's results.json says how.",
            soft_wrap=True,
            highlight=False,
        )
    try:
        run_bench(
            grid,
            output,
            storage=storage,
            cached=cached,
            checkpoints=checkpoints,
            workers=read_workers(workers),
            device=machine.device,
            quiet=True,
        )
    except FailedCellsError:
        with suppress(FileNotFoundError):  # every cell failed
            write_report(output, against)
        raise
    show_summary(write_report(output, against))
    say_saved(output)
    say_next("report", output, *given("against"))
