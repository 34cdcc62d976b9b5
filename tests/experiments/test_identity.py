"""A run is known by its content: what changes at the same path is another run, what only moved is the same one."""

import io
import json
import os
import shutil
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from peft_vprompt.data import DataOptions, load_images
from peft_vprompt.experiments import identity as module
from peft_vprompt.experiments.eval_sets import class_names_of
from peft_vprompt.experiments.grid_search import Grid
from peft_vprompt.experiments.identity import IDENTITY, RESULTS, Contents, differences, finished_run
from peft_vprompt.experiments.noise_study import Study, run_study
from peft_vprompt.experiments.pseudo_labels import top_k
from peft_vprompt.experiments.run import run_experiment
from peft_vprompt.experiments.settings import Settings, changed_settings
from peft_vprompt.experiments.supervision import Supervision
from peft_vprompt.experiments.sweep import sweep
from peft_vprompt.peft_models.adapter_files import PREVIOUS
from peft_vprompt.utils.io import write_json
from tests.support.saved_models import COLOURS


SETTINGS = Settings("coop", shots=2, epochs=2, batch_size=4, base_novel=False, learning_rate=0.05)


@pytest.fixture
def base(clip_path, tmp_path):
    """A copy of the base model, to be changed."""
    return Path(shutil.copytree(clip_path, tmp_path / "base"))


