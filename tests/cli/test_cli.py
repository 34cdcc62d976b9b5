"""The command line, on tiny models and images in temporary folders."""

import json
import warnings

import pytest
from typer.testing import CliRunner

from peft_vprompt import ContextOptConfig
from peft_vprompt.backbones.supported import DUAL_ENCODERS
from peft_vprompt.experiments import models
from peft_vprompt.experiments.models import DEMO_CHANGES, METHODS
from peft_vprompt.utils.precision import AUTO, hold
from peft_vprompt.version import __version__
from tests.support.command_line import QUICK, train, vprompt
from tests.support.finished_runs import check_inspection, check_page
from tests.support.models import often
from tests.support.rows import every_row
from tests.support.saved_models import COLOURS, save_tiny
from vprompt import app


@pytest.mark.parametrize("command", [(), ("demo",), ("train",), ("evaluate",)])
def test_help_teaches(command):
    shown = vprompt(*command, "--help")
    assert "MALLOC" in shown if not command else "Examples" in shown


def test_version():
    assert vprompt("--version").strip() == f"vprompt {__version__}"


def test_help_lists_every_method():
    shown = vprompt("train", "--help")
    assert all(name in shown for name in METHODS)


# PromptKD takes a teacher, and no shots: see test_distillation.
@pytest.mark.parametrize("method", every_row([name for name in METHODS if name != "promptkd"]))
def test_train_every_method(method, clip_path, colours, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    moves = METHODS[method].new_classes
    more = ["--base-novel"] if moves else []
    more += (
        ["--lr", 0.01] if METHODS[method].is_baseline else []
    )  # the published rate is for batches of 128 and diverges here
    trained = method not in ("zero-shot", "tip-adapter")
    quick = QUICK if method != "tip-adapter" else QUICK[:2]  # there are no epochs that it could take fewer of
    shown = train(tmp_path, clip_path, colours, "--method", method, *quick, *more)
    assert METHODS[method].title in shown
    results = json.loads((tmp_path / "results.json").read_text())
    halves = {"base": ["blue", "green"], "novel": ["red", "white"]}
    assert results["classes"] == (halves if moves else {"all": sorted(COLOURS)})
    assert set(results["accuracy"]) == ({"base", "novel", "hm"} if moves else {"all"})
    assert (tmp_path / "adapter_model.safetensors").is_file() == (method != "zero-shot")
    if method != "zero-shot":
        assert results["adapter_bytes"] == (tmp_path / "adapter_model.safetensors").stat().st_size
    if not trained:
        assert results["trainable_parameters"] == results["steps"] == 0
    else:
        assert results["steps"] == 2 * (len(next(iter(results["classes"].values()))) * 4 // 4)
    check_page(tmp_path / "report.html", results)
    if method != "zero-shot":
        check_inspection(method, tmp_path, results)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.new_classes])
def test_methods_that_learn_their_classes_need_all(method, clip_path, colours, tmp_path):
    shown = train(tmp_path, clip_path, colours, "--method", method, "--base-novel", *QUICK, code=2)
    assert "use all classes" in shown


def test_the_authors_recipe_is_the_default(clip_path, colours, tmp_path):
    train(tmp_path, clip_path, colours, "--method", "maple", "--shots", 2)
    recipe = json.loads((tmp_path / "results.json").read_text())["recipe"]
    published = METHODS["maple"].recipe
    assert (recipe["learning_rate"], recipe["batch_size"], recipe["epochs"]) == (0.0035, 4, 5)
    assert recipe["source"] == published.source


def test_train_then_evaluate_gives_the_same_accuracy(clip_path, colours, tmp_path):
    train(tmp_path / "a", clip_path, colours, "--method", "ivlp", "--lr", 0.05, "--base-novel", *QUICK)
    accuracy = json.loads((tmp_path / "a" / "results.json").read_text())["accuracy"]
    for subset in ("base", "novel"):
        output = tmp_path / f"{subset}.json"
        shown = vprompt("evaluate", "--adapter", tmp_path / "a", "--subset", subset, "--output", output)
        again = json.loads(output.read_text())
        assert again["accuracy"] == {subset: accuracy[subset]}
        assert f"Accuracy on {subset} (2 classes, 6 images): {accuracy[subset]:.2f} %" in shown


def test_evaluate_on_other_data_and_names(clip_path, colours, tmp_path):
    train(tmp_path / "a", clip_path, colours, "--method", "coop", *QUICK)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(reversed(COLOURS)))
    data = ("--data", colours, "--label-column", "colour", "--class-names", names, "--split", "train")
    vprompt("evaluate", "--adapter", tmp_path / "a", *data, "--output", tmp_path / "out.json")
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["classes"] == sorted(COLOURS)  # names are found, whatever order they are listed in
    assert result["images"] == 28


