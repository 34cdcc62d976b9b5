"""`vprompt features`, and what takes its folders in the place of images."""

import csv
import json
import os
import subprocess
import sys

import fsspec
import pyarrow.parquet as pq
import pytest

from peft_vprompt.data.feature_folders import MANIFEST, read_manifest
from tests.support.command_line import QUICK, next_command, vprompt
from tests.support.labelled_images import write_folder
from tests.support.streamed_images import write_parquets, write_tars


CLASSES = ("ant", "bee", "cow")
IMAGES = [(name, index) for name in CLASSES for index in range(5)]


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return write_tars(tmp_path_factory.mktemp("tars") / "tars", IMAGES, 2)


@pytest.fixture(scope="module")
def features(tmp_path_factory, clip_path, tars):
    """Features of two tars by the command, and what it said."""
    folder = tmp_path_factory.mktemp("features") / "features"
    arguments = ("--model", clip_path, "--data", tars, "--label-column", "txt", "--batch-size", 4, "--shard-size", 4)
    return folder, vprompt("features", *arguments, "--output", folder), arguments


def test_features_to_an_adapter_to_labels(features, clip_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, shown, arguments = features
    assert "15 images in 4 files, 0 skipped." in shown
    following = next_command(shown)
    assert following[:5] == ["train", "--model", str(clip_path), "--data", str(folder)]
    vprompt(*following[:-1], "coop", *QUICK)
    results = json.loads((tmp_path / "coop" / "results.json").read_text())
    assert results["classes"] == {"all": list(CLASSES)} and results["test_images"] == {"all": 6}
    again = vprompt("evaluate", "--adapter", "coop", "--output", "e.json")
    assert f"{results['accuracy']['all']:.2f} %" in again
    shown = vprompt("predict", "--adapter", "coop", "--data", folder, "--output", "mapped.csv", "--top-k", 2)
    assert "15 images, 0 skipped" in shown
    vprompt(
        "predict", "--adapter", "coop", "--data", arguments[3], "--stream", "--output", "streamed.csv", "--top-k", 2
    )
    mapped, streamed = rows("mapped.csv"), rows("streamed.csv")
    assert [(row["file"], row["label"]) for row in mapped] == [(row["file"], row["label"]) for row in streamed]
    assert all(
        abs(float(a["probability"]) - float(b["probability"])) < 1e-5 for a, b in zip(mapped, streamed, strict=True)
    )
    shown = vprompt("evaluate", "--adapter", "coop", "--test-time", code=2)
    assert "Expected images, of which test-time tuning looks at views" in shown
    shown = vprompt("export", "--adapter", "coop", "--output", "plain", "--format", "plain", "--data", folder, code=2)
    assert "Expected images, by which the export is compared" in shown


def test_images_without_labels(clip_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos", {"ant": 2, "bee": 2})
    (tmp_path / "t.csv").write_text("image,kind\nphotos/ant/0.png,ant\nphotos/ant/1.png,ant\nphotos/bee/0.png,bee\n")
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    shown = vprompt("features", "--model", clip_path, "--data", "t.csv", "--output", "out")
    assert "No column 'label'" in shown and "The data has: image, kind." in shown
    vprompt(*next_command(shown), "--per-class", 1)
    shown = vprompt("train", "--model", clip_path, "--data", "out", "--method", "coop", "--output", "run", code=2)
    assert "`vprompt features --label-column NAME`" in shown


def test_pseudo_labels_on_features(features, clip_path, tmp_path):
    folder, _, _ = features
    same = ("--model", clip_path, "--data", folder)
    shown = vprompt("pseudo-label", *same, "--output", tmp_path / "labels.safetensors", "--per-class", 2, "--check")
    assert "Right: " in shown
    before = set(os.listdir(folder))
    vprompt(*next_command(shown), "--epochs", 1, "--batch-size", 4)
    assert set(os.listdir(folder)) == before
    vprompt("train", *same, "--method", "coop", "--unlabelled", *QUICK, "--output", tmp_path / "upl")
    other = ("--model", clip_path, "--image-size", 48, "--data", folder, "--output", tmp_path / "other.safetensors")
    assert "features of this model and its preprocessing. Received some of another" in vprompt(
        "pseudo-label", *other, code=2
    )


def test_an_adapter_sees_for_itself(features, clip_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, _, _ = features
    write_folder(tmp_path / "photos", dict.fromkeys(CLASSES, 4))
    vprompt(
        "train",
        "--model",
        clip_path,
        "--data",
        "photos",
        "--method",
        "maple",
        "--set",
        "prompt_depth=2",
        *QUICK,
        "--output",
        "maple",
    )
    shown = vprompt("features", "--adapter", "maple", "--data", "photos", "--output", "own")
    assert "12 images in 1 files" in shown and "Next:" not in shown
    assert "adapter" in read_manifest("own")["content"]
    for data in ("own", folder):
        shown = vprompt("predict", "--adapter", "maple", "--data", data, "--output", "p.csv", code=2)
        assert "learns visual prompts" in shown


def test_the_same_command_again_and_another(features, clip_path):
    folder, _, arguments = features
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "15 images in 4 files" in vprompt("features", *arguments, "--output", folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    shown = vprompt("features", *arguments[:-1], 8, "--output", folder, code=2)
    assert "made with other shard size" in shown and len(shown.strip().splitlines()) == 1


def test_streams_at_an_address(clip_path, features, tmp_path):
    system = fsspec.filesystem("memory")
    write_parquets(tmp_path / "files", IMAGES, 2)
    for path in (tmp_path / "files").iterdir():
        system.pipe(f"/bucket/{path.name}", path.read_bytes())
    try:
        out = tmp_path / "features"
        vprompt("features", "--model", clip_path, "--data", "memory://bucket/*.parquet", "--output", out)
        vprompt(
            "train", "--model", clip_path, "--data", out, "--method", "coop", *QUICK, "--output", tmp_path / "coop"
        )
        where = ("--data", "memory://bucket", "--output", tmp_path / "p.parquet", "--embeddings")
        vprompt("predict", "--adapter", tmp_path / "coop", *where)
        assert pq.read_table(tmp_path / "p.parquet").num_rows == 15
        shown = vprompt("train", "--model", clip_path, "--data", "memory://bucket", "--output", tmp_path / "x", code=2)
        assert "streamed by `vprompt features`" in shown
    finally:
        system.store.clear()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Give --data"),
        (("--data", "photos"), "--model openai/clip-vit-base-patch16"),
        (("--data", "photos", "--model", "vit"), "needs a model with a text tower"),
        (("--data", "photos", "--model", "clip", "--shard-size", 100), "Expected shards of whole batches"),
        (("--data", "photos", "--model", "clip", "--output", "photos/features"), "output outside of the data"),
        (("--data", "nowhere://x.tar", "--model", "clip"), "nowhere"),
    ],
)
def test_what_is_refused(arguments, message, clip_path, vit_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos", {"ant": 1})
    given = [{"vit": vit_path, "clip": clip_path}.get(argument, argument) for argument in arguments]
    shown = vprompt("features", *([] if "--output" in arguments else ["--output", "out"]), *given, code=2)
    assert message in shown and not (tmp_path / "out" / MANIFEST).exists()


@pytest.mark.nightly
def test_two_processes_of_a_launcher(features, tmp_path):
    """`torchrun` on two processes: each makes what the other does not, and the first one speaks."""
    folder, _, arguments = features
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "peft_vprompt", "features"]
    run = subprocess.run(
        [*line, *map(str, arguments), "--output", str(tmp_path / "out")], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count("15 images in 4 files") == 1
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == whole
