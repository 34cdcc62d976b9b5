"""A bench from start to end on tiny models: what cells are, and that kills and workers change nothing in the report."""

import json
import os
import random
from dataclasses import replace

import pytest
from datasets import DatasetDict

from examples.studies.reliability import in_child
from peft_vprompt.data import DataOptions, load_images
from peft_vprompt.errors import TrainingDivergedError
from peft_vprompt.experiments.bench import cell as cell_module
from peft_vprompt.experiments.bench.bench import run_bench
from peft_vprompt.experiments.bench.cell import CellRun, run_cell
from peft_vprompt.experiments.bench.grid import Grid
from peft_vprompt.experiments.bench.outcomes import unpack
from peft_vprompt.experiments.bench.protocols import PROTOCOLS
from peft_vprompt.experiments.bench.report import write_report
from peft_vprompt.experiments.bench.tasks import BenchTask, find_bench_tasks
from peft_vprompt.experiments.models import METHODS
from peft_vprompt.experiments.run import run_experiment
from peft_vprompt.experiments.settings import Settings
from tests.support.command_line import next_command, vprompt
from tests.support.labelled_images import write_folder


#: What differs from start to start.
TIMES = {"costs", "environments"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder of the image features of this module."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
        yield folder / "vprompt-features"


@pytest.fixture(scope="module")
def arguments(clip_path, colours):
    data = ("--model", clip_path, "--data", colours, "--label-column", "colour")
    return (
        *data,
        "--methods",
        "coop:num_virtual_tokens=2,classifier-r",
        "--shots",
        2,
        "--seeds",
        "1,2",
        "--max-steps",
        4,
    )


@pytest.fixture(scope="module")
def done(arguments, cache, tmp_path_factory):
    """The folder of a bench that ran, and what the command said."""
    folder = tmp_path_factory.mktemp("bench")
    return folder, vprompt("bench", "base-to-novel", "--output", folder, *arguments, "--cached")


def grid(clip_path, colours, methods=("coop:num_virtual_tokens=2", "classifier-r")) -> Grid:
    tasks, _ = find_bench_tasks(PROTOCOLS["base-to-novel"], DataOptions(colours, label_column="colour"))
    base = Settings("zero-shot", model=clip_path)
    return Grid(PROTOCOLS["base-to-novel"], tuple(tasks), methods, base, shots=(2,), seeds=(1, 2), max_steps=4)


def run_it(clip_path, colours, folder) -> None:
    run_bench(grid(clip_path, colours), folder, cached=True, quiet=True, checkpoints=False)


def without_times(summary):
    """A summary without times; also of cells' contents nothing is left out that a reader sees."""
    return [{key: value for key, value in part.items() if key not in TIMES} for part in summary["protocols"]]


class TestOneProcess:
    def test_every_cell_says_what_it_is_and_what_it_gets_right(self, done, colours):
        folder, _ = done
        cells = {path.parent.relative_to(folder / "cells").as_posix(): json.loads(path.read_text()) for path in folder.rglob("results.json")}  # fmt: skip
        assert len(cells) == 1 + 2 * 2 and "colours/zero-shot" in cells
        for name, report in cells.items():
            assert report["bench"]["protocol"] == "base-to-novel" and report["bench"]["method"].split(":")[0] in name
            assert report["environment"]["versions"]["torch"] and len(report["identity"]["base model"]) == 32
            assert report["evaluate_seconds"] > 0 and report["peak_memory"]["process_bytes"] > 2**20
            assert report["tests"].keys() == ({"base"} if "classifier-r" in name else {"base", "novel"})
            for test in report["tests"].values():
                right = unpack(test["correct"], test["images"])
                assert test["accuracy"] == pytest.approx(100 * right.mean()) and test["chance"] == 50
            if name != "colours/zero-shot":
                assert report["adapter_bytes"] > 0 and report["recipe"]["epochs"] == 4 and report["steps"] == 4

    def test_accuracies_are_those_of_a_run(self, done, clip_path, colours, tmp_path):
        folder, _ = done
        report = json.loads((folder / "cells/colours/classifier-r/2-shots/seed-1/results.json").read_text())
        settings = Settings(
            "coop", **{"model": clip_path, "shots": 2, "epochs": 4, "config": {"num_virtual_tokens": 2}}
        )
        data = load_images(DataOptions(colours, label_column="colour"))
        plain = run_experiment(settings, data, tmp_path, cached=True, quiet=True, compare=True)
        (place,) = (folder / "cells" / "colours").glob("coop*/2-shots/seed-1")
        found = json.loads((place / "results.json").read_text())
        assert found["accuracy"] == pytest.approx(plain["accuracy"])
        zero_shot = json.loads((folder / "cells/colours/zero-shot/results.json").read_text())
        assert zero_shot["accuracy"] == pytest.approx(plain["zero_shot"])
        assert report["classes"] == {"base": plain["classes"]["base"]}

    def test_a_cell_that_diverges_keeps_what_was_there(self, clip_path, colours, tmp_path, monkeypatch):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        cell = grid(clip_path, colours).cells()["colours/classifier-r/2-shots/seed-1"]
        first = run_cell(cell, tmp_path / "cell", cached=True, quiet=True)

        def diverge(*arguments, **options):
            raise TrainingDivergedError("Training diverged in epoch 1.", 1)

        monkeypatch.setattr("peft_vprompt.experiments.run.train", diverge)
        other = replace(cell, settings=replace(cell.settings, learning_rate=0.5))
        with pytest.warns(UserWarning) as told:
            found = run_cell(other, tmp_path / "cell", cached=True, quiet=True)
        assert found["diverged"] == 1 and any("are now in" in str(each.message) for each in told)
        assert not (tmp_path / "cell" / "adapter_model.safetensors").exists()
        (kept,) = tmp_path.glob("cell/previous/*/results.json")
        assert json.loads(kept.read_text())["tests"] == first["tests"]
        assert (kept.parent / "adapter_model.safetensors").is_file()

    def test_the_length_of_a_method_with_two_recipes(self, vit_path, clip_path, colours):
        found = []
        for model in (vit_path, clip_path):
            made = replace(grid(model, colours, ("vpt",)), max_steps=10**6, protocol=PROTOCOLS["few-shot"])
            (name,) = [name for name in made.cells() if name.startswith("colours/vpt/") and name.endswith("seed-1")]
            found.append(made.cells()[name].bounded().epochs)
        assert found == [METHODS["vpt"].classifier_recipe.epochs, METHODS["vpt"].recipe.epochs]

    def test_image_features_are_computed_once(self, done, cache):
        """Test images of both halves, and the shots of each seed: no more, whatever the methods."""
        assert len(list(cache.glob("*.arrow"))) == 2 + 2

    def test_the_report_is_written_and_shown(self, done):
        folder, shown = done
        assert {"report.md", "report.html", "summary.json", "cells", "plots"} <= set(os.listdir(folder))
        assert "HM of averages" in shown and "Mean of HMs" in shown and "Zero-shot" in shown
        assert next_command(shown) == ["report", str(folder)]

    def test_what_is_done_is_not_done_again(self, done, arguments, monkeypatch):
        folder, _ = done
        before = (folder / "report.md").read_text()
        monkeypatch.setattr(CellRun, "train", lambda self: pytest.fail("trained again"))
        vprompt("bench", "base-to-novel", "--output", folder, *arguments, "--cached")
        assert (folder / "report.md").read_text() == before

    def test_the_status_computes_nothing(self, done, arguments, monkeypatch):
        folder, _ = done
        monkeypatch.setattr(cell_module, "run_cell", lambda *args, **kw: pytest.fail("ran a cell"))
        shown = vprompt("bench", "base-to-novel", "--output", folder, "--status")
        assert "5 done" in shown and "colours/classifier-r/2-shots/seed-2" in shown

    def test_other_images_are_another_cell(self, clip_path, colours, done, tmp_path):
        """The same names, fewer images: the cell is run again, and its test sets are others."""
        folder, _ = done
        some = load_images(DataOptions(colours, label_column="colour"))
        task = BenchTask("colours", "Own images")
        task.__dict__["data"] = DatasetDict(
            train=some["train"], test=some["test"].select(range(0, len(some["test"]), 2))
        )
        cells = Grid(PROTOCOLS["base-to-novel"], (task,), ("classifier-r",), Settings("zero-shot", model=clip_path), shots=(2,), seeds=(1,), max_steps=4).cells()  # fmt: skip
        name = "colours/classifier-r/2-shots/seed-1"
        report = run_cell(cells[name], tmp_path, quiet=True)
        before = json.loads((folder / "cells" / name / "results.json").read_text())
        assert report["tests"]["base"]["content"] != before["tests"]["base"]["content"]
        assert report["identity"] != before["identity"]


class TestSeveralStarts:
    def test_killed_and_started_again_it_reports_the_same(self, done, clip_path, colours, tmp_path):
        folder, _ = done
        moments = random.Random(3)
        kills = [in_child(lambda: run_it(clip_path, colours, tmp_path), moments.uniform(0.1, 1.5)) for _ in range(3)]
        assert in_child(lambda: run_it(clip_path, colours, tmp_path)) == 0 and None in kills
        assert without_times(write_report(tmp_path)) == without_times(
            json.loads((folder / "summary.json").read_text())
        )

    def test_two_workers_report_what_one_does(self, done, clip_path, colours, tmp_path):
        folder, _ = done
        log = tmp_path / "trained"

        def worker():
            trained = CellRun.train

            def train(run):
                with log.open("a") as file:
                    file.write(f"{run.cell.method} {run.settings.seed} {os.getpid()}\n")
                trained(run)

            CellRun.train = train
            run_it(clip_path, colours, tmp_path / "bench")

        first = os.fork()
        if first == 0:
            code = 1
            try:
                worker()
                code = 0
            finally:
                os._exit(code)
        second = in_child(worker)
        assert (second, os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])) == (0, 0)
        trained = [line.split() for line in log.read_text().splitlines()]
        assert len(trained) == len({(method, seed) for method, seed, _ in trained}) == 4
        found = without_times(write_report(tmp_path / "bench"))
        assert found == without_times(json.loads((folder / "summary.json").read_text()))

    def test_a_cell_that_fails_is_named_and_the_others_are_reported(
        self, clip_path, colours, arguments, tmp_path, monkeypatch
    ):
        real = CellRun.train

        def train(run):
            if run.settings.seed == 2:
                raise ValueError("no such luck")
            real(run)

        monkeypatch.setattr(CellRun, "train", train)
        shown = vprompt(
            "bench", "base-to-novel", "--output", tmp_path, *arguments, "--methods", "classifier-r", code=2
        )
        assert "no such luck" in shown and "colours/classifier-r/2-shots/seed-2" in shown
        summary = json.loads((tmp_path / "summary.json").read_text())
        (part,) = summary["protocols"]
        assert {row["method"] for row in part["rows"]} == {"zero-shot", "classifier-r"}