def test_zero_shot_of_an_adapter_is_the_plain_model(clip_path, colours, tmp_path):
    train(tmp_path / "a", clip_path, colours, "--method", "maple", "--lr", 0.05, "--base-novel", *QUICK)
    train(tmp_path / "z", clip_path, colours, "--method", "zero-shot", "--base-novel")
    vprompt(
        "evaluate", "--adapter", tmp_path / "a", "--zero-shot", "--subset", "novel", "--output", tmp_path / "n.json"
    )
    plain = json.loads((tmp_path / "z" / "results.json").read_text())["accuracy"]["novel"]
    assert json.loads((tmp_path / "n.json").read_text())["accuracy"]["novel"] == plain


def test_classifier(vit_path, colours, tmp_path):
    train(tmp_path, vit_path, colours, "--method", "vpt", *QUICK, "--epochs", 12)
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["accuracy"]) == {"all"}
    vprompt("evaluate", "--adapter", tmp_path, "--output", tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text())["accuracy"] == results["accuracy"]
    assert "model with a text tower" in vprompt("evaluate", "--adapter", tmp_path, "--zero-shot", code=2)


OTHER_BACKBONES = [
    ("BeitForImageClassification", "vpt"),
    ("SiglipModel", "coop"),
    ("Siglip2Model", "maple"),
    ("Dinov2ForImageClassification", "vpt"),
    ("SiglipModel", "vpt"),
    ("MetaClip2Model", "maple"),
    ("VisionTextDualEncoderModel", "coop"),
    ("Siglip2ForImageClassification", "vpt"),
    ("CLIPForImageClassification", "vpt"),
]


