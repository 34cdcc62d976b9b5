"""The report of a bench: its numbers are those of the cells, worked out by hand, and it says what a reader has to know."""

import json
import re
from pathlib import Path

import pytest

from peft_vprompt.experiments.bench import plots
from peft_vprompt.experiments.bench.published import published
from peft_vprompt.experiments.bench.report import write_report
from peft_vprompt.experiments.bench.results import BenchResults, require_base_model, title_of
from peft_vprompt.experiments.bench.summary import summarise
from peft_vprompt.experiments.bench.tables import accuracy_tables
from peft_vprompt.training.evaluation import harmonic_mean
from tests.support.bench_cells import base_to_novel, cell, save_cells, test_set
from tests.support.command_line import vprompt


test_set.__test__ = False


def summary_of(cells, against=None) -> dict:
    return summarise(BenchResults.of(cells), against)


def row_of(part, scope, method, shots=16) -> dict:
    found = [row for row in part["rows"] if (row["scope"], row["method"]) == (scope, method)]
    return next(row for row in found if row["shots"] in (shots, None))


class TestSummary:
    @pytest.fixture
    def part(self):
        (part,) = summary_of(base_to_novel())["protocols"]
        return part

    def test_means_over_tasks_and_seeds(self, part):
        coop = row_of(part, "mean", "coop")
        assert coop["accuracy"]["base"]["mean"] == (75 + 100) / 2 and coop["accuracy"]["novel"]["mean"] == 25
        assert coop["accuracy"]["base"]["std"] == pytest.approx(25 / 2**0.5) and coop["accuracy"]["novel"]["std"] == 0
        plain = row_of(part, "mean", "zero-shot")
        assert plain["accuracy"]["base"] == {"mean": 37.5, "std": None} and plain["seeds"] == 1

    def test_harmonic_means_in_both_conventions(self, part):
        maple = row_of(part, "mean", "maple:epochs=3")
        assert maple["hm"]["of_averages"] == pytest.approx(harmonic_mean(87.5, 62.5))
        each = harmonic_mean(75, 50) + harmonic_mean(100, 75)
        assert maple["hm"]["mean_of_each"] == pytest.approx(each / 2)
        plain = row_of(part, "mean", "zero-shot")
        assert plain["hm"]["of_averages"] == pytest.approx(37.5)
        assert plain["hm"]["mean_of_each"] == pytest.approx((50 + 25) / 2)

    def test_per_class_and_chance(self, part):
        assert row_of(part, "a", "coop")["per_class"]["base"]["mean"] == pytest.approx((75 + 100) / 2)
        assert part["chance"]["mean"] == {"base": 50, "novel": 50, "hm": 50}

    def test_what_has_nothing_for_novel_classes(self, part):
        row = row_of(part, "mean", "classifier-r")
        assert "novel" not in row["accuracy"] and "hm" not in row

    def test_differences_to_zero_shot_and_to_the_first_method(self, part):
        found = {(row["scope"], row["method"], row["against"], row["what"]): row for row in part["differences"]}
        novel = found["mean", "maple:epochs=3", "zero-shot", "novel"]
        assert novel["difference"] == pytest.approx(62.5 - 37.5) and novel["low"] <= 25 <= novel["high"]
        against = found["mean", "maple:epochs=3", "classifier-r", "base"]
        assert (against["difference"], against["low"], against["high"]) == (0, 0, 0)
        assert ("mean", "maple:epochs=3", "classifier-r", "novel") not in found
        hm = found["mean", "coop", "zero-shot", "hm"]
        assert hm["difference"] == pytest.approx(harmonic_mean(87.5, 25) - 37.5) and hm["seeds"] == 2

    def test_against_another_method(self):
        (part,) = summary_of(base_to_novel(), "coop")["protocols"]
        assert {row["against"] for row in part["differences"]} == {"zero-shot", "coop"}
        with pytest.raises(ValueError, match=r"zero-shot, classifier-r, coop, maple:epochs=3. Received: 'rpo'"):
            summary_of(base_to_novel(), "rpo")

    def test_other_images_are_not_compared(self):
        cells = base_to_novel()
        cells[1]["tests"]["base"]["content"] = "other"
        (part,) = summary_of(cells)["protocols"]
        assert {row["scope"] for row in part["differences"]} == {"b"}
        assert any("tested on other images" in note for note in part["notes"])

    def test_seeds_that_are_missing_are_said_and_left_out_of_pairs(self):
        cells = [
            each for each in base_to_novel() if (each["bench"]["method"], each["settings"]["seed"]) != ("coop", 2)
        ]
        (part,) = summary_of(cells)["protocols"]
        assert part["notes"][0] == "A: not all seeds were run of CoOp, 16 shots (1 of 2)."
        found = {(row["method"], row["against"], row["what"]): row["seeds"] for row in part["differences"]}
        assert found["coop", "classifier-r", "base"] == 1 and found["maple:epochs=3", "classifier-r", "base"] == 2

    def test_what_diverged_is_said_and_no_part_of_a_mean(self):
        cells = base_to_novel()
        cells[1] = {name: cells[1][name] for name in ("settings", "bench")} | {"tests": {}, "diverged": 3}
        (part,) = summary_of(cells)["protocols"]
        assert part["notes"][0] == "CoOp diverged on a, 16 shots, seeds 1."
        assert row_of(part, "a", "coop")["accuracy"]["base"] == {"mean": 100.0, "std": None}

    def test_the_order_of_files_says_nothing(self):
        assert summary_of(base_to_novel()) == summary_of(base_to_novel()[::-1])