@pytest.fixture
def published(tmp_path):
    """Two published tasks with a split file and few images each; EuroSAT has a template of its own."""
    for place, file, images, classes in (
        ("dtd", "split_zhou_DescribableTextures.json", "images", ("banded", "dotted")),
        ("eurosat", "split_zhou_EuroSAT.json", "2750", ("river", "forest")),
    ):
        folder = tmp_path / "data" / place
        write_folder(folder / images, dict.fromkeys(classes, 6), size=(30, 30))
        rows = [[f"{name}/{index}.png", label, name] for label, name in enumerate(classes) for index in range(6)]
        splits = {"train": rows[:2] + rows[6:8], "val": rows[2:3] + rows[8:9], "test": rows[3:6] + rows[9:]}
        (folder / file).write_text(json.dumps(splits))
    return DataOptions(str(tmp_path / "data"), "coop-11")


@pytest.mark.filterwarnings("ignore:.*classes; the published files name")
def test_a_target_is_told_apart_with_its_own_names_and_template(published, clip_path, tmp_path, monkeypatch):
    """What zero-shot gets right of a target is what it gets right of it as a task; a class head has nothing for it."""
    protocol = PROTOCOLS["cross-dataset"]
    tasks, targets = find_bench_tasks(protocol, published, ["eurosat"], source="coop-11/dtd")
    base = Settings("zero-shot", model=clip_path)
    more = {"shots": (1,), "seeds": (1,), "max_steps": 1}
    reports = {}
    for name, cell in (
        Grid(protocol, tuple(tasks), ("coop", "rpo"), base, targets=tuple(targets), **more).cells().items()
    ):
        reports[name] = run_cell(cell, tmp_path / name, quiet=True)
    assert all(report["tests"].keys() == {"all", "eurosat"} for report in reports.values())
    one, _ = find_bench_tasks(PROTOCOLS["few-shot"], published, ["eurosat"])
    texts = []
    encode = CellRun._outcome
    monkeypatch.setattr(
        CellRun,
        "_outcome",
        lambda run, *args: texts.append(run.bundle.model.active_peft_config.template) or encode(run, *args),
    )
    (own,) = [cell for name, cell in Grid(PROTOCOLS["few-shot"], tuple(one), ("coop",), base, **more).cells().items() if "zero-shot" in name]  # fmt: skip
    alone = run_cell(own, tmp_path / "alone", quiet=True)
    transferred = reports["dtd/zero-shot"]["tests"]["eurosat"]
    assert transferred["correct"] == alone["tests"]["all"]["correct"]
    assert transferred["content"] == alone["tests"]["all"]["content"]
    (source,) = [cell for name, cell in Grid(protocol, tuple(tasks), ("coop",), base, targets=tuple(targets), **more).cells().items() if "zero-shot" in name]  # fmt: skip
    run_cell(source, tmp_path / "again", quiet=True)
    assert texts == ["a centered satellite photo of {}.", "{} texture.", "a centered satellite photo of {}."]
    (tcp,) = (
        Grid(protocol, tuple(tasks), ("tcp",), base, targets=tuple(targets), zero_shot=False, **more).cells().values()
    )
    read = []
    monkeypatch.setattr(
        CellRun,
        "_outcome",
        lambda run, *args: read.append(run.bundle.model.active_peft_config.prompt_template) or encode(run, *args),
    )
    run_cell(tcp, tmp_path / "tcp", quiet=True)
    assert read == ["{} texture.", "{}."]


def test_some_of_the_trained_classes_are_told_apart_by_a_head_of_all(clip_path, colours, tmp_path):
    """A shift with images of two of four classes: a method of one vector for each class compares these two."""
    data = DataOptions(colours, label_column="colour")
    task, target = (BenchTask(name, name, data) for name in ("all", "some"))
    target.__dict__["test"] = load_images(DataOptions(colours, label_column="colour", where=("colour!=blue", "colour!=red")))["test"]  # fmt: skip
    base = Settings("zero-shot", model=clip_path)
    cells = Grid(PROTOCOLS["domain-generalization"], (task,), ("classifier-c", "coop"), base, shots=(2,), seeds=(1,), targets=(target,), max_steps=2).cells()  # fmt: skip
    for name, cell in cells.items():
        tests = run_cell(cell, tmp_path / name, quiet=True)["tests"]
        assert (tests["all"]["classes"], tests["some"]["classes"], tests["some"]["chance"]) == (4, 2, 50.0)
        whole = unpack(tests["all"]["correct"], tests["all"]["images"])
        part = unpack(tests["some"]["correct"], tests["some"]["images"])
        assert part.sum() >= whole[[3, 4, 5, 9, 10, 11]].sum()  # fewer classes to be taken for: none gets wrong
