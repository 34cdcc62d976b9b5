"""Exported models: equal to the adapter, and run without this package."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor, UnidentifiedImageError
from transformers import AutoConfig

from peft_vprompt.data.images import UNREADABLE, read_rgb, to_rgb
from peft_vprompt.errors import UnsupportedModelError
from peft_vprompt.export import Classifier, export, standalone
from peft_vprompt.export.quantisation import quantise
from tests.support.models import CLASS_NAMES, images, often
from tests.support.peft_behaviours import ROWS, save_row


EXPORTED = [row for row in ROWS if row != "vpt-on-encoder"]
#: Rows whose image side is that of the frozen model or has other weights alone.
PLAIN = {
    *(
        "coop",
        "class-name",
        "full-prompt",
        "kgcoop",
        "prograd",
        "tcp",
        "classifier-r",
        "classifier-c",
        "clap",
        "zs-lp",
    ),
    *("tenc-ft", "ln-tuning", "2sfs", "clip-lora", "lora-on-class-names"),
    *("full", "linear", "partial-1", "bias", "lora"),
}
PLAIN_OFTEN = ("coop", "2sfs", "clip-lora", "linear", "lora")
REFUSED_OFTEN = ("vpt", "cocoop", "tip-adapter-f", "vpt-deep", "adapter", "mlp-3")
GRAPHS_OFTEN = ("coop",)
ONNX_OFTEN = ("rpo",)

needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript and onnxruntime are not installed",
)

#: What makes imports fail in a process, as on a machine that does not have them.
WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Missing())
"""


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, clip_path, vit_path, tokenizer_path):
    """The classifier of a row, made once; whoever changes it asks for one with options of its own."""
    made = {}

    def load(row, **options):
        key = (row, *options.items())
        if key in made:
            return made[key]
        base = clip_path if ROWS[row] == "CLIPModel" else vit_path
        folder = save_row(tmp_path_factory.mktemp(row), row, base, tokenizer_path, **options)
        # PEFT's own LoRA says nothing of the classes of a head.
        names = [f"class {index}" for index in range(5)] if row == "lora" else None
        made[key] = Classifier.from_pretrained(folder, class_names=names, device="cpu")
        return made[key]

    return load


