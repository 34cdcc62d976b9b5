"""Which report in a folder spares a run."""

from dataclasses import asdict, replace

import pytest

from peft_vprompt.experiments.run import RESULTS, finished_run
from peft_vprompt.experiments.settings import Settings, changed_settings
from peft_vprompt.experiments.supervision import Supervision
from peft_vprompt.utils.io import write_json


SETTINGS = Settings("coop", shots=4, loss="gce", loss_options={"q": 0.5}, supervision=Supervision("pair", 0.25))
DATA = {"path": "images", "where": ("a=b",)}  # a tuple, which JSON reads back as a list


@pytest.fixture
def folder(tmp_path):
    def write(**changes):
        report = {"settings": asdict(SETTINGS), "data": DATA, "cached": False, "accuracy": {"all": 50.0}}
        write_json(report | changes, tmp_path / RESULTS)
        return tmp_path

    return write


def test_a_run_with_these_settings_on_these_data_is_found(folder):
    assert finished_run(folder(), SETTINGS, DATA)["accuracy"] == {"all": 50.0}


def test_an_empty_folder_has_none(tmp_path):
    assert finished_run(tmp_path, SETTINGS, DATA) is None


@pytest.mark.parametrize(
    "other",
    [{"shots": 8}, {"seed": 2}, {"loss_options": {}}, {"supervision": Supervision("pair", 0.5)}, {"config": {"a": 1}}],
)
def test_other_settings_are_another_run(other, folder):
    assert finished_run(folder(), replace(SETTINGS, **other), DATA) is None


@pytest.mark.parametrize(
    "other", [{"data_description": None}, {"data_description": {"path": "images"}}, {"cached": True}]
)
def test_other_data_are_another_run(other, folder):
    assert finished_run(folder(), SETTINGS, **({"data_description": DATA} | other)) is None


def test_gradients_must_be_there_where_they_are_asked_for(folder):
    assert finished_run(folder(), SETTINGS, DATA, gradients=True) is None
    measured = folder(gradients=[{"epoch": 0.0}])
    assert finished_run(measured, SETTINGS, DATA, gradients=True) is not None
    assert finished_run(measured, SETTINGS, DATA) is not None


def test_a_setting_that_came_later_changes_no_earlier_run(folder):
    earlier = {name: value for name, value in asdict(SETTINGS).items() if name not in ("ensemble", "views")}
    assert finished_run(folder(settings=earlier), SETTINGS, DATA) is not None
    assert finished_run(folder(settings=earlier), replace(SETTINGS, views=2), DATA) is None


def test_changed_settings_are_those_that_are_no_defaults():
    assert changed_settings(asdict(Settings("coop", seed=3, config={"lengths": (1, 2)}))) == {
        "method": "coop",
        "seed": 3,
        "config": {"lengths": [1, 2]},
    }
