"""Tables of results: guessing and zero-shot above, what is worse than zero-shot marked, the columns explained."""

from rich.console import Console

from peft_vprompt.experiments.noise_plots import explain_study, study_table
from peft_vprompt.experiments.reports import WORSE, explain, results_table
from peft_vprompt.experiments.sweep_report import sweep_table


RUN = {
    "title": "CoOp",
    "trainable_parameters": 8192,
    "adapter_bytes": 100,
    "seconds_per_step": 0.1,
    "train_seconds": 2.0,
    "classes": {"base": ["a", "b"], "novel": ["c", "d", "e", "f"]},
    "accuracy": {"base": 80.0, "novel": 20.0, "hm": 32.0},
    "zero_shot": {"base": 60.0, "novel": 40.0, "hm": 48.0},
}
ZERO_SHOT = RUN | {
    "title": "Zero-shot", "trainable_parameters": 0, "adapter_bytes": None, "seconds_per_step": None,
    "train_seconds": None, "accuracy": RUN["zero_shot"],
}  # fmt: skip


def lines(table) -> list[list[str]]:
    """The cells of a table as it is shown."""
    console = Console(width=160)
    with console.capture() as captured:
        console.print(table)
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in captured.get().splitlines()
        if "─" not in line
    ]


def accuracies(rows: list[list[str]]) -> dict[str, list[str]]:
    return {row[0]: row[5:] for row in rows if len(row) > 5}


def test_guessing_and_zero_shot_come_first():
    for runs in ([RUN], [RUN, ZERO_SHOT], [ZERO_SHOT, RUN]):
        rows = lines(results_table(runs))
        assert list(accuracies(rows)) == ["Chance", "Zero-shot", "CoOp"]
        assert accuracies(rows)["Chance"] == ["50.00", "25.00", "33.33"]
        assert accuracies(rows)["Zero-shot"] == ["60.00", "40.00", "48.00"]
        assert accuracies(rows)["CoOp"] == ["80.00", f"20.00 {WORSE}", f"32.00 {WORSE}"]
        assert all(f"{column}: " in explain(runs) for column in ("base", "novel", "hm", WORSE))


def test_without_a_text_tower_there_is_chance_alone():
    run = RUN | {"classes": {"all": ["a", "b"]}, "accuracy": {"all": 10.0}, "zero_shot": None}
    rows = lines(results_table([run]))
    assert accuracies(rows) == {"Chance": ["50.00"], "CoOp": ["10.00"]}
    assert WORSE not in explain([run]) and "novel" not in explain([run])


def test_a_grid_search_is_compared_too():
    trial = {"base_rate": 1.0, "weight_decay": 0.0, "learning_rate": 0.1, "accuracy": 50.0}
    report = {"title": "CoOp", "trials": [trial], "best": trial, "runs": [1], "trainable_parameters": 3}
    report |= {"accuracy": {"mean": 50.0, "std": 0.0}, "zero_shot": {"all": 55.0}, "chance": {"all": 25.0}}
    shown = " ".join(" ".join(row) for row in lines(sweep_table(report)))
    assert f"Chance 25.00, zero-shot 55.00 ({WORSE} worse than zero-shot)" in " ".join(shown.split())


def test_a_study_of_noise_is_compared_too():
    row = {
        "method": "coop",
        "title": "CoOp",
        "loss": "ce",
        "noise": "pair",
        "unlabelled": None,
        "std": None,
        "seeds": 1,
    }
    summary = [row | {"rate": 0.25, "mean": 60.0}, row | {"rate": 0.5, "mean": 40.0}]
    study = {"summary": summary, "zero_shot": 50.0, "chance": 10.0}
    rows = lines(study_table(study))
    assert ["CoOp", "ce", "pair", "60.0", f"40.0 {WORSE}"] in rows
    assert "Chance 10.0 %, zero-shot 50.0 %" in explain_study(study)