def transfer() -> list[dict]:
    sets = {"all": test_set([1, 1, 1, 0], title="Source"), "pets": test_set([1, 0, 0, 0], title="Pets"), "cars": test_set([1, 1, 0, 0], title="Cars")}  # fmt: skip
    return [cell("cross-dataset", "s", method, 1, sets) for method in ("zero-shot", "coop")]


def test_the_mean_of_targets_leaves_the_source_out():
    (part,) = summary_of(transfer())["protocols"]
    row = row_of(part, "s", "coop")
    assert row["accuracy"]["targets"]["mean"] == 37.5 and row["accuracy"]["all"]["mean"] == 75
    assert {each["what"] for each in part["differences"]} == {"all", "pets", "cars", "targets"}


def curve() -> list[dict]:
    plain = cell("few-shot", "a", "zero-shot", 1, {"all": test_set([1, 0, 0, 0])}, shots=1)
    learned = [
        cell("few-shot", "a", "coop", seed, {"all": test_set([1, 1, int(shots > 1), 0])}, shots=shots)
        for shots in (1, 4)
        for seed in (1, 2)
    ]
    return [plain, *learned]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a bench of three protocols with its report, and what the summary holds."""
    folder = tmp_path_factory.mktemp("bench")
    save_cells(folder, [*base_to_novel(), *transfer(), *curve()])
    return folder, write_report(folder)


class TestFiles:
    def test_markdown_and_page_hold_what_the_summary_holds(self, written):
        folder, summary = written
        assert json.loads((folder / "summary.json").read_text()) == summary
        shown = {name: (folder / name).read_text() for name in ("report.md", "report.html")}
        for part in summary["protocols"]:
            for row in part["rows"]:
                values = [f"{value['mean']:.1f}" for value in row["accuracy"].values()]
                values += [f"{row['hm'][name]:.1f}" for name in ("of_averages", "mean_of_each")] if "hm" in row else []
                assert all(row["title"].replace("_", r"\_") in shown["report.md"] for _ in values)
                assert all(value in text for value in values for text in shown.values())
            for row in part["differences"]:
                if row["scope"] == "mean":
                    assert f"{row['low']:+.1f} to {row['high']:+.1f}" in shown["report.md"]

    def test_tables_stand_beside_chance_and_zero_shot_and_mark_what_is_worse(self, written):
        text = (written[0] / "report.md").read_text()
        table = text.split("**Mean of 2 tasks, 16 shots**")[1].split("**A, 16 shots**")[0].strip().splitlines()
        assert table[0] == "| Method | Base | Novel | HM of averages | Mean of HMs |"
        assert table[2] == "| Chance | 50.0 | 50.0 | 50.0 | – |"
        assert table[3] == "| Zero-shot | 37.5 | 37.5 | 37.5 | 37.5 |"
        assert table[4].startswith("| MaPLe, epochs=3 | 87.5 ± 17.7 | 62.5 ± 17.7 |")
        assert table[5].startswith("| CoOp | 87.5 ± 17.7 | 25.0 ± 0.0 ▼ |")
        assert table[6] == "| Classifier-R | 87.5 ± 17.7 | – | – | – |"

    def test_a_curve_has_a_column_for_each_number_of_shots(self, written):
        text = (written[0] / "report.md").read_text().split("## Few-shot learning")[1]
        assert "| Method | 1 shot | 4 shots |" in text and "| Zero-shot | 25.0 | 25.0 |" in text
        assert "| CoOp | 50.0 ± 0.0 | 75.0 ± 0.0 |" in text

    def test_the_page_needs_no_other_file(self, written):
        folder, _ = written
        page = (folder / "report.html").read_text()
        assert not re.search(r"(src|href)=.(?!data:)|url[(]|@import|<script", page)
        assert page.count("data:image/png;base64,") == len(list((folder / "plots").glob("*.png"))) == 5

    def test_pictures_of_the_markdown_are_there(self, written):
        folder, _ = written
        links = re.findall(r"!\[.*?\]\((.*?)\)", (folder / "report.md").read_text())
        assert links and all((folder / link).is_file() for link in links)

    def test_names_are_text(self, tmp_path, monkeypatch):
        monkeypatch.setattr("peft_vprompt.experiments.bench.report.draw", lambda part, folder: [])
        bad = transfer()[:1]
        for each in bad:
            each["bench"]["title"] = each["tests"]["pets"]["title"] = "<script>|*x*"
        save_cells(tmp_path, bad)
        write_report(tmp_path)
        assert "<script" not in (tmp_path / "report.html").read_text()
        assert r"\<script>\|\*x\*" in (tmp_path / "report.md").read_text()

    def test_the_command_shows_the_average_and_says_where_the_page_is(self, tmp_path, monkeypatch):
        save_cells(tmp_path, base_to_novel())
        monkeypatch.setattr("peft_vprompt.experiments.bench.report.draw", lambda part, folder: [])
        shown = vprompt("report", tmp_path, "--against", "coop")
        assert "Base-to-novel generalisation: Mean of 2 tasks, 16 shots" in shown and "▼" in shown
        assert f"Saved in {tmp_path}." in shown and "report.html in a browser" in shown
        assert "Expected a method of the bench" in vprompt("report", tmp_path, "--against", "rpo", code=2)

    def test_a_folder_without_cells(self, tmp_path):
        assert "Expected the folder of a bench" in vprompt("report", tmp_path, code=2)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda text: text[: len(text) // 2],
            lambda text: "[]",
            lambda text: json.dumps(json.loads(text) | {"tests": {}}),
            lambda text: json.dumps({name: value for name, value in json.loads(text).items() if name != "settings"}),
            lambda text: json.dumps(json.loads(text) | {"bench": {"protocol": "nope"}}),
            lambda text: text.replace('"accuracy": 75.0', '"accuracy": "75"'),
        ],
    )
    def test_a_damaged_cell_is_told_and_left_out(self, damage, tmp_path):
        save_cells(tmp_path, base_to_novel())
        place = tmp_path / "cells" / "a" / "1" / "results.json"
        place.write_text(damage(place.read_text()))
        with pytest.warns(UserWarning, match="no result of a bench"):
            (part,) = summarise(BenchResults.read(tmp_path))["protocols"]
        assert "A: not all seeds were run of CoOp, 16 shots (1 of 2)." in part["notes"]


class TestCellsOfOneFolder:
    def test_what_was_replaced_is_not_read(self, tmp_path):
        cells = base_to_novel()
        save_cells(tmp_path, cells)
        old = tmp_path / "cells" / "a" / "1" / "previous" / "0123"
        old.mkdir(parents=True)
        other = cells[1] | {
            "tests": {"base": test_set([0, 0, 0, 0], images="a base"), "novel": cells[1]["tests"]["novel"]}
        }
        (old / "results.json").write_text(json.dumps(other))
        assert summarise(BenchResults.read(tmp_path)) == summary_of(cells)

    def of(self, model, content, method) -> dict:
        tests = {"all": test_set([1, 0, 1, 0])}
        return cell("few-shot", "a", method, 1, tests, model=model) | {"identity": {"base model": content}}

    def test_several_base_models_are_not_compared(self, tmp_path):
        save_cells(tmp_path, [self.of("models/a", "1", "coop"), self.of("other/b", "2", "maple")])
        with pytest.raises(ValueError, match="cells of one base model.*those of 2: a, b. Take a folder for each"):
            summarise(BenchResults.read(tmp_path))

    def test_baselines_stand_beside_methods_on_class_names(self, tmp_path):
        save_cells(tmp_path, [self.of("clip", "both encoders", "coop"), self.of("clip", "images alone", "lora")])
        (part,) = summarise(BenchResults.read(tmp_path))["protocols"]
        assert {row["method"] for row in part["rows"]} == {"coop", "lora"}
        save_cells(tmp_path / "two", [self.of("a", "1", "lora"), self.of("b", "2", "bias"), self.of("a", "3", "coop")])
        with pytest.raises(ValueError, match="cells of one base model"):
            summarise(BenchResults.read(tmp_path / "two"))

    def test_another_base_model_is_refused_before_anything_is_run(self, tmp_path):
        save_cells(tmp_path, [self.of("models/a@main", "1", "coop")])
        require_base_model(tmp_path, "elsewhere/a")
        for model in ("models/b", None):
            with pytest.raises(ValueError, match="Expected a folder for each base model.*results of a, for"):
                require_base_model(tmp_path, model)

    def test_what_cells_do_not_have_in_common_is_said(self):
        cells = [self.of("a", "1", "coop"), self.of("a", "1", "maple")]
        assert summary_of(cells)["protocols"][0]["notes"] == []
        cells[1]["bench"]["max_steps"] = 64
        cells[1]["settings"]["precision"] = "bf16"
        assert summary_of(cells)["protocols"][0]["notes"] == [
            "Cells were run with unlike bounds on the steps: null (CoOp on a); 64 (MaPLe on a).",
            'Cells were run with unlike precision: "float32" (CoOp on a); "bf16" (MaPLe on a).',
        ]

    def test_seeds_of_unlike_recipes_are_said(self):
        cells = base_to_novel()
        coop = [each for each in cells if each["bench"]["method"] == "coop"]
        coop[0]["settings"]["learning_rate"] = 0.02
        assert summary_of(cells)["protocols"][0]["notes"] == [
            "CoOp was run with unlike learning_rate, so that its means are of no one recipe: 0.02 (A, 16 shots, seed 1); the "
            "default (A, 16 shots, seed 2, B, 16 shots, seed 1, B, 16 shots, seed 2)."
        ]

    def test_one_view_is_what_was_written_before_there_were_protocols(self):
        cells = base_to_novel()
        coop = [each["settings"] for each in cells if each["bench"]["method"] == "coop"]
        coop[0].pop("protocol", None)
        coop[0]["views"] = 1
        for settings in coop[1:]:
            settings |= {"views": None, "protocol": None}
        assert summary_of(cells)["protocols"][0]["notes"] == []


def test_plots_show_the_means(tmp_path, figures):
    (part,) = summary_of(base_to_novel())["protocols"]
    pictures = plots.draw(part, tmp_path)
    assert [picture.path.name for picture in pictures] == [
        "base-to-novel-base-novel-1.png",
        "base-to-novel-time-1.png",
    ]
    mean = figures[0].axes[0]
    points = {line.get_label(): line.get_xydata().tolist() for line in mean.lines if line.get_linestyle() == "None"}
    assert points == {"CoOp": [[87.5, 25.0]], "MaPLe, epochs=3": [[87.5, 62.5]]}
    assert mean.get_title() == "Mean of 2 tasks" and len(figures[0].axes) == 3


class TestPublished:
    MODEL = "openai/clip-vit-base-patch16"

    def cells(self, model=MODEL, **more) -> list[dict]:
        tests = {"base": test_set([1, 1, 1, 0]), "novel": test_set([1, 0, 0, 0])}
        tasks = ("dtd", "eurosat")
        cells = [cell("base-to-novel", task, "maple", seed, tests, model=model, **more) for task in tasks for seed in (1, 2, 3)]  # fmt: skip
        return [each | {"data": {"benchmark": f"coop-11/{each['bench']['task']}"}} for each in cells]

    def test_stands_beside_the_same_setting(self):
        (part,) = summary_of(self.cells())["protocols"]
        assert row_of(part, "dtd", "maple")["published"]["values"] == {"base": 80.36, "novel": 59.18}
        assert row_of(part, "mean", "maple")["published"] is None  # of eleven data sets, and these are two
        (dtd,) = [table for table in accuracy_tables(part) if table.title.startswith("DTD")]
        assert list(dtd.columns[-2:]) == ["Published", "Source"]
        assert dtd.rows[-1][-2:] == ["80.36 / 59.18", "Khattak et al., CVPR 2023, table 3"]

    @pytest.mark.parametrize(
        "changes",
        [
            {"model": "openai/clip-vit-base-patch32"},
            {"model": None},
            {"shots": 4},
            {"config": {"prompt_depth": 3}},
            {"epochs": 3},
            {"learning_rate": 0.1},
        ],
    )
    def test_not_beside_another(self, changes):
        same = self.cells()[0]
        assert published(same) is not None
        assert published(same | {"settings": same["settings"] | changes}) is None

    def test_not_beside_other_images_of_that_name(self):
        own = self.cells()[0]
        for data in (None, {"path": "eurosat", "benchmark": None}, {"benchmark": "vtab-1k/dtd"}):
            assert published(own | {"data": data}) is None

    def test_a_transfer_is_that_of_imagenet_and_of_published_targets(self):
        right = test_set([1, 1, 1, 0])
        tests = {"all": right | {"benchmark": "coop-11/imagenet"}, "dtd": right | {"benchmark": "coop-11/dtd"}}
        tests["eurosat"] = right | {"benchmark": None}  # a folder of one's own
        report = cell("cross-dataset", "imagenet", "cocoop", 1, tests, model=self.MODEL)
        cells = [report | {"settings": report["settings"] | {"seed": seed}} for seed in (1, 2, 3)]
        on = lambda source: [each | {"data": {"benchmark": source}} for each in cells]  # noqa: E731
        (part,) = summary_of(on("coop-11/imagenet"))["protocols"]
        assert row_of(part, "imagenet", "cocoop")["published"]["values"].keys() == {"all", "dtd"}
        (part,) = summary_of(on("coop-11/caltech101"))["protocols"]
        assert row_of(part, "imagenet", "cocoop")["published"] is None

    def test_beside_the_recipe_that_the_authors_have_there_alone(self):
        tests = {"all": test_set([1, 1, 1, 0])}
        report = cell("cross-dataset", "imagenet", "maple", 1, tests, model=self.MODEL)
        report |= {"data": {"benchmark": "coop-11/imagenet"}}
        followed = {"learning_rate": 0.0026, "epochs": 2, "prompt_depth": 3}
        assert published(report) is None and published(report | {"published": followed | {"prompt_depth": 9}}) is None
        assert published(report | {"published": followed}).values["mean"] == 66.3

    def test_not_beside_images_that_were_augmented_once_or_other_seeds(self):
        assert published(self.cells()[0] | {"cached": True}) is None
        (part,) = summary_of(self.cells()[:2])["protocols"]
        assert row_of(part, "dtd", "maple")["published"] is None

    def test_the_table_agrees_with_itself(self):
        """Averages are those of the data sets, and harmonic means those of the averages, as far as two digits say."""
        file = Path(plots.__file__).with_name("published.json")
        for row in json.loads(file.read_text())["rows"]:
            values = dict(row["values"])
            mean = values.pop("mean")
            if row["protocol"] == "base-to-novel":
                if values:
                    assert len(values) == 11
                    for part in ("base", "novel"):
                        average = sum(value[part] for value in values.values()) / 11
                        assert average == pytest.approx(mean[part], abs=0.0051)
                if "mean of each" not in row["source"]:
                    assert harmonic_mean(mean["base"], mean["novel"]) == pytest.approx(mean["hm"], abs=0.0101)
            else:
                values.pop("all")
                assert sum(values.values()) / len(values) == pytest.approx(mean, abs=0.0051)


def test_titles_say_what_was_changed():
    assert title_of("coop:epochs=3:prompt_init=text") == "CoOp, epochs=3, prompt_init=text"
    assert title_of("zero-shot") == "Zero-shot CLIP" or title_of("zero-shot").startswith("Zero-shot")
