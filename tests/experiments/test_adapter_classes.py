"""Which classes an adapter is evaluated on: found by name, however the user writes them."""

from contextlib import nullcontext

import pytest

from peft_vprompt.data import DataOptions, load_split
from peft_vprompt.experiments.adapter_classes import classes_to_tell_apart, require_moves, warn_trained
from peft_vprompt.experiments.settings import Settings
from peft_vprompt.experiments.settings_checks import check_settings
from tests.support.labelled_images import write_folder


KNOWN = ["sea lion", "owl", "fox"]


@pytest.fixture
def rows(tmp_path):
    return load_split(DataOptions(write_folder(tmp_path, {"Fox": 1, "sea_lion": 2})), None)


@pytest.mark.parametrize("given", [None, ["FOX", "Sea_Lion"], ["fox", "owl", "sea lion"]])
def test_some_of_the_classes_are_compared_among_all(given, rows):
    found = classes_to_tell_apart(rows, given, KNOWN)
    assert found.features["label"].names == KNOWN and found["label"][:] == [2, 0, 0]


def test_names_without_an_image(rows):
    with pytest.warns(UserWarning, match="none of the adapter's 3 classes, and of which there is no image: bear."):
        assert classes_to_tell_apart(rows, ["bear", "fox", "sea lion"], KNOWN)["label"][:] == [2, 0, 0]


def test_other_classes_are_asked_for(rows):
    for given, new in ((["wolf", "bear"], False), (None, True)):
        assert classes_to_tell_apart(rows, given, KNOWN, new).features["label"].names == ["Fox", "sea lion"]
    require_moves(None, ["wolf"])
    require_moves(["fox", "owl"], ["owl", "fox"])
    with pytest.raises(
        ValueError, match="the 2 classes of its training apart .fox, owl.*Received: --new-classes for owl"
    ):
        require_moves(["fox", "owl"], ["owl"])


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"method": "coop", "teacher": None}, "Train with --base-novel to keep some back"),
        (
            {"method": "promptkd", "teacher": "runs/teacher"},
            "as new as to its teacher, if that was trained with --base-novel",
        ),
        ({"method": "clap"}, "CLAP learns for each class alone: a method such as coop"),
        ({"method": "linear"}, "a method such as coop"),
        ({"method": "vpt"}, "A classification head learns for each class alone: a method on class names"),
    ],
    ids=lambda value: value["method"] if isinstance(value, dict) else "",
)
def test_a_subset_of_classes_that_were_all_trained_on(settings, remedy):
    saved = {"classes": {"all": KNOWN}, "settings": settings}
    with pytest.warns(UserWarning, match=f"'novel' is the second half of them, and none .*{remedy}"):
        warn_trained("novel", KNOWN[2:], saved, has_head=settings["method"] == "vpt")
    with (
        nullcontext()
        if settings["method"] in ("coop", "vpt")
        else pytest.raises(ValueError, match="nothing for novel ones")
    ):
        check_settings(Settings(**settings, base_novel=True, shots=None))