def picture(seed=0, size=(40, 50)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def same(classifier, folder):
    """Any number of images, by what `predict.py` runs."""
    predictor = standalone.Predictor(folder)
    for count in (1, 4):
        pixels = images(count, seed=count)
        expected = classifier.logits_of({"pixel_values": pixels})
        np.testing.assert_allclose(predictor.logits(pixels.numpy()), expected, rtol=0, atol=1e-4)
    about = json.loads((folder / "labels.json").read_text())
    assert about["labels"] == classifier.class_names


@pytest.mark.parametrize("row", often(sorted(PLAIN), PLAIN_OFTEN))
def test_a_plain_model_says_the_same(row, classifier, tmp_path):
    made = classifier(row)
    before = made.probabilities(images())
    exported = export(made, tmp_path, "plain")
    same(made, tmp_path)
    assert torch.equal(made.probabilities(images()), before)  # the adapter stays as it was
    config = AutoConfig.from_pretrained(tmp_path)
    assert "peft" not in json.dumps(config.to_dict())
    assert (exported.kind == "classifier") == ("For" in config.architectures[0])
    assert not list(tmp_path.glob("adapter*"))
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize("row", often(sorted(set(EXPORTED) - PLAIN), REFUSED_OFTEN))
def test_what_has_no_plain_model_is_refused(row, classifier, tmp_path):
    with pytest.raises(UnsupportedModelError, match="Cannot make a plain model .*--format onnx"):
        export(classifier(row), tmp_path / "out", "plain")
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("row", often(EXPORTED, GRAPHS_OFTEN))
def test_a_graph_of_torch_says_the_same(row, classifier, tmp_path):
    made = classifier(row)
    export(made, tmp_path, "torch-export")
    same(made, tmp_path)
    held = torch.export.load(tmp_path / "model.pt2").state_dict
    conditional = row == "cocoop"
    assert any("text_model.base_layer" in name for name in held) == conditional or ROWS[row] != "CLIPModel"


@needs_onnx
@pytest.mark.parametrize("row", often(EXPORTED, ONNX_OFTEN))
def test_onnx_says_the_same(row, classifier, tmp_path):
    made = classifier(row)
    export(made, tmp_path, "onnx")
    same(made, tmp_path)
    if row != "rpo":
        return
    picture().save(tmp_path / "photo.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    shown = run(
        tmp_path, "photo.png", "broken.png", "--top-k", "2", without=("peft_vprompt", "peft", "torch", "transformers")
    )
    (found,) = [json.loads(line) for line in shown.stdout.splitlines()]
    expected = made(tmp_path / "photo.png", top_k=2)
    assert [p["label"] for p in found["predictions"]] == [p.label for p in expected]
    np.testing.assert_allclose(
        [p["probability"] for p in found["predictions"]], [p.probability for p in expected], atol=1e-5
    )
    assert "Skipped broken.png" in shown.stderr
    whole = (tmp_path / "model.onnx").stat().st_size
    quantise(tmp_path, len(CLASS_NAMES))
    pixels = images(64, seed=3)
    rounded = standalone.Predictor(tmp_path).logits(pixels.numpy())
    assert (tmp_path / "model.onnx").stat().st_size < whole
    assert 0 < np.abs(rounded - made.logits_of({"pixel_values": pixels}).numpy()).max() < 1


def run(folder, *arguments, without):
    """Run `predict.py` where some packages cannot be imported."""
    code = WITHOUT.format(names=set(without)) + "sys.argv[0] = 'predict.py'\nimport runpy\n"
    code += "runpy.run_path('predict.py', run_name='__main__')"
    shown = subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    return shown


@pytest.mark.nightly
@pytest.mark.parametrize("row", ["coop", "linear"])
def test_predict_py_of_a_plain_model_runs_without_this_package(row, classifier, tmp_path):
    made = classifier(row)
    export(made, tmp_path, "plain")
    picture().save(tmp_path / "photo.png")
    shown = run(tmp_path, "photo.png", "--top-k", "5", without=("peft_vprompt",))  # transformers looks for peft
    found = json.loads(shown.stdout)["predictions"]
    expected = made(tmp_path / "photo.png")
    assert [p["label"] for p in found] == [p.label for p in expected]
    np.testing.assert_allclose([p["probability"] for p in found], [p.probability for p in expected], atol=1e-5)


def test_half_the_weights(classifier, tmp_path):
    made = classifier("coop")
    whole, half = (export(made, tmp_path / str(bf16), "plain", bf16=bf16) for bf16 in (False, True))
    assert half.bytes < 0.7 * whole.bytes
    found = half.predictor().logits(images().numpy())
    assert 0 < np.abs(found - made.logits_of({"pixel_values": images()}).numpy()).max() < 0.5


def test_several_labels(classifier, tmp_path):
    made = classifier("coop", problem_type="multi_label_classification")
    exported = export(made, tmp_path / "out", "plain")
    picture().save(tmp_path / "a.png")
    found = exported.predictor().probabilities([tmp_path / "a.png"])
    np.testing.assert_allclose(found, made.probabilities(tmp_path / "a.png"), atol=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "I;16", "I", "F", "CMYK", "1"])
