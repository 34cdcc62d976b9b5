"""The benchmarks run from end to end on tiny shapes, agree with the plain path, and write what the pages are made of."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.support.peft_behaviours import save_row


pytestmark = pytest.mark.nightly

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cli):
    """Results of one quick run of every experiment."""
    folder = tmp_path_factory.mktemp("benchmarks")
    result = cli("--quick", "--threads", 1, "--output", folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def cli():
    """The command line, called in this process with the checkout's root on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        import typer

        from examples.benchmarks import run

        app = typer.Typer()
        app.command()(run.main)
        threads = torch.get_num_threads()
        yield lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])
        torch.set_num_threads(threads)


def results(folder):
    return {path.name.split("_cpu_")[0]: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def test_every_experiment_agrees_with_the_plain_path(folder):
    from examples.benchmarks.cases import CLIP_METHODS, EXPERIMENTS, FIELD_METHODS

    files = results(folder)
    assert files.keys() == EXPERIMENTS.keys()
    compared = {key: cell for file in files.values() for key, cell in file["cells"].items() if "agreement" in cell}
    assert {cell["case"]["method"] for cell in compared.values()} >= CLIP_METHODS.keys() | FIELD_METHODS.keys()
    for key, cell in compared.items():
        assert len(cell["agreement"]) >= 2, key  # the output and at least one gradient
        assert max(cell["agreement"].values()) < 1e-4, key


def test_cells_say_what_was_measured_and_where(folder):
    for file in results(folder).values():
        for cell in file["cells"].values():
            machine = file["environments"][cell["environment"]]
            assert machine["versions"]["torch"] == torch.__version__ and cell["commit"]
            for name in ("ours", *cell["case"]["sides"]):
                side = cell["sides"][name]
                if name == "open_clip" and "skipped" in side:
                    continue  # not installed
                assert side["ms"] > 0 and len(side.get("samples_ms", "1")) == cell["repeats"]
                if name in ("ours", "plain"):
                    assert side["peak_bytes"] >= 0 and side["process_bytes"] > 0


def test_fewer_rows_than_the_plain_path(folder):
    sides = results(folder)["methods"]["cells"]["cocoop/step/5 classes/batch 2"]["sides"]
    assert sides["plain"]["rows"]["text"] == 2 * 5 * 77
    assert sides["ours"]["rows"]["text"] < 200


def test_measured_cells_are_skipped_until_asked_for_again(folder, cli, monkeypatch, tmp_path):
    from examples.benchmarks import run

    measured = []
    monkeypatch.setattr(run.Runner, "measure", lambda self, case: measured.append(case.key) or {"sides": {"ours": {}}})
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    options = ("--quick", "--threads", 1, "--output", tmp_path, "--experiment", "vit")
    before = results(folder)["vit"]
    cli(*options)
    assert not measured and results(tmp_path)["vit"] == before
    cli(*options, "--again")
    assert measured == list(before["cells"])


def test_unknown_experiment_is_refused(cli):
    result = cli("--experiment", "nonsense")
    assert result.exit_code == 2 and "text_side" in result.output


def test_classes_shared_out_over_processes(cli, tmp_path):
    from examples.benchmarks import sharding

    sharding.main(output=tmp_path, shape="tiny", classes=6)
    (path,) = tmp_path.iterdir()
    sides = json.loads(path.read_text())["sides"]
    assert list(sides) == ["every process encodes all", "shard_classes"]
    assert all(side["gradient_error"] < 1e-5 and side["peak_bytes"] > 0 for side in sides.values())


def test_test_time_tuning(cli, tmp_path):
    from examples.benchmarks import test_time

    test_time.main(output=tmp_path, shape="tiny", classes=[6], images=3, repeats=1, views=12, threads=1)
    (path,) = tmp_path.iterdir()
    (cell,) = json.loads(path.read_text())["cells"]
    assert list(cell["milliseconds_per_image"]) == ["together", "one by one", "authors' way", "views"]
    assert max(cell["agreement"].values()) < 1e-4


def test_exported_models(cli, tmp_path, clip_path, colours, tokenizer_path):
    pytest.importorskip("onnxruntime", reason="onnx, onnxscript and onnxruntime are not installed")
    from examples.benchmarks import exported

    names = {"class_names": ["blue", "green", "red", "white"]}
    adapter = save_row(tmp_path / "adapter", "coop", clip_path, tokenizer_path, **names)
    output = tmp_path / "out"
    options = {
        "data": colours,
        "label_column": "colour",
        "batches": [2],
        "repeats": 1,
        "threads": 1,
        "compiled": False,
    }
    exported.main(adapter, output=output, **options)
    (path,) = output.iterdir()
    results = json.loads(path.read_text())
    result = results["adapters"]["adapter"]
    assert all(side["ms_per_image"] > 0 for side in result["cells"]["2"].values())
    assert result["memory"]["ONNX"] < result["memory"]["adapter"]  # without torch
    page = exported.with_tables(exported.PAGE.read_text(), results)
    assert "| ONNX, int8 |" in page and page.count("end of exported") == 1
    assert result["agreement"]["ONNX"]["agreement"] == 100 and result["files"]["ONNX"]["difference"] < 1e-3


def test_a_step_taken_apart(cli, tmp_path):
    from examples.benchmarks import apart, profile

    file = tmp_path / "profile.json"
    for label in ("before", "after"):
        profile.main(label, "coop", file, "tiny", seconds=0.1, threads=1)
    results = json.loads(file.read_text())
    for cell in results["after"]["cells"].values():
        assert cell["trainer_ms"] > 0 and cell["ms"] > cell["floor_ms"] > 0
        assert sum(cell["kinds"].values()) == pytest.approx(cell["profiled_ms"], abs=0.1)
        assert cell["kinds"]["matrix products"] > 0 and cell["operators"]
    page = apart.sections_apart(tmp_path)
    assert page.count("| CoOp") == len(results["after"]["cells"]) and "Matrix products" in page


def test_the_loader_beside_the_step(cli, tmp_path):
    from examples.benchmarks import apart, loader

    loader.main(tmp_path / "loader.json", "tiny", images=16, batch_size=4, workers=[0, 1], seconds=0.1, threads=1)
    results = json.loads((tmp_path / "loader.json").read_text())
    for cell in results["sizes"].values():
        assert all(speed > 0 for kind in cell["images_per_second"].values() for speed in kind.values())
        assert cell["fed"]["share"] > 0
    assert "camera, 4000 x 3000 | draft" in apart.sections_apart(tmp_path)


def test_costs_of_a_training(cli, tmp_path):
    from examples.benchmarks import cost

    cost.main(tmp_path / "cost.json", "coop", "5", "tiny", seconds=0, device="cpu", precision="float32", threads=1)
    report = json.loads((tmp_path / "cost.json").read_text())
    assert report["about"]["model"] == "tiny" and len(report["cells"]) == 2


def test_a_short_table_of_alternatives(folder):
    from examples.benchmarks import render

    marks = "<!-- alternatives: generated by examples/benchmarks/render.py -->\nold\n<!-- end of alternatives -->"
    shown = render.with_alternatives(marks, render.load(folder))
    assert "| peft_vprompt |" in shown and "old" not in shown and "| 1.0x |" in shown


def test_a_missed_bar_is_reported():
    from examples.benchmarks.cases import Bar
    from examples.benchmarks.results import verdict

    bar = Bar("cell", "ratio", 7, "seven times")
    assert [verdict(bar, {"cell": {"ratio": r}})["passed"] for r in (6.9, 7.0)] == [False, True]
    assert verdict(bar, {})["passed"] is None


def test_the_page_shows_every_experiment(folder, tmp_path, monkeypatch):
    from examples.benchmarks import render
    from examples.benchmarks.cases import EXPERIMENTS

    files = render.load(folder)
    page = render.page(files)
    assert all(f"## {experiment.title}" in page for experiment in EXPERIMENTS.values())
    assert all(f"| {title} |" in page for title in ("CoOp (M=16)", "RPO (K=24)", "VPT-deep, 3 tokens"))
    monkeypatch.setattr(render, "IMAGES", tmp_path)
    render.draw(files)
    assert {path.name for path in tmp_path.glob("*.png")} >= {"benchmarks_methods_cpu_float32.png"}
