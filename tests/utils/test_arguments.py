"""Arguments of public functions are of the classes that their annotations name, or refused by name."""

import inspect
import typing
from dataclasses import is_dataclass
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import Trainer

from peft_vprompt import data, training
from peft_vprompt.data import (
    EvalTransform,
    TrainTransform,
    ViewTransform,
    base_novel_split,
    few_shot,
    read_class_names,
)
from peft_vprompt.experiments import (
    cells,
    diagnostics,
    grid_search,
    models,
    noise_study,
    run,
    supervision,
    sweep,
    zero_shot_scores,
)
from peft_vprompt.utils.arguments import check_arguments, hints_of, typed
from peft_vprompt.utils.fields import alternatives


NUMBERS = (int, float, bool, type(None))

ENTRIES = [
    *(run.run_experiment, sweep.sweep, grid_search.search, noise_study.run_study, noise_study.linear_probe),
    *(cells.run_cells, cells.grid_state),
    *(models.build_model, models.load_adapter, diagnostics.diagnose, zero_shot_scores.zero_shot),
    supervision.training_images,
]


def takes_anything_else_than_numbers(function) -> bool:
    """Whether an argument is more than a number, of which each function knows the bounds."""
    hints = hints_of(function)
    names = set(inspect.signature(function).parameters) - {"self"}
    return any(set(typing.get_args(hints.get(name)) or (hints.get(name),)) - set(NUMBERS) for name in names)


def public():
    """The functions and the constructors of `data`, `training` and the entries of `experiments`."""
    for name, value in [(name, getattr(module, name)) for module in (data, training) for name in module.__all__]:
        checked_otherwise = isinstance(value, type) and (is_dataclass(value) or issubclass(value, (tuple, Trainer)))
        if not callable(value) or checked_otherwise:
            continue
        function = value.__init__ if isinstance(value, type) else value
        if takes_anything_else_than_numbers(function):
            yield pytest.param(function, id=name)
    yield from (pytest.param(function, id=function.__name__) for function in ENTRIES)


class Odd:
    """What nobody takes."""


@pytest.mark.parametrize("function", public())
def test_no_public_function_takes_what_it_cannot_use(function):
    assert hasattr(function, "__wrapped__"), "typed is missing"
    arguments = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    assert not [p.name for p in arguments if p.annotation is p.empty and p.kind is not p.VAR_KEYWORD]
    for name, hint in hints_of(function).items():
        arms = set(alternatives(hint))
        if arms <= set(NUMBERS) or typing.get_origin(hint) in (typing.Literal, tuple) or typing.Any in arms:
            continue
        with pytest.raises(TypeError, match=rf"^Expected {name} of \S+ to be .*\. Received: {name}=<.*Odd"):
            check_arguments(function.__wrapped__, {name: Odd()})


class WithTokenizer:
    """As a processor of images and texts is."""

    def __call__(self):
        pass

    to_dict = __call__


@pytest.mark.parametrize("transform", [EvalTransform, TrainTransform, ViewTransform])
@pytest.mark.parametrize(
    "processor",
    [5, None, "openai/clip", lambda images: images, WithTokenizer()],
    ids=["number", "None", "name", "function", "with a tokenizer"],
)
def test_a_transform_takes_an_image_processor(transform, processor):
    words = f"Expected image_processor of {transform.__name__} to be an image processor of transformers, as AutoImageProcessor.from_pretrained gives it"
    with pytest.raises(TypeError, match=words):
        transform(processor)


def test_values_that_fit_pass():
    rows = Dataset.from_dict({"label": [0, 1]})
    for names in (["a", "b"], ("a", "b")):
        assert base_novel_split(names) == (["a"], ["b"])
    for names in ("ab", [1, 2], {"a": 1}, None):
        with pytest.raises(TypeError, match="Expected class_names of base_novel_split to be a list of texts"):
            base_novel_split(names)
    with pytest.raises(TypeError, match="Expected dataset of few_shot to be Dataset. Received: dataset=<.*Odd"):
        few_shot(Odd(), 1, 1)
    with pytest.raises(TypeError, match="no `?ClassLabel|ClassLabel"):
        few_shot(rows, 1, 1)
    for path in (5, ""):
        with pytest.raises(TypeError, match=rf"Expected path of read_class_names to be .* Received: path={path!r}"):
            read_class_names(path)


def test_what_a_function_is_stays():
    @typed
    def add(first: int, *others: str, path: str | Path = "x", **more) -> int:
        """Add."""
        return first

    assert add.__name__ == "add" and add.__doc__ == "Add." and add(2, "a", 5, path=Path(), more=1) == 2
    with pytest.raises(TypeError, match="missing a required argument: 'first'"):
        add()
