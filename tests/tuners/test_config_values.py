"""Values of configs mean what they say: any value of any field makes a model with finite answers, or is refused by its name."""

import json
import math
import warnings
from dataclasses import fields

import pytest
import torch
from peft import PeftConfig, get_peft_model

from peft_vprompt import MMRLConfig
from peft_vprompt.data import DataOptions
from peft_vprompt.experiments.settings import Settings
from peft_vprompt.experiments.supervision import Supervision
from peft_vprompt.training.test_time import TestTimeTuning
from peft_vprompt.tuners.base.recipe import Averaging, Recipe
from peft_vprompt.tuners.base.registry import METHODS
from peft_vprompt.utils.validation import parse_fields
from tests.support.models import CLASS_NAMES, images, tiny_clip, tiny_tokenizer, tiny_vit


hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed: pip install .[dev]")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

#: The rows with a config of our own; PEFT's have values that only PEFT can judge.
OWN = {name: spec for name, spec in METHODS.items() if spec.tuner_class is not None}

#: Values by JSON's types, of which few can be right.
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([10**5, 10**9, -(10**9), 2**64, 10**400]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["False", "no", "true", "0.1", "5", "null", "random", "text", "linear", "x" * 20_000]),
    st.lists(st.one_of(st.none(), st.booleans(), st.integers(-2, 99), st.text(max_size=5)), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def likely(field):
    """Values of the kind that a field wants."""
    kind = str(field.type)
    found = []
    if "Literal" in kind:
        found.append(st.sampled_from(list(kind.replace("'", '"').split('"')[1::2])))
    if "bool" in kind:
        found.append(st.booleans())
    if "int" in kind:
        found.append(st.integers(0, 6))
    if "float" in kind:
        found.append(st.floats(0, 1))
    if "str" in kind:
        found.append(st.sampled_from(["a photo of a", "{} here", "a {}.", "visual_projection", "classifier", "cat"]))
    if "list[str]" in kind:
        found.append(
            st.sampled_from([["classifier"], ["visual_projection"], ["a {}.", "the {}."], ["cat", "dog"], []])
        )
    return st.one_of(found) if found else ANYTHING


def our_fields(name):
    """The fields of a method's config, but for those that one of PEFT's own tuners gives it."""
    classes = [c for c in OWN[name].config_class.__mro__ if c is PeftConfig or c.__module__.startswith("peft_vprompt")]
    declared = {field for c in classes for field in vars(c).get("__annotations__", {})} | set(
        PeftConfig.__dataclass_fields__
    )
    return [field for field in fields(OWN[name].config_class) if field.name in declared]


@st.composite
def configs(draw):
    """Draw a method and values of some of its fields."""
    name = draw(st.sampled_from(sorted(OWN)))
    known = [field for field in our_fields(name) if field.name not in ("peft_type", "peft_version")]
    chosen = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique_by=lambda field: field.name))
    return name, {field.name: draw(st.one_of(likely(field), likely(field), ANYTHING)) for field in chosen}


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


BASES = {}


def check_config(drawn, tokenizer_path):
    """Make the config, and the model where there is one: finite logits, or an error that names a field."""
    name, values = drawn
    spec = OWN[name]
    names = {field.name for field in fields(spec.config_class)}
    build = tiny_vit if spec.is_baseline else tiny_clip
    base = BASES.pop(build, None) or build()
    texts = {} if spec.is_baseline else {"class_names": CLASS_NAMES, "tokenizer_name_or_path": tokenizer_path}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config = spec.configure(base, **texts | values)
            BASES[build] = base
            model = get_peft_model(BASES.pop(build), config).eval()
            answer = model(pixel_values=images(1)).logits
            BASES[build] = model.unload()
            assert torch.isfinite(answer).all()
        except (ValueError, TypeError) as refused:
            message = str(refused)
            assert any(word in message for word in names) or "tokenizer" in message.lower(), message
            assert len(message) < 3000


@settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@given(drawn=configs())
def test_any_config_works_or_is_refused_by_name(drawn, tokenizer_path):
    check_config(drawn, tokenizer_path)


@pytest.mark.parametrize("method", ["mlp-3", "clip-lora"])
def test_modules_that_are_not_there_are_refused_by_the_field(method):
    spec = OWN[method]
    base = tiny_vit() if spec.is_baseline else tiny_clip()
    config = spec.configure(
        base, target_modules=["nothing"], **({} if spec.is_baseline else {"class_names": CLASS_NAMES})
    )
    with pytest.raises(ValueError, match="Expected target_modules to name .* Received: target_modules=.*nothing"):
        get_peft_model(base, config)


