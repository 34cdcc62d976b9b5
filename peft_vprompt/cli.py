"""`vprompt`: the demo, training and evaluation on the command line.

Only options and messages live here; the work is done in `experiment`, `build`, `data` and `evaluation`.
"""

import functools
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated

import datasets
import transformers
import typer
from datasets import DatasetDict
from datasets.exceptions import DatasetsError
from rich.console import Console
from rich.markup import escape

from .build import METHODS, get_method, load_adapter
from .convert import LAYOUTS, convert_checkpoint
from .data import DataOptions, load_images, load_split, read_class_names
from .demo import demo_task
from .evaluation import evaluate as evaluate_model
from .experiment import Settings, eval_sets, run_experiment, split_classes
from .recipes import DEMO_CHANGES
from .reports import environment, plot_results, results_table, write_json
from .version import __version__


MEMORY_HINT = (
    "On a CPU, page faults can take a large part of a training step. glibc keeps freed memory, and spares them, when "
    "started with `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=34359738368 MALLOC_TOP_PAD_=536870912` in the environment."
)
DATA_HELP = {field.name: field.metadata["help"] for field in fields(DataOptions)}
DEFAULTS = DataOptions("")

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Prompt learning for CLIP and ViT: train a few thousand parameters, keep the model frozen.\n\n"
    "Start with `vprompt demo`, which needs no data and no network.\n\n" + MEMORY_HINT,
)
console = Console()
_state = {"traceback": False}


def _option(help_text: str, *names: str, panel: str | None = None):
    return typer.Option(*names, help=help_text, rich_help_panel=panel)


def _data_option(name: str, flag: str | None = None):
    return _option(DATA_HELP[name], *([flag] if flag else []), panel="Data")


ImageColumn = Annotated[str, _data_option("image_column")]
LabelColumn = Annotated[str, _data_option("label_column")]
TrainSplit = Annotated[str, _data_option("train_split")]
TestSplit = Annotated[str, _data_option("test_split")]
SplitColumn = Annotated[str | None, _data_option("split_column")]
Where = Annotated[list[str] | None, _option(DATA_HELP["where"] + " May be repeated.", "--where", panel="Data")]
MinImages = Annotated[int, _data_option("min_images")]
ClassNames = Annotated[
    Path | None, _option("File of class names in label order: one per line, or a JSON list.", panel="Data")
]
CleanNames = Annotated[bool, _data_option("clean_names", "--clean-names/--raw-names")]
TestFraction = Annotated[float, _data_option("test_fraction")]


def one_line_errors(command: Callable) -> Callable:
    """Show what the user can mend as one line and exit with status 2; a bug keeps its traceback."""

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except (ValueError, TypeError, OSError, DatasetsError) as error:
            if _state["traceback"]:
                raise
            _say("[bold red]Error:[/]", str(error) or type(error).__name__)
            raise typer.Exit(2) from error

    return wrapped


def _say(label: str, message: str) -> None:
    """Print one line to the standard error."""
    Console(stderr=True).print(label, escape(" ".join(message.split())), soft_wrap=True, highlight=False)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    _say("[yellow]Warning:[/]", str(message))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vprompt {__version__}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
    traceback: Annotated[bool, _option("Show where an error came from.", "--traceback")] = False,
):
    _state["traceback"] = traceback
    warnings.filterwarnings("ignore", category=FutureWarning)  # of other libraries: nothing a user can act on
    warnings.showwarning = _show_warning
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


@app.command()
@one_line_errors
def demo(
    output: Annotated[Path, _option("Folder for adapters, results.json and results.png.")] = Path("runs/demo"),
    methods: Annotated[str, _option("Methods, separated by commas.")] = ",".join(DEMO_CHANGES),
    shots: Annotated[int, _option("Training images per class.")] = 16,
    seed: Annotated[int, _option("Seed of the shots, the prompts and the order of images.")] = 1,
):
    """Train every method on an embedded tiny CLIP and compare base, novel and their harmonic mean.

    Needs no network and takes a few minutes on two cores. The model and the images are drawn and trained by this
    package itself. To be quick, every training image is augmented once (not anew in each epoch), and batch size,
    learning rate and epochs suit the tiny model; `results.json` lists them.

    **Examples**

    - `vprompt demo`
    - `vprompt demo --methods zero-shot,maple --shots 4 --seed 2`
    """
    chosen = [name.strip() for name in methods.split(",") if name.strip()]
    for name in chosen:
        get_method(name)
    data = _demo_data()
    runs = []
    for name in chosen:
        settings = Settings(method=name, shots=shots, seed=seed, **DEMO_CHANGES.get(name, {}))
        runs.append(run_experiment(settings, data, output / name, cached=True))
    write_json({"runs": runs, "environment": environment()}, output / "results.json")
    plot_results(runs, output / "results.png", f"Embedded task, {shots} shots, seed {seed}")
    console.print(results_table(runs, f"Embedded task, {shots} shots per class, seed {seed}"))
    console.print(f"Adapters, results.json and results.png are in {escape(str(output))}.", soft_wrap=True)


