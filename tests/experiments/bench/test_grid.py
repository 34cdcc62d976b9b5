"""What a bench runs: its tasks, methods and cells, known before anything is read."""

import json

import pytest

from peft_vprompt.data import DataOptions
from peft_vprompt.experiments.bench.cell import bounded_epochs
from peft_vprompt.experiments.bench.grid import Grid, learning_from_names, read_recipes
from peft_vprompt.experiments.bench.protocols import PROTOCOLS, find_protocol
from peft_vprompt.experiments.bench.tasks import BenchTask, find_bench_tasks
from peft_vprompt.experiments.settings import Settings
from peft_vprompt.tuners.base.recipe import Recipe
from peft_vprompt.tuners.base.registry import METHODS


TASKS = (BenchTask("a", "A"), BenchTask("b", "B"))


def grid(protocol="few-shot", methods=("coop",), **more) -> Grid:
    return Grid(PROTOCOLS[protocol], TASKS, methods, **more)


def names(tasks) -> list[str]:
    return [task.name for task in tasks]


class TestCells:
    def test_each_once_zero_shot_first_then_seed_by_seed(self):
        cells = grid(methods=("coop", "maple"), shots=(1, 4), seeds=(1, 2)).cells()
        assert list(cells)[:2] == ["a/zero-shot", "b/zero-shot"]
        assert len(cells) == 2 + 2 * 2 * 2 * 2
        assert list(cells)[2:5] == ["a/coop/1-shots/seed-1", "a/maple/1-shots/seed-1", "a/coop/4-shots/seed-1"]
        settings = cells["b/maple/4-shots/seed-2"].settings
        assert (settings.method, settings.shots, settings.seed, settings.base_novel) == ("maple", 4, 2, False)

    def test_the_shots_are_the_protocols(self):
        assert grid("few-shot").shots == (1, 2, 4, 8, 16) and grid("base-to-novel").shots == (16,)

    def test_what_learns_its_classes_sees_the_base_classes_alone(self):
        cells = grid("base-to-novel", ("coop", "classifier-r"), seeds=(1,)).cells()
        assert cells["a/coop/16-shots/seed-1"].settings.base_novel
        assert not cells["a/classifier-r/16-shots/seed-1"].settings.base_novel

    def test_changes_are_of_the_config_and_of_the_recipe(self):
        method = "coop:num_virtual_tokens=4:epochs=5"
        more = {"recipes": {"coop": {"epochs": 7, "learning_rate": 0.1, "class_token_position": "front"}}}
        base = Settings("zero-shot", batch_size=8)
        cells = grid(methods=(method,), shots=(1,), seeds=(1,), base=base, **more).cells()
        settings = next(cell.settings for cell in cells.values() if cell.settings.method == "coop")
        assert settings.config == {"num_virtual_tokens": 4, "class_token_position": "front"}
        assert (settings.epochs, settings.learning_rate, settings.batch_size) == (5, 0.1, 8)
        plain = cells["a/zero-shot"].settings
        assert (plain.config, plain.epochs, plain.batch_size) == ({}, None, None)

    def test_another_method_has_another_folder(self):
        methods = ("coop", "coop:epochs=1", "coop:epochs=2", "coop:prompt_init_text=a photo of a/b")
        cells = grid(methods=methods, shots=(1,), seeds=(1,)).cells()
        folders = {name.split("/")[1] for name in cells if name.startswith("a/")}
        assert len(folders) == 5 and all(len(name.split("/")) in (2, 4) for name in cells)

    def test_the_book_is_of_what_is_run(self):
        books = [
            grid().book,
            grid(seeds=(1, 2)).book,
            grid(max_steps=9).book,
            grid("base-to-novel", shots=(1, 2, 4, 8, 16)).book,
            grid(base=Settings("zero-shot", model="other")).book,
        ]
        assert len(set(books)) == len(books) and grid().book == books[0]

    def test_all_are_those_that_the_protocol_can_test(self):
        transfer = learning_from_names(PROTOCOLS["cross-dataset"])
        assert {"coop", "maple", "rpo"} <= set(transfer) < set(learning_from_names(PROTOCOLS["few-shot"]))
        assert all(METHODS[name].new_classes for name in transfer) and "promptkd" not in transfer
        cells = grid("cross-dataset", ("all",), seeds=(1,)).cells()
        assert len(cells) == 2 * (1 + len(transfer))

    def test_without_a_text_tower_there_is_no_zero_shot(self):
        assert not any("zero-shot" in name for name in grid(methods=("linear",), zero_shot=False).cells())

    @pytest.mark.parametrize(
        ("more", "match"),
        [
            ({"methods": ()}, "at least one of methods"),
            ({"seeds": ()}, "at least one of seeds"),
            ({"shots": (0,)}, "shots"),
            ({"seeds": (-1,)}, "seeds"),
            ({"recipes": {"maple": {}}}, "Expected recipes of the methods. Received: 'maple'"),
        ],
    )
    def test_a_grid_that_is_none(self, more, match):
        with pytest.raises(ValueError, match=match):
            grid(**more)

    @pytest.mark.parametrize(
        ("protocol", "method", "match"),
        [
            ("few-shot", "nope", "No method 'nope'"),
            ("few-shot", "promptkd", "learns from a teacher"),
            ("cross-dataset", "classifier-r", "nothing for those of other data sets"),
            ("few-shot", "coop:4", "colon in 'coop:4' takes NAME=VALUE"),
        ],
    )
    def test_a_method_that_cannot_be_tested(self, protocol, method, match):
        with pytest.raises(ValueError, match=match):
            grid(protocol, (method,)).cells()

    def test_a_protocol_that_is_none(self):
        with pytest.raises(
            ValueError, match="base-to-novel, few-shot, cross-dataset, domain-generalization. Received"
        ):
            find_protocol("base2new")

    def test_recipes_may_be_of_what_all_stands_for(self):
        cells = grid(methods=("all",), shots=(1,), seeds=(1,), recipes={"maple": {"epochs": 3}}).cells()
        assert cells["a/maple/1-shots/seed-1"].settings.epochs == 3