@pytest.mark.nightly
@settings(max_examples=10_000, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck))
@given(drawn=configs())
def test_any_config_works_or_is_refused_by_name_at_length(drawn, tokenizer_path):
    check_config(drawn, tokenizer_path)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_any_setting_is_taken_or_refused_by_name(data):
    kind = data.draw(st.sampled_from([Settings, Supervision, Recipe, Averaging, DataOptions, TestTimeTuning]))
    whole = {Settings: {"method": "coop"}, Supervision: {}, Averaging: {"kind": "ema", "decay": 0.9}}
    whole |= {DataOptions: {"path": "images"}, TestTimeTuning: {}}
    whole[Recipe] = {"learning_rate": 0.1, "batch_size": 4, "epochs": 2, "source": "here"}
    field = data.draw(st.sampled_from(fields(kind)))
    value = data.draw(ANYTHING)
    try:
        made = kind(**whole[kind] | {field.name: value})
    except ValueError as refused:
        assert field.name.replace("_", " ") in str(refused).replace("_", " ")
    else:
        kept = getattr(made, field.name)
        assert kept is value or kept == value
        assert not isinstance(kept, float) or math.isfinite(kept)


def wrong_values(annotation: str):
    """Values that a field of that annotation may not have."""
    if "Literal" in annotation:
        return ["none of them", 5, True]
    if annotation.startswith("bool"):
        return ["False", "no", 0.5, 0, 1, None, []]
    if annotation.startswith("int"):
        return ["5", True, 0.5, float("nan"), 10**9, -(10**9), [1]]
    if annotation.startswith("float"):
        return ["0.1", True, float("nan"), float("inf"), [0.1]]
    if annotation.startswith("str"):
        return [5, True, {"a": 1}, b"bytes"]
    if annotation.startswith("dict"):
        return [5, True, "text", [], {"a": "b"}, {1: 2}]
    return [5, True, "text", [True], [{}], {"a": 1}]


#: PEFT reads names of modules as regular expressions.
WRONG_FORMS = {"module": [[")"], ["a b"], [""], ["a..b"], [".*"]]}

CASES = [
    (name, field.name, value)
    for name, spec in OWN.items()
    for field in our_fields(name)
    if field.name not in PeftConfig.__dataclass_fields__
    for value in [*wrong_values(str(field.type)), *WRONG_FORMS.get(field.metadata.get("form"), [])]
]


@pytest.mark.parametrize("name", OWN)
def test_every_field_of_every_method_is_checked(name):
    for field, value in [(field, value) for method, field, value in CASES if method == name]:
        with pytest.raises(ValueError, match=field):
            OWN[name].config_class(
                **{"class_names": CLASS_NAMES} | {field: value} if not OWN[name].is_baseline else {field: value}
            )


def test_integers_that_no_tensor_can_be_multiplied_by_are_refused():
    for value in (2**63, -(2**64)):
        with pytest.raises(ValueError, match="Expected logit_scale to be a finite number.*Received: logit_scale="):
            MMRLConfig(class_names=CLASS_NAMES, logit_scale=value)
    assert MMRLConfig(class_names=CLASS_NAMES, logit_scale=2**62).logit_scale == 2**62


@pytest.mark.parametrize("name", OWN)
def test_what_a_config_holds_is_read_back_from_json(name):
    spec = OWN[name]
    config = spec.config_class(**({} if spec.is_baseline else {"class_names": CLASS_NAMES}))
    values = json.loads(json.dumps(config.to_dict()))
    assert spec.config_class(**values).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("deep=false", False),
        ("deep=False", False),
        ("deep=True", True),
        ("deep=null", None),
        ("deep=None", None),
        ("deep=no", "no"),
        ("deep=0.5", 0.5),
        ('deep="False"', "False"),
        ("deep=[1, 2]", [1, 2]),
        ("deep=a=b", "a=b"),
    ],
)
def test_values_on_the_command_line(text, value):
    assert parse_fields([text], "--set") == {"deep": value}


@pytest.mark.parametrize(
    "items",
    [["deep"], ["=5"], ["a=1", "a=2"], ["a=" + "[" * 10**5], ["a=" + "9" * 10**5]],
    ids=lambda items: items[0][:8],
)
def test_what_no_field_can_be_read_from(items):
    with pytest.raises(ValueError, match="--set takes"):
        parse_fields(items, "--set")


def test_a_config_that_is_made_inside_a_function_is_checked_as_far_as_it_can_be():
    from dataclasses import dataclass

    from peft_vprompt import VisualPromptConfig

    class Local:
        pass

    @dataclass
    class LocalConfig(VisualPromptConfig):
        extra: "Local | None" = None

    assert LocalConfig(extra=Local()).extra is not None
    with pytest.raises(ValueError, match="deep"):
        LocalConfig(deep="no")
