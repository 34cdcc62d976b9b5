"""What a run refuses is refused before a model is loaded."""

import pytest
from datasets import DatasetDict

from peft_vprompt.experiments.run import run_experiment
from peft_vprompt.experiments.settings import Settings
from peft_vprompt.experiments.supervision import Supervision


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": 2}, r"Several views are kept with `cache_features` or for a teacher only\. Received: views=2"),
        ({"ensemble": 0}, r"Expected ensemble to be an integer >= 1\. Received: ensemble=0"),
        ({"method": "maple", "ensemble": 2}, r"An ensemble is of contexts .* Received: MaPLe"),
        ({"loss_options": {"q": 0.5}}, r"Parameters of a loss need a loss\. Received: \{'q': 0\.5\}"),
        ({"loss": "gce", "loss_options": {"q": 2.0}}, r"Expected q from 0 to 1\. Received: q=2\.0"),
        ({"method": "classifier-r"}, r"Classifier-R learns its classes one by one"),
        (
            {"method": "tip-adapter", "base_novel": False, "epochs": 3},
            r"Tip-Adapter trains nothing\. Received: epochs",
        ),
        (
            {"method": "tip-adapter", "base_novel": False, "config": {"train_keys": True}},
            r"Received: tip-adapter with train_keys=True.*use tip-adapter-f",
        ),
        ({"supervision": Supervision(unlabelled="top-k")}, r"nobody knows which images are of the base classes"),
        ({"method": "none"}, r"No method 'none'"),
    ],
)
def test_settings_that_contradict_each_other(changes, message, tmp_path):
    settings = Settings(**{"method": "coop", "model": "no/such/model"} | changes)
    with pytest.raises(ValueError, match=message):
        run_experiment(settings, DatasetDict(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
