"""The study of label noise: what it runs, that it goes on where it was, what it shows."""

import json
import os
from dataclasses import asdict

import numpy as np
import pytest
import torch
from peft import get_peft_model
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from examples.studies.reliability import contents, in_child
from peft_vprompt import ContextOptConfig, VisualPromptConfig
from peft_vprompt.data import DataOptions, load_images
from peft_vprompt.experiments import noise_study, zero_shot_scores
from peft_vprompt.experiments.models import DEMO_CHANGES
from peft_vprompt.experiments.noise_plots import show, with_clean
from peft_vprompt.experiments.noise_study import METHODS, Study, parse_method, summarise
from peft_vprompt.experiments.settings import Settings
from peft_vprompt.losses.classification import GeneralizedCrossEntropy
from peft_vprompt.training.gradient_probe import GradientProbe
from peft_vprompt.training.recipes import Recipe
from peft_vprompt.training.trainer import train
from peft_vprompt.tuners.base.shared_recipes import PTNL
from tests.support.command_line import vprompt
from tests.support.labelled_images import write_vtab
from tests.support.models import CLASS_NAMES, images, tiny_clip, tiny_vit


def study(clip_path, colours, output, *more, code=0):
    data = ("--data", colours, "--label-column", "colour", "--model", clip_path, "--output", output)
    return vprompt("noise-study", *data, "--shots", 4, "--epochs", 2, "--batch-size", 8, *more, code=code)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def lines(axes) -> dict[str, list]:
    """The points of every line with error bars, by its label."""
    return {bars.get_label(): bars[0].get_xydata().tolist() for bars in axes.containers}


def test_study(clip_path, colours, figures, tmp_path, monkeypatch):
    runs, run = [], noise_study.run_experiment
    monkeypatch.setattr(noise_study, "run_experiment", lambda *args, **kw: runs.append(args[0]) or run(*args, **kw))
    small = ("--rates", "0,0.5", "--seeds", "1", "--losses", "ce,gce", "--gradients")
    methods = ("--methods", "classifier-r,linear-probe,coop:num_virtual_tokens=2")
    shown = study(clip_path, colours, tmp_path, *small, *methods)
    assert len(runs) == 2 * 2 * 2  # methods, losses, rates
    assert "Classifier-R" in shown and "Linear probe" in shown and "num_virtual_tokens=2" in shown
    result = json.loads((tmp_path / "study.json").read_text())
    assert len(result["runs"]) == len(result["summary"]) == 8 + 2
    assert {run["achieved_rate"] for run in result["runs"] if run["noise"]} == {0.5}
    probed = [run for run in result["runs"] if run["gradients"]]
    assert len(probed) == 4 and all(len(run["gradients"]) == 3 for run in probed)
    plots = {path.name for path in tmp_path.glob("*.png")}
    assert plots == {"methods_symmetric.png", "losses_symmetric.png", "gradients.png"}
    by_loss, by_method, gradients = figures
    mean = {(row["method"], row["loss"], row["rate"]): row["mean"] for row in result["summary"]}
    points = {loss: [[100 * rate, mean["classifier-r", loss, rate]] for rate in (0.0, 0.5)] for loss in ("ce", "gce")}
    assert {axes.get_title(): lines(axes)["Classifier-R"] for axes in by_loss.axes} == points
    assert all(lines(axes).keys() == {"Classifier-R", "Linear probe"} for axes in by_loss.axes)
    assert [lines(axes) for axes in by_method.axes] == [points]
    norms = {line.get_label(): line.get_ydata().tolist() for line in gradients.axes[0].lines}
    assert sorted(norms.values()) == sorted([entry["clean_norm"] for entry in run["gradients"]] for run in probed)

    runs.clear()
    study(clip_path, colours, tmp_path, *small, *methods)
    assert not runs
    assert json.loads((tmp_path / "study.json").read_text())["runs"] == result["runs"]
    lengths = ("--methods", "coop:num_virtual_tokens=1,coop:num_virtual_tokens=2", "--losses", "gce", "--seeds", "1")
    study(clip_path, colours, tmp_path, "--rates", "0,0.5", *lengths)
    assert len(runs) == 2  # those of two tokens were done
    assert (tmp_path / "context_length_symmetric.png").is_file()
    (old,) = tmp_path.glob("previous/*/study.json")
    assert json.loads(old.read_text())["runs"] == result["runs"]


def test_without_labels(clip_path, colours, tmp_path):
    options = ("--methods", "classifier-c", "--rates", "0", "--losses", "ce", "--seeds", "1", "--without-labels")
    shown = study(clip_path, colours, tmp_path, *options)
    result = json.loads((tmp_path / "study.json").read_text())
    ways = [(run["unlabelled"], run["loss"]) for run in result["runs"]]
    assert ways == [
        (None, "ce"),
        ("zero-shot", "ce"),
        ("top-k", "ce"),
        ("top-k", "gce"),
        ("random-k", "ce"),
        ("random-k", "gce"),
    ]
    assert "zero-shot" in shown and "random-k" in shown


