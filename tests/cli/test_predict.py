"""`vprompt predict` and `vprompt export`: what they say, and that what comes next can be typed."""

import csv
import json
import subprocess
import sys

import pytest

from tests.support.command_line import QUICK, next_command, train, vprompt
from tests.support.labelled_images import write_folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, clip_path, colours):
    folder = tmp_path_factory.mktemp("adapter")
    train(folder, clip_path, colours, "--method", "coop", *QUICK)
    return folder


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_images_to_labels_to_a_model(adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos", {"a": 2, "b/c": 1})
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no image")
    shown = vprompt("predict", "--adapter", adapter, "--data", "photos", "--output", "out.csv", "--top-k", 3)
    assert [row["file"] for row in rows("out.csv")] == ["a/0.png", "a/1.png", "b/c/0.png"]
    assert rows("out.csv")[0].keys() == {f"{n}{k}" for n in ("label", "probability") for k in ("", "_2", "_3")} | {
        "file"
    }
    assert "3 images, 1 skipped. Most often:" in shown and "broken.jpg (not an image)" in shown
    assert rows("out.skipped.csv") == [{"file": "broken.jpg", "problem": "not an image"}]
    following = next_command(shown)
    assert following[0] == "export"
    shown = vprompt(*following, "--format", "plain", "--bf16")
    assert "--data path/to/images" in shown and "before the weights were rounded" in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("Next: python ")]
    assert line.removeprefix("Next: python ").split()[0] == "out-model/predict.py"


def test_one_image_other_classes_and_features(adapter, tmp_path):
    write_folder(tmp_path / "photos", {"a": 1})
    (tmp_path / "names.txt").write_text("fox\nwolf\n")
    same = (
        "--adapter",
        adapter,
        "--data",
        tmp_path / "photos" / "a" / "0.png",
        "--class-names",
        tmp_path / "names.txt",
    )
    vprompt("predict", *same, "--output", tmp_path / "one.jsonl", "--embeddings", "--device", "cpu", "--bf16")
    (row,) = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    assert row["file"] == "0.png" and row["label"] in ("fox", "wolf") and len(row["embedding"]) == 16


def test_tables_of_labelled_images_are_images(adapter, colours, tmp_path):
    vprompt(
        "predict", "--adapter", adapter, "--data", colours, "--where", "colour=red", "--output", tmp_path / "o.csv"
    )
    assert [row["file"] for row in rows(tmp_path / "o.csv")] == [f"row {index}" for index in range(20, 30)]
    costs = ("--data", colours, "--label-column", "colour", "--format", "plain")
    shown = vprompt("export", "--adapter", adapter, "--output", tmp_path / "plain", *costs)
    results = json.loads((adapter / "results.json").read_text())
    assert "the same label for 100.00 %" in shown and f"{results['accuracy']['all']:.2f} %" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output", "o.csv"), "Give --data"),
        (("--output", "o.txt", "--data", "photos"), "ends in .csv"),
        (("--output", "o.csv", "--data", "photos", "--top-k", 0), "top_k"),
        (("--output", "o.csv", "--data", "photos", "--embeddings"), ".jsonl or .parquet"),
        (("--output", "photos/o.parquet", "--data", "photos"), "outside of the images' folder"),
        (("--output", "notes.csv", "--data", "photos"), "holds something else"),
    ],
)
def test_what_is_refused(arguments, message, adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos", {"a": 1})
    (tmp_path / "notes.csv").write_text("mine\n")
    shown = vprompt("predict", "--adapter", adapter, *arguments, code=2)
    assert message in shown and len(shown.strip().splitlines()) == 1
    assert (tmp_path / "notes.csv").read_text() == "mine\n" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.nightly
def test_killed_and_started_again(adapter, clip_path, colours, tmp_path):
    """A process that is killed, and the same command again."""
    arguments = ["-m", "peft_vprompt", "predict", "--adapter", adapter, "--data", colours, "--batch-size", "1"]
    for wait in (6, 8, 10):
        process = subprocess.Popen([sys.executable, *map(str, arguments), "--output", str(tmp_path / "killed.csv")])
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    vprompt(*arguments[2:], "--output", tmp_path / "killed.csv")
    vprompt(*arguments[2:], "--output", tmp_path / "whole.csv")
    assert (tmp_path / "killed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
