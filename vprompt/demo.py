"""`vprompt demo`."""

from pathlib import Path
from typing import Annotated

from rich.markup import escape

from .app import command, console, say_next
from .choices import DEMO_METHODS
from .options import Machine, Seed, Wait, option, read_data, split_list, takes_machine


@command
@takes_machine
def demo(
    machine: Machine,
    output: Annotated[Path, option("Folder for adapters, results.json and results.png.")] = Path("runs/demo"),
    methods: Annotated[str, option("Methods, separated by commas.")] = ",".join(DEMO_METHODS),
    shots: Annotated[int, option("Training images per class.")] = 16,
    seed: Seed = 1,
    wait: Wait = False,
):
    """Train the prompt methods on an embedded tiny CLIP and compare base, novel and their harmonic mean.

    Needs no network and takes a few minutes on two cores. The model and the images are drawn and trained by this
    package itself. To be quick, every training image is augmented once (not anew in each epoch), and batch size,
    learning rate and epochs suit the tiny model, and MRPO adds up the prompts of its layers (`prompt_update=accumulate`);
    `results.json` lists all settings.

    **Examples**

    - `vprompt demo`
    - `vprompt demo --methods zero-shot,maple --shots 4 --seed 2`
    """
    from peft_vprompt.experiments.identity import IDENTITY, keep_previous
    from peft_vprompt.experiments.models import DEMO_CHANGES
    from peft_vprompt.experiments.reports import explain, plot_results, results_table
    from peft_vprompt.experiments.run import run_experiment
    from peft_vprompt.experiments.settings import Settings
    from peft_vprompt.tuners.base.registry import get_method
    from peft_vprompt.utils.environment import environment
    from peft_vprompt.utils.io import write_json
    from peft_vprompt.utils.locks import only_writer

    chosen = split_list("--methods", methods)
    for name in chosen:
        get_method(name)
    data = read_data(None)
    runs = []
    with only_writer(output, wait):
        for name in chosen:
            settings = Settings(
                method=name, shots=shots, seed=seed, precision=machine.precision, **DEMO_CHANGES.get(name, {})
            )
            runs.append(run_experiment(settings, data, output / name, cached=True, device=machine.device))
        identity = {"runs": [run[IDENTITY] for run in runs]}
        keep_previous(output, identity)
        write_json({"runs": runs, IDENTITY: identity, "environment": environment()}, output / "results.json")
        plot_results(runs, output / "results.png", f"Embedded task, {shots} shots, seed {seed}")
    console.print(results_table(runs, f"Embedded task, {shots} shots per class, seed {seed}"))
    console.print(explain(runs), soft_wrap=True)
    console.print(f"Adapters, results.json and results.png are in {escape(str(output))}.", soft_wrap=True)
    trained = [run["settings"]["method"] for run in runs if run["adapter_bytes"] is not None]
    if trained:
        say_next("evaluate", "--adapter", output / trained[-1], "--subset", "novel")
    else:
        say_next("demo", "--output", output, "--methods", "zero-shot,maple")