@pytest.mark.parametrize(("name", "method"), often(OTHER_BACKBONES, OTHER_BACKBONES[:3]))
def test_train_and_evaluate_other_backbones(name, method, colours, tmp_path):
    classes = ["--base-novel"] if name in DUAL_ENCODERS else []
    train(tmp_path / "a", save_tiny(tmp_path / "base", name), colours, "--method", method, *QUICK, *classes)
    accuracy = json.loads((tmp_path / "a" / "results.json").read_text())["accuracy"]
    subset = "base" if name in DUAL_ENCODERS else "all"
    vprompt("evaluate", "--adapter", tmp_path / "a", "--subset", subset, "--output", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["accuracy"] == {subset: accuracy[subset]}


def test_warnings_are_one_line(clip_path, colours, tmp_path, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        shown = train(tmp_path, clip_path, colours, "--method", "coop", *QUICK, "--epochs", 1)
    assert "Warning: All of epochs=1 is warm-up" in shown


def test_started_again_it_resumes(clip_path, colours, tmp_path):
    for _ in range(2):
        train(tmp_path, clip_path, colours, "--method", "coop", *QUICK)
    assert json.loads((tmp_path / "results.json").read_text())["resumed_step"] == 8


def test_precision(clip_path, colours, tmp_path, monkeypatch):
    held = []
    monkeypatch.setattr(models, "hold", lambda model, precision: held.append(precision) or hold(model, precision))
    monkeypatch.delenv(AUTO)
    monkeypatch.setattr("peft_vprompt.utils.precision.computes_bf16", lambda device: True)
    shown = train(tmp_path, clip_path, colours, "--method", "coop", *QUICK)
    assert "Frozen weights are held in bf16, in which the cpu computes (--precision float32)." in shown
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["settings"]["precision"] == "bf16"
    vprompt("evaluate", "--adapter", tmp_path, "--precision", "bf16", "--output", tmp_path / "e.json")
    assert json.loads((tmp_path / "e.json").read_text())["accuracy"] == {"all": results["accuracy"]["all"]}
    vprompt("evaluate", "--adapter", tmp_path, "--precision", "float32")
    assert held == ["bf16", "bf16", "float32"]
    assert "fp16 is for graphics cards" in vprompt("evaluate", "--adapter", tmp_path, "--precision", "fp16", code=2)


def test_config_fields_can_be_set(clip_path, colours, tmp_path):
    fields = ("--set", "num_virtual_tokens=3", "--set", "class_token_position=front")
    train(tmp_path, clip_path, colours, "--method", "coop", *fields, *QUICK)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["num_virtual_tokens"], config["class_token_position"]) == (3, "front")


@pytest.mark.parametrize("views", [1, 3])
def test_cached_features_give_the_accuracy_of_images(views, clip_path, colours, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    options = ("--method", "coop", "--base-novel", "--cache-features", "--views", views, *QUICK)
    train(tmp_path / "a", clip_path, colours, *options)
    assert len(list((tmp_path / "cache" / "vprompt-features").iterdir())) == 3
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert results["settings"]["cache_features"] and results["settings"]["views"] == views
    assert results["steps"] == 4
    vprompt("evaluate", "--adapter", tmp_path / "a", "--subset", "base", "--output", tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text())["accuracy"]["base"] == results["accuracy"]["base"]


@pytest.mark.nightly
def test_demo(embedded, figures, tmp_path):
    shown = vprompt("demo", "--output", tmp_path, "--shots", 4)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [run["settings"]["method"] for run in results["runs"]] == list(DEMO_CHANGES)
    assert all(METHODS[name].title in shown for name in DEMO_CHANGES)
    assert (tmp_path / "results.png").is_file()
    drawn = {bars.get_label(): [bar.get_height() for bar in bars] for bars in figures[-1].axes[0].containers}
    assert drawn == {split: [run["accuracy"][split] for run in results["runs"]] for split in ("base", "novel", "hm")}
    for run in results["runs"]:
        folder = tmp_path / run["settings"]["method"]
        assert (folder / "adapter_model.safetensors").is_file() == (run["recipe"] is not None)
        if run["recipe"]:
            vprompt("evaluate", "--adapter", folder, "--subset", "novel", "--output", folder / "novel.json")
            assert json.loads((folder / "novel.json").read_text())["accuracy"]["novel"] == run["accuracy"]["novel"]


def test_demo_of_some_methods(embedded, tmp_path):
    shown = vprompt("demo", "--output", tmp_path, "--methods", "zero-shot, coop", "--shots", 1)
    assert "CoOp" in shown and "MaPLe" not in shown
    assert "No method 'clip'" in vprompt("demo", "--output", tmp_path, "--methods", "coop,clip", code=2)


def test_what_a_folder_or_file_held_is_not_lost(clip_path, colours, tmp_path):
    same = ("--model", clip_path, "--data", colours, "--label-column", "colour")
    train(tmp_path, clip_path, colours, "--method", "coop", *QUICK)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for name in ("results.json", "README.md"):
        shown = vprompt("evaluate", "--adapter", tmp_path, "--output", tmp_path / name, code=2)
        assert f"{name}', which holds something else. Choose another name" in shown
    for name in ("adapter_model.safetensors", "results.json"):
        shown = vprompt("pseudo-label", "--output", tmp_path / name, *same, code=2)
        assert f"{name}', which holds something else. Choose another name" in shown
    shown = vprompt("pseudo-label", "--output", tmp_path / "results.safetensors", "--check", *same, code=2)
    assert "results.json', which holds something else. Choose another name" in shown
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == files
    (tmp_path / "of somebody").mkdir()
    (tmp_path / "of somebody" / "diagnosis.json").write_text("[]")
    shown = vprompt("evaluate", "--adapter", tmp_path, "--diagnose", tmp_path / "of somebody", code=2)
    assert "Expected --diagnose to name a new place" in shown
    for _ in range(2):
        vprompt("evaluate", "--adapter", tmp_path, "--output", tmp_path / "own.json", "--diagnose", tmp_path / "own")
        vprompt("pseudo-label", "--output", tmp_path / "labels.safetensors", "--check", *same)


def test_the_page_of_another_run_does_not_stay(clip_path, colours, tmp_path):
    train(tmp_path, clip_path, colours, "--method", "coop", *QUICK)
    page = (tmp_path / "report.html").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the folder holds another run
        train(tmp_path, clip_path, colours, "--method", "coop", "--lr", 0.5, "--no-report", *QUICK)
    assert not (tmp_path / "report.html").exists()
    (kept,) = (tmp_path / "previous").glob("*/report.html")
    assert kept.read_bytes() == page


def test_the_demo_keeps_what_its_folder_held(embedded, tmp_path):
    (tmp_path / "results.json").write_text("of somebody")
    for _ in range(2):
        vprompt("demo", "--output", tmp_path, "--methods", "coop", "--shots", 1)
    (kept,) = (tmp_path / "previous").iterdir()
    assert (kept / "results.json").read_text() == "of somebody"


def test_train_on_the_embedded_task(embedded, tmp_path):
    vprompt("train", "--output", tmp_path, "--method", "maple", *QUICK)
    assert json.loads((tmp_path / "results.json").read_text())["data"] is None


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (("--method", "prefix"), "No method 'prefix'"),
        (("--label-column", "species"), "No column 'species'. The data has: image, colour"),
        (("--min-images", 99), "No class has 99 images"),
        (("--device", "cuda:99"), "Expected a device of this machine: auto, "),
        (("--report-to", "paper"), "Expected trackers among azure_ml, comet_ml"),
        (("--image-size", 33), "multiple of the patch size 8. Received: 33. The nearest is 32"),
        (("--set", "depth"), "--set takes NAME=VALUE"),
        (("--set", "depth=3"), "MaPLe has no option depth"),
        (("--set", "prompt_depth=9"), "prompt_depth"),
        (("--epochs", 0), "`epochs` must be greater than 0"),
        (("--where", "colour=pink"), "No row is left"),
        (("--data", "/nowhere/at/all"), "No file or folder /nowhere/at/all"),
        (("--model", "/nowhere/at/all"), "/nowhere/at/all"),
        (("--class-names", "/nowhere/names.txt"), "names.txt"),
        (("--method", "coop", "--set", "class_specific=true", "--base-novel"), "class"),
        (("--cache-features",), "do not cache features"),
        (("--views", 2), "Received: views=2"),
    ],
)
def test_user_errors_are_one_line(more, match, clip_path, colours, tmp_path):
    shown = train(tmp_path / "out", clip_path, colours, *QUICK, *more, code=2)
    assert match in shown
    assert len(shown.strip().splitlines()) == 1 and "Traceback" not in shown
    assert not (tmp_path / "out").exists()


