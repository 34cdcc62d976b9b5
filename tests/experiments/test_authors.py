"""What authors have on published data: their texts, their variations of recipe and config, and what the user's settings win."""

import json
from dataclasses import fields

import pytest

from peft_vprompt import MMRLConfig, TCPConfig
from peft_vprompt.data import TASKS, DataOptions, load_images
from peft_vprompt.experiments.authors import fields_elsewhere, published_choices
from peft_vprompt.experiments.bench.protocols import PROTOCOLS
from peft_vprompt.experiments.identity import Contents
from peft_vprompt.experiments.models import METHODS, published_fields
from peft_vprompt.experiments.run import Run
from peft_vprompt.experiments.run_state import RunOptions
from peft_vprompt.experiments.settings import Settings
from peft_vprompt.tuners.base.recipe import Averaging, Recipe
from tests.data.test_prompting_tasks import write_split_file
from tests.support.command_line import vprompt


def changes(method, task, protocol=None, **settings):
    return published_choices(Settings(method, protocol=protocol, **settings), f"coop-11/{task}").changes


@pytest.mark.parametrize("method", [name for name, spec in METHODS.items() if spec.variations])
def test_a_variation_is_of_things_there_are(method):
    spec = METHODS[method]
    known = {field.name for field in (*fields(Recipe), *fields(spec.config_class))}
    for variation in spec.variations:
        assert variation.changes.keys() <= known
        assert {f"coop-11/{task}" for task in variation.tasks} <= TASKS.keys()
        assert set(variation.protocols) <= PROTOCOLS.keys()
        if spec.recipe is not None:
            changed = {name: value for name, value in variation.changes.items() if hasattr(spec.recipe, name)}
            assert spec.recipe.override(**changed)


def test_what_authors_vary():
    assert changes("coop", "imagenet", "cross-dataset") == {"epochs": 50} and not changes("coop", "dtd")
    transfer = {"learning_rate": 0.0026, "epochs": 2, "prompt_depth": 3}
    assert changes("maple", "imagenet", "cross-dataset") == transfer and not changes("maple", "imagenet")
    assert changes("rpo", "imagenet", "domain-generalization") == {"learning_rate": 0.005}
    assert changes("mmrl", "eurosat") == {
        "readout": "decoupled",
        "consistency_weight": 0.01,
        "representation_dim": 2048,
    }
    assert changes("mmrlpp", "dtd", "few-shot")["epochs"] == 100
    assert changes("tip-adapter-f", "oxford_flowers", base_novel=False) == {"alpha": 10.0}
    assert len(changes("clap", "imagenet", base_novel=False)["template"]) == 8


@pytest.mark.parametrize(
    ("task", "protocol", "mean", "std", "epochs"),
    [
        ("imagenet", "few-shot", 30, 30, 50),
        ("eurosat", "few-shot", 45, 5, 50),
        ("imagenet", "cross-dataset", 6, 10, 20),
        ("eurosat", "base-to-novel", 15, 1, 20),
    ],
)
def test_the_averages_of_promptsrc(task, protocol, mean, std, epochs):
    recipe = published_choices(Settings("promptsrc", protocol=protocol), f"coop-11/{task}").vary(
        METHODS["promptsrc"].recipe
    )
    assert recipe.averaging == Averaging("gaussian", mean=mean, std=std) and recipe.epochs == epochs


def test_what_the_user_sets_wins():
    given = {"epochs": 7, "config": {"prompt_depth": 5}}
    assert changes("maple", "imagenet", "cross-dataset", **given) == {"learning_rate": 0.0026}
    assert "template" not in published_choices(Settings("rpo", config={"template": "a {}"}), "coop-11/dtd").config
    given_text = {"template": "a photo of a {}."}
    text = {
        name: published_choices(Settings("prograd", config=given), "coop-11/oxford_pets").text.keys()
        for name, given in {
            "short": {"num_virtual_tokens": 4},
            "long": {"num_virtual_tokens": 8},
            "other": given_text,
        }.items()
    }
    assert text == {"short": {"template"}, "long": {"template", "prompt_init_text"}, "other": set()}


def test_other_data_know_of_none():
    for benchmark in (None, "vtab-1k/eurosat"):
        assert published_choices(Settings("mmrl"), benchmark).config == {}


def test_each_methods_own_text():
    pets = "a photo of a {}, a type of pet."
    for method in ("vpt", "clip-lora"):  # "a photo of a {}." on all data, which is the config's
        assert published_fields("coop-11/oxford_pets", method) == {}
    assert published_fields("coop-11/oxford_pets", "rpo") == {"template": pets}
    found = {
        task: published_fields(f"coop-11/{task}", "prograd") for task in ("oxford_pets", "food101", "ucf101", "dtd")
    }
    assert [each["template"].removesuffix(" {}.") for each in found.values()] == [
        each["prompt_init_text"] for each in found.values()
    ]
    assert [each["template"] for each in found.values()] == [
        "a type of pet, a photo of a {}.",
        "a type of food, a photo of {}.",
        "a photo of a person doing {}.",
        "a texture of {}.",
    ]


def test_another_task_brings_its_text_and_the_readout_of_other_data():
    assert fields_elsewhere(TCPConfig(), "coop-11/dtd") == {
        "template": "{} texture.",
        "prompt_template": "{} texture.",
    }
    decoupled, fused = (MMRLConfig(readout=readout) for readout in ("decoupled", "fused"))
    assert fields_elsewhere(decoupled, "imagenet-shifts/v2")["readout"] == "class"
    assert "readout" not in fields_elsewhere(fused, "imagenet-shifts/v2")
    assert fields_elsewhere(decoupled, None) == {}


@pytest.mark.filterwarnings("ignore:.*classes; the published files name", "ignore:.*have fewer than")
def test_what_a_search_finds_is_not_the_authors(clip_path, tmp_path):
    write_split_file(tmp_path / "data", "eurosat")
    search = ("--set", "search_scale=[7,3]", "--set", "search_step=[3,4]", "--all-classes")
    where = (
        "--output",
        tmp_path / "run",
        "--model",
        clip_path,
        "--data",
        tmp_path / "data",
        "--benchmark",
        "coop-11/eurosat",
    )
    vprompt("train", *where, "--method", "tip-adapter", "--shots", 2, *search)
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "alpha" in found["search"] and found["published"].keys() == {"template"}


@pytest.mark.filterwarnings("ignore:.*classes; the published files name")
def test_a_run_follows_them_and_is_known_by_them(clip_path, tmp_path):
    write_split_file(tmp_path, "eurosat")
    options = DataOptions(tmp_path, benchmark="coop-11/eurosat")
    about = {"benchmark": options.benchmark, "path": str(tmp_path)}
    data = load_images(options)
    config = {"representation_layers": [2], "representation_dim": 8}
    settings = Settings("mmrl", clip_path, config=config, base_novel=False, protocol="few-shot")
    run = Run(settings, data, tmp_path / "run", RunOptions(data_description=about))
    run.build()
    built = run.bundle.model.active_peft_config
    assert (built.readout, built.image_consistency_weight, built.representation_dim) == ("decoupled", 0.01, 8)
    run = Run(
        Settings("promptsrc", clip_path, config={"prompt_depth": 1}, base_novel=False), data, tmp_path, run.options
    )
    run.build()
    assert (run.recipe.epochs, run.recipe.averaging.mean) == (50, 45)
    contents = Contents(data, about)
    names = data["train"].features["label"].names
    assert contents.identity(run.settings, names)["published"]["averaging"]["mean"] == 45