class TestTasks:
    COOP = DataOptions("data", "coop-11")

    def test_embedded(self):
        assert names(find_bench_tasks(PROTOCOLS["few-shot"])[0]) == ["shapes", "toys", "signs"]
        assert names(find_bench_tasks(PROTOCOLS["few-shot"], names=["toys"])[0]) == ["toys"]
        source, targets = find_bench_tasks(PROTOCOLS["cross-dataset"])
        assert (names(source), names(targets)) == (["shapes"], ["toys", "signs"])
        source, targets = find_bench_tasks(PROTOCOLS["cross-dataset"], source="toys")
        assert (names(source), names(targets)) == (["toys"], ["shapes", "signs"])
        source, targets = find_bench_tasks(PROTOCOLS["domain-generalization"])
        assert (names(source), names(targets)) == (["shapes"], ["dusk", "mosaic", "sketch"])

    def test_a_whole_benchmark(self):
        tasks, _ = find_bench_tasks(PROTOCOLS["base-to-novel"], self.COOP)
        assert len(tasks) == 11 and tasks[1].options.benchmark == "coop-11/caltech101"
        assert tasks[2].template == "a photo of a {}, a type of pet."
        chosen, _ = find_bench_tasks(PROTOCOLS["base-to-novel"], self.COOP, ["dtd", "coop-11/eurosat"])
        assert [task.title for task in chosen] == ["DTD", "EuroSAT"]

    def test_published_transfers(self):
        source, targets = find_bench_tasks(PROTOCOLS["cross-dataset"], self.COOP)
        assert names(source) == ["imagenet"] and len(targets) == 10 and "imagenet" not in names(targets)
        shifts = DataOptions("data", "imagenet-shifts")
        source, targets = find_bench_tasks(PROTOCOLS["domain-generalization"], shifts)
        assert (names(source), names(targets)) == (["imagenet"], ["v2", "sketch", "a", "r"])

    def test_own_images(self, tmp_path):
        own = DataOptions(str(tmp_path / "pets"), label_column="kind")
        assert names(find_bench_tasks(PROTOCOLS["few-shot"], own)[0]) == ["pets"]
        source, targets = find_bench_tasks(PROTOCOLS["cross-dataset"], own, targets=[str(tmp_path / "birds.csv")])
        assert (names(source), names(targets)) == (["pets"], ["birds"])
        assert targets[0].options.label_column == "kind"

    def test_targets_are_told_apart(self, tmp_path):
        own = DataOptions(str(tmp_path / "source"))
        for place in ("v2/test", "sketch/test", "photos.v1", "photos.v2"):
            (tmp_path / place).mkdir(parents=True)
        places = [str(tmp_path / place) for place in ("v2/test", "sketch/test/", "photos.v1", "photos.v2")]
        _, targets = find_bench_tasks(PROTOCOLS["domain-generalization"], own, targets=places)
        assert names(targets) == ["v2-test", "sketch-test", "photos.v1", "photos.v2"]

    @pytest.mark.parametrize("places", [["a/birds", "b/birds.csv"], ["x/novel"], ["x/source"]])
    def test_targets_that_cannot_be_told_apart(self, places, tmp_path):
        own = DataOptions(str(tmp_path / "source"))
        with pytest.raises(ValueError, match="source and targets of different names.*Rename the folders or files"):
            find_bench_tasks(PROTOCOLS["domain-generalization"], own, targets=places)

    @pytest.mark.parametrize(
        ("protocol", "data", "more", "match"),
        [
            ("few-shot", None, {"names": ["pets"]}, "Expected tasks among: shapes, toys, signs. Received: pets"),
            ("few-shot", None, {"source": "toys"}, "trains and tests on the same tasks. Received: --source"),
            ("cross-dataset", DataOptions("own"), {}, "Expected targets for cross-dataset"),
            ("cross-dataset", DataOptions("own"), {"source": "x", "targets": ["b"]}, "Received: --source x"),
            ("domain-generalization", None, {"source": "toys"}, "Expected targets for domain-generalization"),
            ("cross-dataset", COOP, {"source": "coop-11/nope"}, "'coop-11/nope'"),
        ],
    )
    def test_tasks_that_are_none(self, protocol, data, more, match):
        with pytest.raises(ValueError, match=match):
            find_bench_tasks(PROTOCOLS[protocol], data, **more)


@pytest.mark.parametrize(
    ("recipe", "shots", "images", "most", "epochs"),
    [
        (Recipe(0.1, 32, 200, "test"), 16, 256, 192, 24),  # 8 steps to an epoch
        (Recipe(0.1, 32, 10, "test"), 16, 256, 192, 10),  # shorter as it is
        (Recipe(0.1, 1, 10, "test"), 16, 256, 192, 2),  # never less than two
        (Recipe(0.1, 64, 10, "test"), 1, 16, 4, 4),  # less than a batch is a step
    ],
)
def test_one_rule_bounds_all_lengths(recipe, shots, images, most, epochs):
    assert bounded_epochs(recipe, shots, images, most) == epochs


def test_recipes_in_a_file(tmp_path):
    file = tmp_path / "recipes.json"
    file.write_text(json.dumps({"coop": {"epochs": 3}}))
    assert read_recipes(file) == {"coop": {"epochs": 3}}
    for content, match in (("[]", "Expected an object of changes"), ('{"nope": {}}', "No method 'nope'")):
        file.write_text(content)
        with pytest.raises(ValueError, match=match):
            read_recipes(file)