def test_traceback_on_demand(clip_path, colours, tmp_path):
    arguments = ["--traceback", "train", "--output", str(tmp_path), "--model", "x", "--data", "/nowhere/at/all"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, FileNotFoundError)


def test_classifier_needs_all_classes(vit_path, colours, tmp_path):
    shown = train(tmp_path, vit_path, colours, "--method", "vpt", "--base-novel", *QUICK, code=2)
    assert "Use all classes" in shown


def test_data_options_need_data(tmp_path):
    shown = vprompt("train", "--output", tmp_path, "--label-column", "kind", code=2)
    assert "need --data. Received: label_column" in shown


def test_evaluate_needs_an_adapter(tmp_path):
    for adapter in (tmp_path / "gone", "me/no-such-adapter"):
        shown = vprompt("evaluate", "--adapter", adapter, code=2)
        assert f"'{adapter}'. There is no such folder" in shown and "on the Hub" in shown
    assert f"with adapter_config.json. Received: '{tmp_path}'" in vprompt("evaluate", "--adapter", tmp_path, code=2)


def test_evaluate_needs_data(tmp_path):
    ContextOptConfig().save_pretrained(tmp_path)
    assert "Give --data" in vprompt("evaluate", "--adapter", tmp_path, code=2)


def test_evaluate_refuses_a_subset(clip_path, colours, tmp_path):
    train(tmp_path, clip_path, colours, "--method", "coop", *QUICK)
    assert "--subset half" in vprompt("evaluate", "--adapter", tmp_path, "--subset", "half", code=2)


@pytest.mark.parametrize("content", [b"PAR1 but not really", b"PAR1" * 9])
def test_a_broken_parquet_file(content, clip_path, tmp_path, capfd):
    (tmp_path / "broken.parquet").write_bytes(content)
    shown = train(tmp_path / "out", clip_path, tmp_path / "broken.parquet", code=2)
    assert len(shown.strip().splitlines()) == 1 and capfd.readouterr().err == ""


def test_a_diverged_run_is_not_saved_over_a_good_adapter(clip_path, colours, tmp_path):
    arguments = ("--method", "coop", "--shots", 4, "--batch-size", 4, "--epochs", 3)
    train(tmp_path, clip_path, colours, *arguments)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    shown = train(tmp_path, clip_path, colours, *arguments, "--lr", "1e30", code=1)
    assert "Training diverged in epoch" in shown and "diverged; nothing else was written" in shown
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == files
    for adapter in (tmp_path, tmp_path / "diverged"):
        vprompt("evaluate", "--adapter", adapter, "--model", clip_path, "--data", colours, "--label-column", "colour")
    two = tmp_path / "two"
    shown = train(two, clip_path, colours, "--method", "2sfs", *arguments[2:], "--lr", "1e30", code=1)
    assert "nothing else was written" in shown and [path.name for path in two.glob("*/adapter_config.json")]


@pytest.mark.parametrize(
    ("command", "arguments"),
    {
        "sweep": ("--output", "x"),
        "noise-study": ("--output", "x"),
        "cost": (),
        "demo": (),
        "convert": ("x", "--output", "x", "--method", "coop"),
        "convert-clip": ("x", "--output", "x"),
    }.items(),
)
def test_commands_of_one_process_refuse_several(command, arguments, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    shown = vprompt(command, *arguments, code=2)
    assert f"`vprompt {command}` runs in one process. Received: 2" in shown
