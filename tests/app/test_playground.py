"""What the page can do, without Gradio: several adapters beside zero-shot, and an answer to whatever a visitor gives."""

import base64
import csv
import io
import json
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from peft_vprompt.app import Playground
from peft_vprompt.app.cards import cards
from peft_vprompt.app.page import answer
from peft_vprompt.app.playground import MAX_NAMES, read_names
from peft_vprompt.export import Classifier
from peft_vprompt.version import __version__
from tests.support.command_line import vprompt
from tests.support.models import CLASS_NAMES, NEW_NAMES
from tests.support.peft_behaviours import save_row


ROOT = Path(__file__).parents[2]
SPACE = ROOT / "examples" / "space"


@pytest.fixture(scope="module")
def places(tmp_path_factory, clip_path, vit_path, tokenizer_path):
    folder = tmp_path_factory.mktemp("runs")
    rows = {"coop": clip_path, "classifier-r": clip_path, "linear": vit_path}
    return {row: save_row(folder / row, row, base, tokenizer_path) for row, base in rows.items()}


@pytest.fixture(scope="module")
def playground(places):
    return Playground([str(place) for place in places.values()], device="cpu")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "photo <1>.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)).save(path)
    return str(path)


def test_models_side_by_side(playground, places, picture):
    assert playground.names == ["zero-shot", "coop", "classifier-r", "linear"]
    assert playground.class_names == CLASS_NAMES
    answers = playground.compare(picture, CLASS_NAMES, playground.names, top_k=2, attention=True)
    assert [each.name for each in answers] == playground.names and answers[0].is_zero_shot
    assert answers[1].about.startswith("CoOp on ")
    for each in answers[1:3]:
        alone = Classifier.from_pretrained(places[each.name], device="cpu")(picture, top_k=2)
        assert [p.label for p in each.predictions] == [p.label for p in alone]
        assert [p.probability for p in each.predictions] == pytest.approx([p.probability for p in alone], abs=1e-5)
    zero_shot, coop, _, head = answers
    plain = Classifier.from_pretrained(places["coop"], device="cpu")
    with plain.model.disable_adapter():
        plain.set_class_names([*CLASS_NAMES[1:], CLASS_NAMES[0]])
        expected = plain(picture, top_k=2)
    assert [p.label for p in zero_shot.predictions] == [p.label for p in expected]
    assert [p.probability for p in zero_shot.predictions] == pytest.approx([p.probability for p in expected], abs=1e-5)
    assert "LABEL_0" in head.problem  # nothing says its classes, so it has none of the names that are asked for
    assert zero_shot.attention.maps.shape == coop.attention.maps.shape == (1, 4, 4)
    np.testing.assert_allclose(zero_shot.attention.maps, coop.attention.maps, atol=1e-5)  # nothing is put into images
    assert [each.name for each in playground.compare(picture, CLASS_NAMES, ["linear", "no such"])] == ["linear"]


def test_other_classes_and_some_of_them(playground, picture):
    answers = playground.compare(picture, NEW_NAMES, playground.names)
    assert [each.problem is None for each in answers] == [True, True, False, False]
    assert {p.label for p in answers[1].predictions} == set(NEW_NAMES)
    assert all(NEW_NAMES[0] in each.problem for each in answers[2:]) and CLASS_NAMES[0] in answers[2].problem
    whole = playground.compare(picture, CLASS_NAMES, ["classifier-r"], top_k=99)[0].predictions
    some = playground.compare(picture, CLASS_NAMES[2:0:-1], ["classifier-r"])[0].predictions
    among = {p.label: p.probability for p in whole if p.label in CLASS_NAMES[1:3]}
    for label, probability in some:
        assert probability == pytest.approx(among[label] / sum(among.values()), abs=1e-5)


def test_the_table(playground, picture):
    answers = playground.compare(picture, NEW_NAMES, playground.names, top_k=2)
    rows = list(csv.DictReader(io.StringIO(playground.table(picture, answers))))
    assert [row["model"] for row in rows] == ["zero-shot", "coop"]  # the others know no such classes
    assert list(rows[0]) == ["file", "model", "label", "probability", "label_2", "probability_2"]
    assert {row["file"] for row in rows} == {"photo <1>.png"}
    assert float(rows[1]["probability"]) == pytest.approx(answers[1].predictions[0].probability, abs=1e-6)


def test_what_visitors_write():
    assert read_names(" fox \n\n grey   wolf\nfox\n") == (["fox", "grey wolf"], ["Counted once: fox."])
    assert read_names("fox, wolf") == (["fox", "wolf"], [])
    assert "add another" in read_names("fox")[1][0]
    for nothing in ("", " \n ,"):
        with pytest.raises(ValueError, match="at least two"):
            read_names(nothing)
    with pytest.raises(ValueError, match="vprompt predict"):
        read_names("\n".join(map(str, range(MAX_NAMES + 1))))