def test_runs_cover_the_grid_once():
    runs = list(Study(Settings("coop"), kinds=("symmetric", "pair"), seeds=(1, 2)).runs())
    assert len(runs) == len({repr(run) for run in runs}) == 2 * (6 * 2 + 1) * (1 + 2 * 3)
    assert {spec for spec, _ in runs} == set(METHODS)
    assert all(not settings.base_novel for _, settings in runs)


def test_the_clean_rows_belong_to_every_kind():
    rows = [
        {"unlabelled": None, "noise": None},
        {"unlabelled": None, "noise": "pair"},
        {"unlabelled": "top-k", "noise": None},
    ]
    assert [row["noise"] for row in with_clean(rows)] == ["pair", "pair", None]


def test_summary():
    base = {"method": "coop", "title": "CoOp", "loss": "ce", "noise": None, "rate": 0.0, "unlabelled": None}
    (row,) = summarise([base | {"accuracy": 50.0}, base | {"accuracy": 60.0}])
    assert (row["mean"], row["seeds"]) == (55.0, 2) and row["std"] == pytest.approx(50**0.5)
    assert show(row) == "55.0 ± 7.1" and show(row | {"std": None}) == "55.0"


def test_a_method_with_fields():
    assert parse_method("coop:num_virtual_tokens=4:prompt_init=text") == (
        "coop", {"num_virtual_tokens": 4, "prompt_init": "text"},
    )  # fmt: skip
    with pytest.raises(ValueError, match="colon in 'coop:4' takes NAME=VALUE. Received: '4'"):
        parse_method("coop:4")


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (("--methods", "lora-2"), "No method 'lora-2'"),
        (("--losses", "focal"), "No loss 'focal'"),
        (("--kinds", "flip"), "noise='flip'"),
        (("--seeds", "1.5"), "--seeds takes whole numbers separated by commas. Received: '1.5'"),
        (("--rates", "0,1.5"), "noise rate above 0 and up to 1"),
        (("--shots", 2), "at least 3 shots with 'linear-probe'"),
        (("--seeds", "1,2,1"), "Expected seeds that differ, as each counts once. Received twice: 1"),
        (("--methods", "coop,coop"), "Expected methods that differ, as each counts once. Received twice: 'coop'"),
        (("--losses", "ce", "--q", 0.5), "--q is of gce and phuber-gce. Received: --losses ce"),
        (("--rates", "0,half"), "--rates takes numbers separated by commas. Received: '0,half'"),
    ],
)
def test_user_errors(more, match, clip_path, colours, tmp_path):
    assert match in study(clip_path, colours, tmp_path / "out", *more, code=2)
    assert not (tmp_path / "out").exists()


class TestPublishedTask:
    """Its preprocessing is the published one, as in every other run."""

    def options(self, tmp_path):
        return DataOptions(str(write_vtab(tmp_path / "data")), "vtab-1k/patch_camelyon", class_names=("no", "yes"))

    def test_linear_probe(self, clip_path, tmp_path, monkeypatch):
        options, transforms, cache = self.options(tmp_path), [], noise_study.cache_features
        monkeypatch.setattr(noise_study, "cache_features", lambda *args: transforms.append(args[-1]) or cache(*args))
        settings = Settings("linear-probe", model=clip_path, shots=3)
        noise_study.linear_probe(settings, load_images(options), tmp_path / "probe", asdict(options))
        assert [list(t.image_processor.image_mean) for t in transforms] == [list(IMAGENET_DEFAULT_MEAN)] * 2

    def test_pseudo_labels(self, clip_path, tmp_path, monkeypatch):
        options, batches, encode = self.options(tmp_path), [], zero_shot_scores.encode_frozen
        monkeypatch.setattr(
            zero_shot_scores, "encode_frozen", lambda model, batch: batches.append(batch) or encode(model, batch)
        )
        (tmp_path / "names.txt").write_text("no\nyes")
        data = ("--data", options.path, "--benchmark", options.benchmark, "--class-names", tmp_path / "names.txt")
        shown = vprompt("pseudo-label", *data, "--model", clip_path, "--output", tmp_path / "labels.safetensors")
        assert "of 6 images" in shown
        black = -np.array(IMAGENET_DEFAULT_MEAN) / IMAGENET_DEFAULT_STD  # images of label 0 are of value 0
        np.testing.assert_allclose(batches[0]["pixel_values"][0, :, 3, 4], black, rtol=1e-5)