@app.command()
@one_line_errors
def train(
    output: Annotated[Path, _option("Folder for the adapter and results.json.")],
    method: Annotated[str, _option(f"One of: {', '.join(METHODS)}.")] = "maple",
    model: Annotated[str | None, _option("Folder or Hub id of a CLIP or ViT; default: the embedded one.")] = None,
    data: Annotated[str | None, _option(DATA_HELP["path"] + " Default: the embedded task.")] = None,
    shots: Annotated[int, _option("Training images per class; 0 for all.")] = 16,
    seed: Annotated[int, _option("Seed of the shots, the prompts and the order of images.")] = 1,
    base_novel: Annotated[
        bool,
        _option(
            "Train on the first half of the classes and test on both halves, or use all.", "--base-novel/--all-classes"
        ),
    ] = True,
    epochs: Annotated[int | None, _option("Passes over the shots.", panel="Recipe")] = None,
    lr: Annotated[float | None, _option("Learning rate of SGD.", panel="Recipe")] = None,
    batch_size: Annotated[int | None, _option("Images per step.", panel="Recipe")] = None,
    bf16: Annotated[bool, _option("Autocast to bfloat16.", "--bf16", panel="Recipe")] = False,
    config: Annotated[
        list[str] | None,
        _option("Field of the method's config, as NAME=VALUE. May be repeated.", "--set", panel="Recipe"),
    ] = None,
    watch: Annotated[bool, _option("Test after every epoch.", "--watch")] = False,
    cached: Annotated[bool, _option("Augment every training image once and keep the pixels.", "--cached")] = False,
    workers: Annotated[int, _option("Processes that load images.")] = 0,
    image_column: ImageColumn = DEFAULTS.image_column,
    label_column: LabelColumn = DEFAULTS.label_column,
    train_split: TrainSplit = DEFAULTS.train_split,
    test_split: TestSplit = DEFAULTS.test_split,
    split_column: SplitColumn = None,
    where: Where = None,
    min_images: MinImages = DEFAULTS.min_images,
    class_names: ClassNames = None,
    clean_names: CleanNames = True,
    test_fraction: TestFraction = DEFAULTS.test_fraction,
):
    """Train one method on your images and evaluate it.

    The recipe is the authors' (SGD, cosine per epoch, first epoch as warm-up) unless you change it. Saves the
    adapter and `results.json`. A run that was stopped goes on from its last epoch when started again in the same way.

    **Examples**

    - `vprompt train --output runs/a --model openai/clip-vit-base-patch16 --data path/to/folder --method maple`
    - `vprompt train --output runs/b --model path/to/clip --data path/to/grocery.parquet --label-column classname
      --split-column split --method coop --shots 16`
    - `vprompt train --output runs/c --model google/vit-base-patch16-224-in21k --data path/to/folder --method vpt
      --all-classes --shots 0`
    - `vprompt train --output runs/d --method coop --set num_virtual_tokens=4 --epochs 20`
    """
    options = _data_options(
        data,
        image_column=image_column,
        label_column=label_column,
        train_split=train_split,
        test_split=test_split,
        split_column=split_column,
        where=where,
        min_images=min_images,
        class_names=class_names,
        clean_names=clean_names,
        test_fraction=test_fraction,
    )
    settings = Settings(
        method=method,
        model=model,
        shots=shots or None,
        seed=seed,
        base_novel=base_novel,
        epochs=epochs,
        learning_rate=lr,
        batch_size=batch_size,
        config=_parse_config(config or []),
        bf16=bf16,
    )
    get_method(method)
    run = run_experiment(
        settings,
        load_images(options) if options else _demo_data(),
        output,
        data_description=asdict(options) if options else None,
        cached=cached,
        watch=watch,
        workers=workers,
    )
    console.print(results_table([run]))
    console.print(f"Saved in {escape(str(output))}.", soft_wrap=True)