def test_images_are_read_as_here(mode, tmp_path):
    values = np.random.default_rng(0).integers(0, 60000, (20, 30))
    if mode in ("I;16", "I", "F"):
        image = Image.fromarray(values.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    else:
        image = Image.fromarray((values % 256).astype(np.uint8)).convert(mode)
        if mode in ("RGBA", "LA"):
            image.putalpha(Image.fromarray((values // 256).astype(np.uint8)))
    path = tmp_path / ("a.tif" if mode in ("I", "F", "CMYK") else "a.png")
    image.save(path)
    with Image.open(path) as opened:
        expected = np.asarray(to_rgb(opened))
    np.testing.assert_array_equal(np.asarray(standalone.read_image(path)), expected)


@pytest.mark.parametrize("mode", ["I;16", "RGBA"])
def test_transparent_parts_show_the_background_of_the_training(mode, tmp_path):
    if mode == "RGBA":
        image = Image.new("RGBA", (6, 6), (255, 0, 0, 0))
        image.save(tmp_path / "a.png")
    else:
        values = np.zeros((6, 6), np.uint16)
        values[:3] = 40000
        Image.fromarray(values).save(tmp_path / "a.png", transparency=0)
    for background in ("white", "black", "#102030"):
        expected = np.asarray(read_rgb(tmp_path / "a.png", background))
        np.testing.assert_array_equal(np.asarray(standalone.read_image(tmp_path / "a.png", background)), expected)
        assert tuple(expected[-1, -1]) == ImageColor.getrgb(background)


def test_the_background_of_the_training_is_kept(classifier, tmp_path):
    made = classifier("coop")
    dark = Classifier(made.bundle, made.class_names, background="black")
    clear = Image.new("RGBA", (40, 40), (255, 255, 255, 0))
    clear.save(tmp_path / "a.png")
    black = Image.new("RGB", (40, 40), "black")
    assert torch.equal(dark.probabilities(clear), made.probabilities(black))
    assert torch.equal(dark.probabilities(tmp_path / "a.png"), made.probabilities(black))
    exported = export(dark, tmp_path / "out", "plain")
    np.testing.assert_allclose(
        exported.predictor().probabilities([tmp_path / "a.png"]), made.probabilities(black), atol=1e-6
    )


def test_any_damaged_image_is_skipped_by_the_program(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "bad.png", exif=b"II*\0")
    with pytest.raises(standalone.UNREADABLE):
        standalone.read_image(tmp_path / "bad.png")
    assert set(UNREADABLE) <= {*standalone.UNREADABLE, UnidentifiedImageError}


@needs_onnx
def test_as_many_classes_as_a_layer_is_wide(clip_path, tmp_path):
    sizes = []
    for count in (23, 24):  # the tiny image encoder is 24 wide
        made = Classifier.zero_shot(clip_path, [f"class {number}" for number in range(count)], device="cpu")
        whole, rounded = (export(made, tmp_path / f"{count}-{int8}", "onnx", int8=int8) for int8 in (False, True))
        sizes.append(rounded.bytes / whole.bytes)
    assert sizes[1] == pytest.approx(sizes[0], abs=0.03)


def test_folders_that_hold_something_else(classifier, tmp_path):
    made = classifier("coop")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds notes.txt"):
        export(made, tmp_path, "plain")
    export(made, tmp_path / "out", "plain")
    export(made, tmp_path / "out", "plain")
    with pytest.raises(ValueError, match="holds a image-encoder model|holds an? "):
        export(made, tmp_path / "out", "torch-export")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "format"),
        ({"format": "plain", "int8": True}, "--format onnx"),
        ({"format": "onnx", "bf16": True}, "--format plain"),
    ],
)
def test_what_does_not_go_together(options, message, classifier, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(classifier("coop"), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_without_onnx(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr("peft_vprompt.export.graphs.find_spec", lambda name: None)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = " ".join(f"'{package}'" for package in project["optional-dependencies"]["onnx"])
    with pytest.raises(ImportError, match=re.escape(f"pip install {wanted}")):
        export(classifier("coop"), tmp_path / "out", "onnx")


def test_a_processor_that_does_more_is_refused(classifier, tmp_path):
    made = classifier("coop", num_virtual_tokens=2)
    made.image_processor.do_pad = True
    made.image_processor.pad_size = {"height": 64, "width": 64}
    with pytest.raises(UnsupportedModelError, match="peft_vprompt.export.Classifier"):
        export(made, tmp_path / "out", "plain")


def test_a_model_that_says_something_else_is_not_kept(classifier, tmp_path, monkeypatch):
    made = classifier("coop")
    matrix = {
        "class_features": torch.zeros(len(CLASS_NAMES), 16),
        "logit_scale": torch.ones(()),
        "logit_bias": torch.zeros(()),
    }
    monkeypatch.setattr("peft_vprompt.export.plain.class_matrix", lambda known: matrix)
    with pytest.raises(ValueError, match="logits differ"):
        export(made, tmp_path / "out", "plain")
    assert not list((tmp_path / "out").glob("*"))