def test_every_answer_is_something_to_read(playground, picture, tmp_path):
    names = "<b>fox</b>\nwolf & dog"
    shown = answer(playground, picture, names, ["zero-shot", "coop"], 2, True)
    assert "&lt;b&gt;fox&lt;/b&gt;" in shown and "<b>fox" not in shown and shown.count("vp-heat") == 2
    table = base64.b64decode(re.search(r'href="data:text/csv;charset=utf-8;base64,([^"]+)"', shown)[1]).decode()
    assert "<b>fox</b>" in table and "photo <1>.png" in table
    assert "http" not in re.sub(r"data:[^\"]+", "", shown)
    assert "Drop an image" in answer(playground, None, names, ["coop"], 2, True)
    assert "Choose at least one" in answer(playground, picture, names, [], 2, True)
    assert "at least two class names" in answer(playground, picture, " ", ["coop"], 2, True)
    (tmp_path / "broken.png").write_bytes(b"no image")
    shown = answer(playground, str(tmp_path / "broken.png"), names, ["coop"], 2, True)
    assert "Cannot read the image" in shown and "broken.png" in shown and str(tmp_path) not in shown
    too_long = answer(playground, picture, "word " * 200 + "\nfox", ["coop"], 2, False)
    assert "vp-problem" in too_long and "vp-bars" not in too_long
    many = answer(
        playground, picture, "\n".join(f"{name} {i}" for i in range(250) for name in CLASS_NAMES), ["coop"], 3, 0
    )
    assert many.count("<li>") == 3


def test_bars_say_what_is_so(playground, picture):
    answers = playground.compare(picture, CLASS_NAMES, ["zero-shot", "coop"], top_k=1)
    as_zero_shot = [answers[0], answers[1].__class__(**vars(answers[1]) | {"predictions": answers[0].predictions})]
    assert "as zero-shot" in cards(as_zero_shot, [], "") and "differs" not in cards(as_zero_shot, [], "")
    sure = [(label, chance) for label, chance in (("a", 1.0), ("b", 0.9999), ("c", 0.0004), ("d", 0.0))]
    shown = cards([answers[0].__class__("x", "y", predictions=tuple(sure))], ["a remark"], "")
    assert re.findall(r'vp-value">([^<]+)<', shown) == ["100.0 %", "&gt; 99.9 %", "&lt; 0.1 %", "0.0 %"]
    assert "a remark" in shown


def test_what_cannot_be_compared(places, clip_path, tmp_path):
    with pytest.raises(ValueError, match="each adapter once"):
        Playground([str(places["coop"])] * 2)
    with pytest.raises(OSError, match="no such folder|adapter_config"):
        Playground([str(tmp_path / "none")])
    plain = Playground(model=clip_path, device="cpu")
    assert plain.names == ["zero-shot"] and len(plain.class_names) > 1 and plain.examples() == []


def test_adapters_of_one_name_are_told_apart(places, tmp_path):
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "coop").symlink_to(places["coop"])
    assert Playground([str(tmp_path / run / "coop") for run in ("a", "b")]).names[1:] == ["a/coop", "b/coop"]


def test_base_models_of_one_name_are_told_apart(places, clip_path, tmp_path):
    for run in ("a", "b"):
        shutil.copytree(clip_path, tmp_path / run / "clip")
        shutil.copytree(places["coop"], tmp_path / f"{run}-adapter")
        path = tmp_path / f"{run}-adapter" / "adapter_config.json"
        config = json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / run / "clip")}
        path.write_text(json.dumps(config))
    names = Playground([str(tmp_path / f"{run}-adapter") for run in ("a", "b")]).names
    assert names == ["zero-shot (a/clip)", "zero-shot (b/clip)", "a-adapter", "b-adapter"]


def test_results_that_say_little_do_no_harm(places, tmp_path):
    shutil.copytree(places["coop"], tmp_path / "coop")
    (tmp_path / "coop" / "results.json").write_text(
        json.dumps({"settings": {"model": None}, "classes": {"all": ["a", "b"]}, "data": None})
    )
    assert Playground([str(tmp_path / "coop")]).contestants["coop"].about.startswith("CoOp on")


def test_a_model_that_gives_no_numbers_is_told(playground, picture, monkeypatch):
    contestant = playground.contestants["coop"]
    playground.compare(picture, CLASS_NAMES, ["coop"])
    nan = torch.full((1, len(CLASS_NAMES)), float("nan"))
    monkeypatch.setattr(contestant._classifier, "logits_of", lambda inputs: nan)
    (found,) = playground.compare(picture, CLASS_NAMES, ["coop"])
    assert "not finite" in found.problem and not found.predictions


def test_every_model_of_the_page_is_held_in_the_precision_asked_for(places, picture):
    held = Playground([str(places["coop"])], device="cpu", precision="bf16")
    for found in held.compare(picture, CLASS_NAMES, held.names):
        assert found.problem is None and len(found.predictions) > 0
        tower = held.contestants[found.name]._classifier.model.get_base_model().vision_model
        assert {each.dtype for name, each in tower.named_parameters() if "learner" not in name} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--port", "0"), "--port"),
        (("--adapter", "no/such"), "no/such"),
        (("--device", "cuda:99"), "cuda:99"),
        (("--device", "cpu", "--precision", "fp16"), "fp16"),
    ],
)
def test_what_the_command_refuses(arguments, message, monkeypatch):
    monkeypatch.setattr("peft_vprompt.app.page.load_gradio", lambda: None)
    shown = vprompt("app", *arguments, code=2)
    assert message in shown and len(shown.strip().splitlines()) == 1


def test_without_gradio_the_command_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    (gradio,) = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]["app"]
    assert f"pip install '{gradio}'" in vprompt("app", code=2)
    assert f"pip install '{gradio}'" in vprompt("app", "--help")
    assert f"pip install '{gradio}'" in (ROOT / "docs/app.md").read_text(encoding="utf-8")


def test_the_space_says_what_it_is():
    head = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    values = dict(line.split(": ", 1) for line in head.strip().splitlines())
    assert values["sdk"] == "gradio" and (SPACE / values["app_file"]).is_file()
    wheel = f"peft_vprompt-{__version__}-py3-none-any.whl"
    assert (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()[-1].endswith(wheel)
    assert len(values["short_description"]) <= 60 and json.loads(values["python_version"]).startswith("3.")