@pytest.fixture
def images(tmp_path):
    """A folder of image files, to be changed: folder/split/class/number.png."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 2)):
        for name, colour in COLOURS.items():
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                noise = generator.integers(-25, 26, (32, 32, 3))
                Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "images"


def read(folder):
    return load_images(DataOptions(str(folder)))


def identity(base, folder, settings=SETTINGS):
    data = read(folder)
    return Contents(data).identity(replace(settings, model=str(base)), class_names_of(data))


def repaint(path):
    """Other pixels in a file of the same size, with the same times, as a copy that keeps them makes."""
    old, times = path.read_bytes(), path.stat()
    for value in range(256):
        buffer = io.BytesIO()
        Image.fromarray(np.full((32, 32, 3), value, np.uint8)).save(buffer, format="PNG")
        if len(buffer.getvalue()) <= len(old):
            path.write_bytes(buffer.getvalue() + bytes(len(old) - len(buffer.getvalue())))
            break
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(base, images):
    tensors = load_file(base / "model.safetensors")
    tensors["logit_scale"] += 1
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


def change_tokenizer(base, images):
    path = base / "tokenizer.json"
    path.write_text(path.read_text().replace('"Lowercase"', '"NFC"'))


def rename_class(base, images):
    for split in ("train", "test"):
        (images / split / "red").rename(images / split / "scarlet")


CHANGES = {
    "base model": change_weights,
    "tokenizer": change_tokenizer,
    "image processor": lambda base, images: edit_json(base / "preprocessor_config.json", do_normalize=False),
    "train images": lambda base, images: [repaint(path) for path in (images / "train").glob("*/*.png")],
    "test images": lambda base, images: repaint(images / "test" / "red" / "0.png"),
    "class names": rename_class,
    "test labels": lambda base, images: (images / "test" / "red" / "1.png").unlink(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_at_the_same_path_is_another_run(what, base, images):
    before = identity(base, images)
    assert identity(base, images) == before
    CHANGES[what](base, images)
    assert what in differences(identity(base, images), before)


def test_what_only_moved_is_the_same_run(base, images, tmp_path):
    before = identity(base, images)
    moved = [Path(shutil.move(path, tmp_path / f"moved-{path.name}")) for path in (base, images)]
    assert identity(*moved) == before
    assert str(tmp_path) not in json.dumps(before)


def test_images_that_no_run_takes_do_not_count(base, images):
    before = identity(base, images)
    used = set()
    for path in (images / "train").glob("*/*.png"):
        old = path.read_bytes()
        repaint(path)
        used |= {path} if identity(base, images) != before else set()
        path.write_bytes(old)
    assert len(used) == 2 * len(COLOURS)  # two of three shots


@pytest.mark.parametrize(
    "other",
    [
        {"shots": 1},
        {"seed": 2},
        {"loss": "gce"},
        {"supervision": Supervision("pair", 0.5)},
        {"config": {"num_virtual_tokens": 2}},
    ],
    ids=str,
)
def test_other_settings_are_another_run(other, base, images):
    assert identity(base, images, replace(SETTINGS, **other)) != identity(base, images)


def test_another_version_is_another_run(base, images, monkeypatch):
    before = identity(base, images)
    monkeypatch.setattr(module, "__version__", "0.0.1")
    assert differences(identity(base, images), before) == ["version of peft_vprompt"]


def test_the_labels_of_a_file_count_by_their_content(base, images, tmp_path):
    def of(table):
        top_k(table, list(COLOURS), 1).save(tmp_path / "labels.safetensors")
        supervision = Supervision(pseudo_labels=str(tmp_path / "labels.safetensors"))
        return identity(base, images, replace(SETTINGS, supervision=supervision))

    table = np.eye(4, dtype=np.float32)
    assert of(table) == of(table) != of(table[::-1])


class TestRuns:
    def run(self, base, images, output, **changes):
        settings = replace(SETTINGS, model=str(base), **changes)
        return run_experiment(settings, read(images), output, quiet=True)

    @pytest.mark.parametrize("what", ["base model", "train images"])
    def test_a_changed_run_is_told_and_trained_afresh_beside_the_old_one(self, what, base, images, tmp_path):
        output = tmp_path / "run"
        first = self.run(base, images, output)
        old = (output / "adapter_model.safetensors").read_bytes()
        assert self.run(base, images, output)["resumed_step"] == first["steps"]
        CHANGES[what](base, images)
        with pytest.warns(UserWarning) as told:
            again = self.run(base, images, output)
        said = " ".join(str(warning.message) for warning in told)
        assert f"made with other {what}" in said and "training afresh" in said and PREVIOUS in said
        fresh = self.run(base, images, tmp_path / "fresh")
        assert again["resumed_step"] == 0 and again["accuracy"] == fresh["accuracy"]
        files = [load_file(folder / "adapter_model.safetensors") for folder in (output, tmp_path / "fresh")]
        assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
        (kept,) = (output / PREVIOUS).iterdir()
        assert (kept / "adapter_model.safetensors").read_bytes() == old
        assert json.loads((kept / RESULTS).read_text())[IDENTITY] == first[IDENTITY]

    def test_an_unfinished_run_is_told_of_too(self, base, images, tmp_path):
        self.run(base, images, tmp_path / "run")
        (tmp_path / "run" / RESULTS).unlink()
        CHANGES["train images"](base, images)
        with pytest.warns(UserWarning, match="made with other train images"):
            assert self.run(base, images, tmp_path / "run")["resumed_step"] == 0

    def test_a_foreign_adapter_is_kept(self, base, images, tmp_path):
        folder = tmp_path / "run"
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"foreign")
        (folder / RESULTS).write_text("no JSON")
        with pytest.warns(UserWarning, match="holds an adapter, a model, a card or results of something else"):
            self.run(base, images, folder)
        (kept,) = (folder / PREVIOUS).iterdir()
        assert (kept / "adapter_model.safetensors").read_bytes() == b"foreign"
        assert (kept / RESULTS).read_text() == "no JSON"

    def test_a_finished_run_is_found_by_its_identity(self, base, images, tmp_path):
        report = self.run(base, images, tmp_path)
        assert finished_run(tmp_path, report[IDENTITY]) == json.loads((tmp_path / RESULTS).read_text())
        assert finished_run(tmp_path, report[IDENTITY] | {"code": "0.0.1"}) is None
        assert finished_run(tmp_path, report[IDENTITY], gradients=True) is None
        assert finished_run(tmp_path / "none", report[IDENTITY]) is None
        write_json(
            {"settings": asdict(SETTINGS), "gradients": [{"epoch": 0}], IDENTITY: {"a": [1]}}, tmp_path / RESULTS
        )
        assert finished_run(tmp_path, {"a": [1]}, gradients=True) is not None
        (tmp_path / RESULTS).write_text('{"settings": ')
        assert finished_run(tmp_path, {"a": [1]}) is None


def test_a_search_is_made_anew_for_other_images(base, images, tmp_path):
    def search():
        settings = replace(SETTINGS, model=str(base), shots=None, learning_rate=None)
        return sweep(settings, read(images), tmp_path / "sweep", grid=Grid((2.5,), (0.0,)), seeds=(1,))

    first = search()
    runs = [json.loads(path.read_text()) for path in (tmp_path / "sweep").rglob(RESULTS)]
    assert search() == first | {"environment": search()["environment"]}
    CHANGES["train images"](base, images)
    with pytest.warns(UserWarning, match="made with other train images"):
        again = search()
    assert again[IDENTITY] != first[IDENTITY]
    assert len(list((tmp_path / "sweep").rglob(RESULTS))) == len(runs) + 2  # a trial, and the last run that was kept
    (kept,) = (tmp_path / "sweep" / PREVIOUS).iterdir()
    assert json.loads((kept / "sweep.json").read_text())["trials"] == first["trials"]


def test_a_study_is_made_anew_for_other_images(base, images, tmp_path):
    study = Study(replace(SETTINGS, model=str(base), shots=3), ("coop", "linear-probe"), rates=(0.0,), losses=("ce",), seeds=(1,))  # fmt: skip

    def run():
        return run_study(study, read(images), tmp_path / "study")["runs"]

    first = run()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "study").rglob(RESULTS)}
    assert run() == first and all(path.stat().st_mtime_ns == time for path, time in written.items())
    CHANGES["test images"](base, images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()
    assert len(list((tmp_path / "study" / "runs").iterdir())) == 4


def test_changed_settings_are_those_that_are_no_defaults():
    assert changed_settings(asdict(Settings("coop", seed=3, config={"lengths": (1, 2)}))) == {
        "method": "coop",
        "seed": 3,
        "config": {"lengths": [1, 2]},
    }