@app.command()
@one_line_errors
def evaluate(
    adapter: Annotated[str, _option("Folder or Hub id of a trained adapter.")],
    model: Annotated[str | None, _option("Base model; default: the one the adapter names.")] = None,
    data: Annotated[str | None, _option(DATA_HELP["path"] + " Default: the data of the training.")] = None,
    split: Annotated[str, _option("Split to evaluate on.", panel="Data")] = "test",
    subset: Annotated[str, _option("Classes: base, novel or all.")] = "all",
    zero_shot: Annotated[bool, _option("Switch the adapter off.", "--zero-shot")] = False,
    output: Annotated[Path | None, _option("JSON file for the result.")] = None,
    image_column: ImageColumn = DEFAULTS.image_column,
    label_column: LabelColumn = DEFAULTS.label_column,
    split_column: SplitColumn = None,
    where: Where = None,
    min_images: MinImages = DEFAULTS.min_images,
    class_names: ClassNames = None,
    clean_names: CleanNames = True,
    test_fraction: TestFraction = DEFAULTS.test_fraction,
):
    """Evaluate a trained adapter on any images and any classes.

    **Examples**

    - `vprompt evaluate --adapter runs/demo/maple --subset novel`
    - `vprompt evaluate --adapter runs/b --data path/to/other.parquet --label-column name --split test`
    - `vprompt evaluate --adapter runs/b --data path/to/folder --class-names names.txt --output result.json`
    """
    options = _data_options(
        data,
        image_column=image_column,
        label_column=label_column,
        split_column=split_column,
        where=where,
        min_images=min_images,
        class_names=class_names,
        clean_names=clean_names,
        test_fraction=test_fraction,
    )
    saved = _saved_run(adapter)
    if options is None:
        if saved is None:
            raise ValueError(f"{adapter} has no results.json that names its data. Give --data.")
        options = _saved_data_options(saved)
    rows = load_split(options, split) if options else demo_task(split)
    names = rows.features["label"].names
    classes = split_classes(names, subset != "all") | {"all": names}
    if subset not in classes:
        raise ValueError(f"The classes to evaluate are base, novel or all. Received: --subset {subset}.")
    trained = next(iter(saved["classes"].values())) if saved else names
    embedded = saved is not None and saved["settings"]["model"] is None
    built = load_adapter(adapter, model, trained, embedded=embedded)
    sets = eval_sets(rows, {subset: classes[subset]}, built.image_processor, cached=False)
    accuracy = evaluate_model(built.model, sets, zero_shot=zero_shot)
    result = {
        "adapter": adapter,
        "subset": subset,
        "zero_shot": zero_shot,
        "images": len(sets[subset].rows),
        "classes": classes[subset],
        "accuracy": accuracy,
        "environment": environment(),
    }
    if output is not None:
        write_json(result, output)
    console.print(
        f"Accuracy on {subset} ({len(classes[subset])} classes, {result['images']} images): "
        f"[bold]{accuracy[subset]:.2f} %[/]"
    )


@app.command()
@one_line_errors
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of the authors' code, such as model.pth.tar-5.")],
    output: Annotated[Path, _option("Folder for the adapter.")],
    method: Annotated[str, _option(f"One of: {', '.join(LAYOUTS)}.")],
    model: Annotated[str | None, _option("Folder or Hub id of the base model; checks every shape.")] = None,
    class_names: ClassNames = None,
    config: Annotated[
        list[str] | None,
        _option("What tensors cannot tell, as NAME=VALUE of the method's config. May be repeated.", "--set"),
    ] = None,
):
    """Turn a checkpoint of the authors' code into an adapter.

    **Examples**

    - `vprompt convert output/model.pth.tar-5 --method maple --model openai/clip-vit-base-patch16
      --class-names names.txt --output maple-adapter`
    - `vprompt convert output/model.pth.tar-200 --method coop --set class_token_position=front --output coop-adapter`
    """
    names = read_class_names(class_names) if class_names else None
    converted = convert_checkpoint(
        checkpoint, method, output, base_model=model, class_names=names, **_parse_config(config or [])
    )
    console.print(f"Saved a {type(converted).__name__} adapter in {escape(str(output))}.", soft_wrap=True)


def _data_options(data: str | None, where: list[str] | None, class_names: Path | None, **values) -> DataOptions | None:
    """The data options, or None for the embedded task, which takes none."""
    values |= {"where": tuple(where or ()), "class_names": read_class_names(class_names) if class_names else None}
    changed = [name for name, value in values.items() if value != getattr(DEFAULTS, name)]
    if data is None and changed:
        raise ValueError(f"Options that say how to read data need --data. Received: {', '.join(changed)}.")
    return None if data is None else DataOptions(data, **values)


def _saved_data_options(saved: dict) -> DataOptions | None:
    """The data options of a saved run; JSON has turned their tuples into lists."""
    if saved["data"] is None:
        return None
    return DataOptions(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in saved["data"].items()}
    )


def _demo_data() -> DatasetDict:
    return DatasetDict({split: demo_task(split) for split in ("train", "test")})


def _parse_config(items: list[str]) -> dict:
    """Read NAME=VALUE items; values are JSON where they can be, else text."""
    config = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise ValueError(f"--set takes NAME=VALUE. Received: {item!r}.")
        try:
            config[name] = json.loads(value)
        except json.JSONDecodeError:
            config[name] = value
    return config


def _saved_run(adapter: str) -> dict | None:
    """What `vprompt train` wrote beside the adapter, if it did."""
    path = Path(adapter) / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
