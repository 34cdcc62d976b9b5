"""Predictions in files: every kind of file, broken images, and runs that were stopped."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from peft_vprompt.data import DataOptions
from peft_vprompt.data.any_images import load_any
from peft_vprompt.export import Classifier, PredictOptions, predict, predictions, tables
from tests.support.kills import killed_at
from tests.support.models import NEW_NAMES
from tests.support.peft_behaviours import save_row


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, clip_path, tokenizer_path):
    return Classifier.from_pretrained(
        save_row(tmp_path_factory.mktemp("adapter"), "coop", clip_path, tokenizer_path), device="cpu"
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Ten images in nested folders, two of them broken."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(10):
        pixels = np.random.default_rng(index).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        place = folder / ("a" if index % 2 else "a/b c")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{index}.png")
    (folder / "a" / "3.png").write_bytes((folder / "a" / "5.png").read_bytes()[:900])
    (folder / "a" / "b c" / "4.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(predictions, "PART", 4)


OPTIONS = PredictOptions(top_k=2, batch_size=2)


def read(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@pytest.mark.usefixtures("small_parts")
def test_every_kind_of_file(ending, classifier, photos, tmp_path):
    output = tmp_path / f"out{ending}"
    options = PredictOptions(top_k=2, batch_size=3, embeddings=ending != ".csv")
    with pytest.warns(UserWarning, match=r"2 of 10 images cannot be read and were skipped: .*4.png \(not an image\)"):
        summary = predict(classifier, load_any(DataOptions(photos)), output, options)
    rows = read(output)
    paths = [photos / row["file"] for row in rows]
    assert len(rows) == summary.images == 8 and summary.skipped == 2 and all(path.is_file() for path in paths)
    expected = classifier(paths, top_k=2)
    assert [(row["label"], row["label_2"]) for row in rows] == [tuple(p.label for p in found) for found in expected]
    for name, rank in (("probability", 0), ("probability_2", 1)):
        given = [float(row[name]) for row in rows]
        np.testing.assert_allclose(given, [found[rank].probability for found in expected], atol=2e-6)
    if options.embeddings:
        np.testing.assert_allclose([row["embedding"] for row in rows], classifier.embed(paths).numpy(), atol=2e-6)
    listed = summary.problems.read_text().splitlines()
    assert listed[0] == "file,problem" and set(listed[1:]) == {"a/b c/4.png,not an image", "a/3.png,cut off"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [output.name, "out.skipped.csv"]
    good = load_any(DataOptions(str(photos / "a" / "b c" / "[028].png")))
    predict(classifier, good, output, options)
    assert [row["file"] for row in read(output)] == ["0.png", "2.png", "8.png"] and not summary.problems.exists()


@pytest.mark.filterwarnings("ignore:2 of 10")
@pytest.mark.usefixtures("small_parts")
def test_a_run_that_was_stopped_goes_on(classifier, photos, tmp_path, monkeypatch):
    images = load_any(DataOptions(photos))
    predict(classifier, images, tmp_path / "whole.csv", OPTIONS)
    output = tmp_path / "stopped.csv"
    seen, logits_of = [], Classifier.logits_of

    def counted(self, inputs, stop_after=4):
        if len(seen) == stop_after:
            raise KeyboardInterrupt
        seen.append(len(inputs["pixel_values"]))
        return logits_of(self, inputs)

    monkeypatch.setattr(Classifier, "logits_of", counted)
    with pytest.raises(KeyboardInterrupt):
        predict(classifier, images, output, OPTIONS)
    assert not output.exists() and len(list((tmp_path / ".stopped.csv.parts").glob("*.parquet"))) == 2
    monkeypatch.setattr(Classifier, "logits_of", lambda self, inputs: counted(self, inputs, 99))
    seen.clear()
    predict(classifier, images, output, OPTIONS)
    assert len(seen) == 1  # the last part alone
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.filterwarnings("ignore:2 of 10")
@pytest.mark.usefixtures("small_parts")
def test_parts_of_something_else_are_not_taken(classifier, photos, tmp_path, monkeypatch):
    images = load_any(DataOptions(photos))
    monkeypatch.setattr(predictions, "put_together", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        predict(classifier, images, tmp_path / "out.csv", OPTIONS)
    monkeypatch.undo()
    monkeypatch.setattr(predictions, "PART", 4)
    other = Classifier(classifier.bundle, NEW_NAMES)
    try:
        with pytest.warns(UserWarning, match="were made with other classes: starting afresh"):
            predict(other, images, tmp_path / "out.csv", OPTIONS)
        assert {row["label"] for row in read(tmp_path / "out.csv")} <= set(NEW_NAMES)
    finally:
        classifier.set_class_names(classifier.class_names)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:2 of 10")
@pytest.mark.usefixtures("small_parts")
def test_a_kill_at_any_moment(classifier, photos, tmp_path):
    images = load_any(DataOptions(photos))
    predict(classifier, images, tmp_path / "whole.csv", OPTIONS)
    whole = (tmp_path / "whole.csv").read_bytes()
    output = tmp_path / "killed.csv"
    for call in range(0, 400, 7):
        killed = killed_at(call, lambda: predict(classifier, images, output, OPTIONS))
        assert not output.exists() or output.read_bytes() == whole
        if not killed:
            break
    predict(classifier, images, output, OPTIONS)
    assert output.read_bytes() == whole


def test_identity_is_the_content(classifier, photos, tmp_path):
    images = load_any(DataOptions(photos))
    same = predictions.identity_of(classifier, load_any(DataOptions(photos)), OPTIONS)
    assert predictions.identity_of(classifier, images, OPTIONS) == same
    for other in (
        predictions.identity_of(classifier, images, PredictOptions(top_k=3, batch_size=2)),
        predictions.identity_of(classifier, load_any(DataOptions(photos, background="black")), OPTIONS),
        predictions.identity_of(classifier, load_any(DataOptions(photos / "a" / "b c")), OPTIONS),
    ):
        assert other != same
    parameter = next(p for name, p in classifier.model.named_parameters() if "learner" in name or "prompt" in name)
    before = parameter.data.clone()
    parameter.data += 1
    assert (
        predictions.identity_of(classifier, images, OPTIONS)["base model or weights"] != same["base model or weights"]
    )
    parameter.data = before


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("out.txt", {}, "ends in .csv, .jsonl, .parquet"),
        ("out.csv", {"embeddings": True}, ".jsonl or .parquet"),
    ],
)
def test_files_of_other_kinds(name, options, message, classifier, photos, tmp_path):
    with pytest.raises(ValueError, match=message):
        predict(classifier, load_any(DataOptions(photos)), tmp_path / name, PredictOptions(**options))
    assert not list(tmp_path.iterdir())


def test_an_image_that_cannot_be_preprocessed(classifier, tmp_path, monkeypatch):
    for index in range(2):
        Image.new("RGB", (9 + index, 9)).save(tmp_path / f"{index}.png")
    preprocess = Classifier.preprocess

    def refuses_one(self, images):
        if images[0].width == 9:
            raise ValueError("too narrow")
        return preprocess(self, images)

    monkeypatch.setattr(Classifier, "preprocess", refuses_one)
    with pytest.warns(UserWarning, match=r"0.png \(not to be preprocessed: too narrow\)"):
        predict(classifier, load_any(DataOptions(tmp_path)), tmp_path / "out.csv")
    assert [row["file"] for row in read(tmp_path / "out.csv")] == ["1.png"]


def test_no_image_can_be_read(classifier, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"None of 1 images can be read: a.png is not an image"):
        predict(classifier, load_any(DataOptions(tmp_path)), tmp_path / "out.csv")
    assert not Path(tmp_path / "out.csv").exists()


@pytest.mark.parametrize("name", ["a\rb.png", 'a"b,c\n.png', "caf\u00e9 \u732b.png", "\udcff.png"])
def test_any_name_of_a_file_comes_back_from_a_table(name, tmp_path):
    rows = tables.columns_of([name, "plain.png"], [], [], None, ["broken"] * 2, ["a", "b"], PredictOptions())
    tables.write_table(tmp_path / "out.csv", [rows])
    written = read(tmp_path / "out.csv")
    assert [row["file"] for row in written] == [name.replace("\udcff", "\ufffd"), "plain.png"]