class TestGradients:
    ROWS = [{"pixel_values": x, "labels": i % 5} for i, x in enumerate(images(10))]

    def model(self, tokenizer_path):
        config = ContextOptConfig(class_names=CLASS_NAMES, tokenizer_name_or_path=tokenizer_path, num_virtual_tokens=2)
        model = get_peft_model(tiny_clip(), config)
        torch.manual_seed(1)
        torch.nn.init.normal_(model.base_model.text_encoder.active_prompts.tokens, std=0.02)
        return model

    def test_probe_leaves_the_run_alone(self, tokenizer_path, tmp_path):
        recipe, results = Recipe(0.05, 5, 3, "test"), []
        for callbacks in ([], [GradientProbe(self.ROWS, [1, 2], GeneralizedCrossEntropy())]):
            model = self.model(tokenizer_path)
            train(model, self.ROWS, recipe, tmp_path, epochs=3, checkpoints=False, callbacks=callbacks)
            results.append(model.base_model.text_encoder.active_prompts.tokens)
        assert torch.equal(*results)
        assert [entry["epoch"] for entry in callbacks[0].history] == [0, 1, 2, 3]

    def test_probe_draws_no_random_number(self):
        model = get_peft_model(tiny_vit(), VisualPromptConfig(num_virtual_tokens=2, prompt_dropout=0.3)).train()
        before = torch.get_rng_state()
        GradientProbe(self.ROWS, [1, 2]).on_train_begin(None, None, None, model=model)
        assert torch.equal(torch.get_rng_state(), before) and model.training

    def test_values(self, tokenizer_path):
        model, probe = self.model(tokenizer_path), GradientProbe(self.ROWS, [1, 2, 7])
        probe.on_train_begin(None, None, None, model=model)
        gradients = []
        for part in ([0, 3, 4, 5, 6, 8, 9], [1, 2, 7]):
            pixels = torch.stack([self.ROWS[i]["pixel_values"] for i in part])
            loss = model(pixel_values=pixels, labels=torch.tensor([i % 5 for i in part])).loss
            gradients.append(
                torch.autograd.grad(loss, model.base_model.text_encoder.active_prompts.tokens)[0].flatten()
            )
        clean, noisy = gradients
        (entry,) = probe.history
        assert entry["clean_norm"] == pytest.approx(clean.norm().item(), rel=1e-4)
        assert entry["noisy_norm"] == pytest.approx(noisy.norm().item(), rel=1e-4)
        assert entry["cosine"] == pytest.approx(float(clean @ noisy / clean.norm() / noisy.norm()), abs=1e-4)
        assert np.isfinite(list(entry.values())).all()

    def test_nothing_to_compare(self):
        with pytest.raises(ValueError, match="0 wrong of 10 labels"):
            GradientProbe(self.ROWS, [])


@pytest.mark.parametrize("of_demo", (True, False))
def test_the_recipe_is_ptnls_unless_the_model_is_the_embedded_one(of_demo, clip_path, colours, embedded, tmp_path):
    more = () if of_demo else ("--model", clip_path, "--data", colours, "--label-column", "colour")
    small = ("--methods", "coop", "--rates", "0", "--losses", "ce", "--seeds", "1", "--shots", 4, "--epochs", 2)
    vprompt("noise-study", "--output", tmp_path, *small, *more)
    used = json.loads((tmp_path / "study.json").read_text())["runs"][0]["recipe"]
    changes = DEMO_CHANGES["coop"] if of_demo else {}
    for name in ("learning_rate", "batch_size"):
        assert used[name] == changes.get(name, getattr(PTNL, name))
    assert used["epochs"] == 2 and 0.02 == DEMO_CHANGES["coop"]["learning_rate"] != PTNL.learning_rate


def test_the_probe_has_no_loss_to_vary():
    runs = list(
        Study(Settings("coop"), methods=("linear-probe",), losses=("gce", "ce"), rates=(0,), seeds=(1,)).runs()
    )
    assert [settings.loss for _, settings in runs] == [None]


def test_two_workers_are_one(clip_path, colours, tmp_path):
    options = ("--methods", "coop,linear-probe", "--rates", "0,0.5", "--losses", "gce", "--seeds", "1")

    def work(folder):
        return in_child(lambda: study(clip_path, colours, tmp_path / folder, *options))

    assert work("one") == 0
    if (other := os.fork()) == 0:
        os._exit(work("two"))
    assert work("two") == 0
    assert os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    shown = study(clip_path, colours, tmp_path / "two", "--status")
    assert "0 waiting, 0 running, 4 done, 0 failed" in shown and "linear-probe-own-clean-1-" in shown


def test_a_run_that_fails_is_named_and_the_others_are_done(clip_path, colours, tmp_path, monkeypatch):
    run = noise_study.run_experiment

    def failing(settings, *arguments, **options):
        if settings.supervision.noise:
            raise MemoryError("no room")
        return run(settings, *arguments, **options)

    monkeypatch.setattr(noise_study, "run_experiment", failing)
    options = ("--methods", "coop", "--rates", "0,0.5", "--losses", "ce", "--seeds", "1")
    shown = study(clip_path, colours, tmp_path, *options, code=2)
    assert "1 of 2 cells failed" in shown and "coop-ce-symmetric-0.5-1-" in shown and "MemoryError: no room" in shown
    assert len(list(tmp_path.glob("runs/*/results.json"))) == 1 and not (tmp_path / "study.json").exists()
