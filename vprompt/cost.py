"""`vprompt cost`."""

from pathlib import Path
from typing import Annotated

from .app import command, console, given, say_next, say_saved
from .options import Device, ImageSize, Model, Wait, option, split_list, split_numbers


@command
def cost(
    model: Model = None,
    method: Annotated[str, option("Methods, separated by commas: `vprompt methods`.")] = "coop,cocoop,maple,rpo",
    classes: Annotated[str, option("Numbers of classes, separated by commas.")] = "100",
    shots: Annotated[int, option("Training images per class.")] = 16,
    output: Annotated[
        Path | None, option("JSON file, written after every measurement; those that it has already are not repeated.")
    ] = None,
    seconds: Annotated[
        float, option("How long the steps of each measurement are repeated, two at least.", panel="Machine")
    ] = 10,
    device: Device = "auto",
    precision: Annotated[
        str,
        option(
            "What frozen weights are held in: float32, bf16 or fp16; auto measures float32, and bf16 where the machine "
            "is faster in it.",
            panel="Machine",
        ),
    ] = "auto",
    image_size: ImageSize = None,
    wait: Wait = False,
):
    """Say what a training will take here, in hours and gigabytes, before you start it.

    A few steps of each method are measured on images and class names that mean nothing, and counted up to the authors'
    number of epochs. Where image features may stand for images (`vprompt train --cache-features`) that is measured, too:
    all images are encoded once, and then the text side trains alone. Each measurement is a process of its own, whose
    memory is counted with the model. Loading images and evaluation are not counted.

    **Examples**

    - `vprompt cost`
    - `vprompt cost --model openai/clip-vit-base-patch16 --method coop,maple --classes 37,100,1000`
    - `vprompt cost --model google/vit-base-patch16-224-in21k --method vpt,linear --classes 200 --output cost.json`
    """
    from peft_vprompt.experiments.cost import ABOUT, CostTask, training_costs
    from peft_vprompt.experiments.cost_tables import cost_table, explain_costs, quickest
    from peft_vprompt.experiments.results import holds, require_own
    from peft_vprompt.utils.devices import find_device
    from peft_vprompt.utils.precision import find_precisions

    place = find_device(device)
    task = CostTask(model=model, shots=shots, image_size=image_size, device=str(place), seconds=seconds)
    methods = split_list("--method", method)
    counts = split_numbers("--classes", classes, int)
    if output is not None:
        require_own(output, "measured costs", holds(ABOUT, "cells"))
    precisions = find_precisions(precision, place)
    report = training_costs(task, methods, counts, precisions, output=output, wait=wait, progress="Measure")
    console.print(cost_table(report))
    console.print(explain_costs(report), soft_wrap=True)
    if output is not None:
        say_saved(output)
    cell = quickest(report)
    if cell is not None:
        data = ["--data", "path/to/images"] if model else []
        cached = ["--cache-features"] if cell["cached"] else []
        options = [*given("model", "image_size", "device"), *data, *cached]
        say_next("train", *options, "--method", cell["method"], "--output", f"runs/{cell['method']}")
