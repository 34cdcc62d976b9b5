"""Reading, sampling, splitting and transforming labelled images."""

import io

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage
from transformers import CLIPImageProcessorPil, Siglip2ImageProcessorPil, ViTImageProcessorPil

from peft_vprompt.data import (
    DataOptions,
    EvalTransform,
    TrainTransform,
    base_novel_split,
    cache_pixels,
    class_counts,
    few_shot,
    load_images,
    load_split,
    select_classes,
    stratified_split,
)
from peft_vprompt.data.class_names import RepeatedNames
from peft_vprompt.data.sources import load_unlabelled
from peft_vprompt.data.streams import open_stream
from peft_vprompt.data.transforms import random_crop_box


COLOURS = {"blue-dark": (10, 10, 120), "green_light": (90, 230, 90), "red": (220, 20, 20)}


def picture(colour, size=(20, 16), mode="RGB"):
    return PILImage.new("RGB", size, colour).convert(mode)


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def rows(per_class, names=tuple(COLOURS)):
    """Rows of images whose red channel says which image of its class it is."""
    table = {"image": [], "kind": [], "number": [], "artist": []}
    for label, name in enumerate(names):
        for index in range(per_class):
            table["image"].append(png(picture((index, *COLOURS[name][1:]))))
            table["kind"].append(name)
            table["number"].append(label)
            table["artist"].append("ann" if index % 2 else "bob")
    return table


@pytest.fixture
def labelled():
    """12 rows of 4, 5 and 3 images, of classes c, a, b in label order."""
    labels = [0] * 4 + [1] * 5 + [2] * 3
    return Dataset.from_dict(
        {"row": range(12), "label": labels}, features=Features(row=Value("int64"), label=ClassLabel(names=list("cab")))
    )


@pytest.fixture
def parquet(tmp_path):
    path = tmp_path / "images.parquet"
    Dataset.from_dict(rows(6)).to_parquet(path)
    return str(path)


class TestFewShot:
    def test_draws_shots_per_class(self, labelled):
        assert class_counts(few_shot(labelled, 3, seed=1)).tolist() == [3, 3, 3]

    def test_is_deterministic_and_seeded(self, labelled):
        first, again, other = (few_shot(labelled, 3, seed)["row"][:] for seed in (1, 1, 2))
        assert first == again != other

    def test_fewer_shots_are_a_subset(self, labelled):
        assert set(few_shot(labelled, 1, 7)["row"]) < set(few_shot(labelled, 2, 7)["row"])

    def test_a_small_class_gives_what_it_has(self, labelled):
        with pytest.warns(UserWarning, match=r"2 of 3 classes have fewer than 5 training images.*: c \(4\), b \(3\)"):
            chosen = few_shot(labelled, 5, seed=1)
        assert class_counts(chosen).tolist() == [4, 5, 3]

    def test_some_classes_alone_get_the_same_images(self, labelled):
        of_all, of_two = few_shot(labelled, 3, 1), few_shot(labelled, 3, 1, class_names=["b", "c"])
        assert of_two["row"][:] == of_all["row"][:3] + of_all["row"][6:]
        assert len(few_shot(labelled, 4, 1, class_names=["c", "a"])) == 8

    @pytest.mark.parametrize(("shots", "seed", "match"), [(0, 1, "shots=0"), (1, -1, "seed=-1")])
    def test_refuses_bad_numbers(self, labelled, shots, seed, match):
        with pytest.raises(ValueError, match=match):
            few_shot(labelled, shots, seed)

    def test_missing_column_names_those_present(self, labelled):
        with pytest.raises(ValueError, match="No label column 'kind'.*row, label"):
            few_shot(labelled, 1, 1, label_column="kind")

    def test_plain_integers_are_refused(self):
        with pytest.raises(TypeError, match="must be a datasets.ClassLabel"):
            few_shot(Dataset.from_dict({"label": [0, 1]}), 1, 1)


class TestClasses:
    @pytest.mark.parametrize(
        ("names", "base", "novel"), [("abcd", "ab", "cd"), ("abcde", "abc", "de"), ("ab", "a", "b")]
    )
    def test_base_is_the_first_half_rounded_up(self, names, base, novel):
        assert base_novel_split(list(names)) == (list(base), list(novel))

    def test_one_class_has_no_novel_half(self):
        with pytest.raises(ValueError, match="needs at least 2 classes"):
            base_novel_split(["only"])

    def test_select_classes_relabels_from_zero(self, labelled):
        novel = select_classes(labelled, ["a", "b"])
        assert novel.features["label"].names == ["a", "b"]
        assert novel["label"][:] == [0] * 5 + [1] * 3
        assert novel["row"][:] == list(range(4, 12))

    def test_select_classes_follows_the_order_given(self, labelled):
        assert select_classes(labelled, ["b", "c"])["label"][:] == [1] * 4 + [0] * 3

    def test_unknown_class(self, labelled):
        with pytest.raises(ValueError, match="Not classes of this data set: z. It has: c, a, b"):
            select_classes(labelled, ["a", "z"])

    def test_stratified_split_takes_the_same_share(self, labelled):
        train, test = stratified_split(labelled, 0.4, seed=0)
        assert class_counts(test).tolist() == [2, 2, 1]
        assert sorted(train["row"][:] + test["row"][:]) == list(range(12))
        assert stratified_split(labelled, 0.4, seed=0)[1]["row"][:] == test["row"][:]
        assert stratified_split(labelled, 0.4, seed=1)[1]["row"][:] != test["row"][:]

    def test_stratified_split_leaves_every_class_both(self, labelled):
        train, test = stratified_split(labelled, 0.99, seed=0)
        assert class_counts(train).tolist() == [1, 1, 1]
        assert class_counts(stratified_split(labelled, 0.01, seed=0)[1]).tolist() == [1, 1, 1]

    @pytest.mark.parametrize("fraction", [0, 1, -0.5, float("nan")])
    def test_stratified_split_refuses_fractions(self, labelled, fraction):
        with pytest.raises(ValueError, match="between 0 and 1"):
            stratified_split(labelled, fraction, seed=0)

    def test_stratified_split_needs_two_images(self, labelled):
        with pytest.raises(ValueError, match="Too few images.*: b"):
            stratified_split(labelled.select([0, 1, 4, 5, 9]), 0.5, seed=0)

    def test_features_of_the_same_image_stay_together(self):
        digests = [bytes([image]) * 16 for image in range(20)] * 2
        features = Features(image_features=List(Value("float32")), image_digest=Value("binary"))
        features["label"] = ClassLabel(names=list("ab"))
        table = {"image_features": [[1.0]] * 40, "image_digest": digests, "label": [0, 1] * 20}
        kept, off = stratified_split(Dataset.from_dict(table, features), 0.3, seed=0)
        assert len(off) == 12 and set(kept["image_digest"]).isdisjoint(off["image_digest"])

    def test_a_class_without_images_stays_so(self, labelled):
        kept, off = stratified_split(labelled.select([0, 1, 4, 5]), 0.5, seed=0)
        assert class_counts(kept).tolist() == class_counts(off).tolist() == [1, 1, 0]

    def test_names_of_several_classes(self):
        names = ["crane", "owl", "maillot", "maillot", "crane"]
        features = Features(row=Value("int64"), label=RepeatedNames(names=names))
        rows = Dataset.from_dict({"row": range(6), "label": [0, 1, 2, 3, 4, 4]}, features=features)
        base, novel = base_novel_split(names)
        assert class_counts(select_classes(rows, base)).tolist() == [1, 1, 1]
        assert class_counts(select_classes(rows, novel)).tolist() == [1, 2]
        assert class_counts(select_classes(rows, list(reversed(names)))).tolist() == [1, 1, 1, 1, 2]
        with pytest.raises(ValueError, match="stand for several classes.*: crane"):
            select_classes(rows, ["owl", "crane"])


class TestSources:
    def test_bytes_and_names(self, parquet):
        data = load_images(DataOptions(parquet, label_column="kind"))
        assert data["train"].features["label"].names == ["blue dark", "green light", "red"]
        assert class_counts(data["train"]).tolist() == [4, 4, 4]
        assert class_counts(data["test"]).tolist() == [2, 2, 2]
        row = data["test"][-1]
        assert (row["image"].mode, row["image"].size, row["label"]) == ("RGB", (20, 16), 2)
        assert row["image"].getpixel((0, 0))[1:] == COLOURS["red"][1:]

    def test_made_test_split_is_stable(self, parquet):
        one, two = (load_images(DataOptions(parquet, label_column="kind"))["test"] for _ in range(2))
        assert [image.tobytes() for image in one["image"]] == [image.tobytes() for image in two["image"]]

    def test_image_structs_and_numbers(self, tmp_path):
        features = Features(photo=Image(), number=Value("int32"))
        table = rows(4)
        for split in ("train", "test"):
            Dataset.from_dict(
                {"photo": [{"bytes": item, "path": None} for item in table["image"]], "number": table["number"]},
                features,
            ).to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
        options = DataOptions(str(tmp_path), image_column="photo", label_column="number", class_names=("x", "y", "z"))
        data = load_images(options)
        assert isinstance(data, DatasetDict)
        assert [len(data[split]) for split in ("train", "test")] == [12, 12]
        assert data["train"].features["label"].names == ["x", "y", "z"]
        assert data["train"].column_names == ["image", "label"]

    def test_image_folder(self, tmp_path):
        for split, count in (("train", 3), ("test", 2)):
            for name, colour in COLOURS.items():
                (tmp_path / split / name).mkdir(parents=True)
                for index in range(count):
                    picture(colour, mode="L" if index else "RGBA").save(tmp_path / split / name / f"{index}.png")
        data = load_images(DataOptions(str(tmp_path)))
        assert data["train"].features["label"].names == ["blue dark", "green light", "red"]
        assert class_counts(data["test"]).tolist() == [2, 2, 2]
        assert {image.mode for image in data["train"]["image"]} == {"RGB"}

    def test_split_column(self, tmp_path):
        table = rows(4)
        table["part"] = ["train", "train", "val", "held-out"] * 3
        Dataset.from_dict(table).to_parquet(tmp_path / "all.parquet")
        options = DataOptions(
            str(tmp_path / "all.parquet"), label_column="kind", split_column="part", test_split="held-out"
        )
        data = load_images(options)
        assert [len(data[split]) for split in ("train", "test")] == [6, 3]
        assert len(load_split(options, "val")) == 3
        with pytest.raises(ValueError, match="No split 'dev'. The data has: held-out, train, val"):
            load_split(options, "dev")

    def test_load_split_needs_no_training_split(self, tmp_path):
        Dataset.from_dict(rows(2)).to_parquet(tmp_path / "test-00000-of-00001.parquet")
        options = DataOptions(str(tmp_path), label_column="kind")
        assert len(load_split(options, "test")) == 6
        with pytest.raises(ValueError, match="No split 'train' to train on"):
            load_images(options)

    def test_load_split_agrees_with_load_images(self, parquet):
        options = DataOptions(parquet, label_column="kind")
        data = load_images(options)
        for split in ("train", "test"):
            assert load_split(options, split)["label"][:] == data[split]["label"][:]

    def test_load_split_has_the_classes_of_training(self, tmp_path):
        counts = {"red": (6, 2, 2), "blue-dark": (3, 1, 3), "green_light": (6, 2, 2)}
        names = ("train", "val", "test")
        table = {"image": [], "kind": [], "part": []}
        for kind, sizes in counts.items():
            for part, size in zip(names, sizes, strict=True):
                for column, value in (("image", png(picture(COLOURS[kind]))), ("kind", kind), ("part", part)):
                    table[column] += [value] * size
        path = tmp_path / "d.parquet"
        Dataset.from_dict(table).to_parquet(path)
        options = DataOptions(str(path), label_column="kind", split_column="part", min_images=5)
        trained = load_images(options)["train"].features["label"].names
        assert load_split(options, "val").features["label"].names == trained == ["blue dark", "green light", "red"]
        table["kind"][table["part"].index("val")] = "owl"
        Dataset.from_dict(table).to_parquet(path)
        with pytest.raises(ValueError, match="not among the classes of train and test: owl"):
            load_split(options, "val")

    @pytest.mark.parametrize("hidden", ("test", "train"))
    def test_load_split_reads_no_labels_that_it_does_not_need(self, hidden, tmp_path):
        for split in ("train", "validation", "test"):
            table = rows(3)
            if split == hidden:
                table["kind"] = [None] * len(table["kind"])
            features = Features(
                image=Value("binary"), kind=Value("string"), number=Value("int64"), artist=Value("string")
            )
            Dataset.from_dict(table, features).to_parquet(tmp_path / f"{split}.parquet")
        options = DataOptions(str(tmp_path), label_column="kind")
        assert load_split(options, "validation").features["label"].names == ["blue dark", "green light", "red"]
        with pytest.raises(ValueError, match=f"No row of the split '{hidden}' has a label.*: .*validation.*split\\)"):
            load_split(options, hidden)

    def test_a_split_without_labels_is_named_with_what_to_take_in_its_place(self, tmp_path):
        for split, labels in {"train": [0, 1, 0, 1], "validation": [0, 1], "test": [-1, -1]}.items():
            table = {"image": [png(picture("red"))] * len(labels), "label": labels}
            features = Features(image=Value("binary"), label=ClassLabel(names=["cat", "dog"]))
            Dataset.from_dict(table, features).to_parquet(tmp_path / f"{split}.parquet")
        said = r"No row of the split 'test' has a label.*Those that have: .*validation.*\(--test-split\)"
        for load in (load_images, load_unlabelled):
            with pytest.raises(ValueError, match=said):
                load(DataOptions(tmp_path))
        assert len(load_images(DataOptions(tmp_path, test_split="validation"))["test"]) == 2
        assert len(load_images(DataOptions(tmp_path / "train.parquet", test_fraction=0.5))["test"]) == 2
        with pytest.raises(ValueError, match="No row of the split 'train' has a label.*Nor has any.*--unlabelled"):
            load_images(DataOptions(tmp_path / "test.parquet"))

    def test_numbers_stand_for_what_the_training_split_says(self, tmp_path):
        for split, names in {"train": ["cat", "dog"], "test": ["dog", "cat"]}.items():
            features = Features(image=Value("binary"), label=ClassLabel(names=names))
            table = {
                "image": [png(picture("red"))] * 3,
                "label": [names.index(name) for name in ("cat", "dog", "dog")],
            }
            Dataset.from_dict(table, features).to_parquet(tmp_path / f"{split}.parquet")
        for given, expected in ((None, ["cat", "dog"]), ({"0": "A", "1": "B"}, ["A", "B"])):
            options = DataOptions(tmp_path, class_names=given)
            for test in (load_images(options)["test"], load_split(options)):
                assert test.features["label"].names == expected and test["label"][:] == [0, 1, 1]

    def test_a_test_split_of_another_name_is_not_made_up(self, tmp_path):
        for split in ("train", "validation"):
            Dataset.from_dict(rows(3)).to_parquet(tmp_path / f"{split}.parquet")
        with pytest.raises(ValueError, match="No split 'test'. The data has: .*validation"):
            load_split(DataOptions(str(tmp_path), label_column="kind", test_split="validation"), "test")

    def test_numbered_columns_filter_and_split_by_their_names(self, tmp_path):
        features = Features(
            image=Value("binary"), kind=Value("string"), artist=ClassLabel(names=["bob", "ann"]), number=Value("int64")
        )
        table = rows(6)
        table["artist"] = [features["artist"].str2int(name) for name in table["artist"]]
        path = tmp_path / "d.parquet"
        Dataset.from_dict(table, features).to_parquet(path)
        for condition in ("artist=ann", "artist!=bob"):
            data = load_images(DataOptions(str(path), label_column="kind", where=(condition,)))
            assert {image.getpixel((0, 0))[0] for split in data.values() for image in split["image"]} == {1, 3, 5}
        with pytest.raises(ValueError, match="No row is left.*Values of 'artist': ann, bob"):
            load_images(DataOptions(str(path), label_column="kind", where=("artist=eve",)))
        options = DataOptions(
            str(path), label_column="kind", split_column="artist", train_split="ann", test_split="bob"
        )
        assert len(load_images(options)["train"]) == 9

    @pytest.mark.parametrize("load", (load_images, load_unlabelled))
    def test_rows_without_an_image(self, load, tmp_path):
        table = rows(6)
        table["image"][4] = None
        for split in ("train", "test"):
            Dataset.from_dict(table, Features(image=Value("binary"), kind=Value("string"), artist=Value("string"),
                                              number=Value("int64"))).to_parquet(tmp_path / f"{split}.parquet")  # fmt: skip
        options = DataOptions(str(tmp_path), label_column="kind")
        with pytest.raises(ValueError, match="1 of 18 rows of the split 't.*' have no image, the first is number 4"):
            load(options)
        options = DataOptions(str(tmp_path), label_column="kind", where=("kind!=blue-dark", "artist=ann"))
        assert len(load(options)["train"]) == 6

    def test_where(self, parquet):
        data = load_images(DataOptions(parquet, label_column="kind", where=("artist=ann", "kind!=red")))
        assert data["train"].features["label"].names == ["blue dark", "green light"]
        reds = {image.getpixel((0, 0))[0] for split in data.values() for image in split["image"]}
        assert reds == {1, 3, 5}

    def test_filters_compare_as_files_write_values(self, tmp_path):
        path = str(tmp_path / "d.parquet")
        more = {"is_test": [False, True] * 9, "seen": [True, None, False] * 6, "year": [2020.0, 2021.5, None] * 6}
        Dataset.from_dict(rows(6) | more).to_parquet(path)
        left = {
            "is_test!=true": 9,
            "is_test=False": 9,
            "seen!=None": 12,
            "year!=2020": 12,
            "year=2020.0": 6,
            "year!=2021.50": 12,
        }
        for where, count in left.items():
            kept = load_images(DataOptions(path, label_column="kind", where=(where,), test_fraction=0))["train"]
            assert len(kept) == count
            stream = open_stream(DataOptions(path, label_column="kind", where=(where,)))
            assert len(list(stream.read(0))) == len(kept)
        with pytest.warns(UserWarning, match="'artist!=eve' leaves no row out. Values of 'artist': ann, bob"):
            load_images(DataOptions(path, label_column="kind", where=("artist!=eve",)))

    def test_min_images(self, tmp_path):
        table = {name: values[:-3] for name, values in rows(5).items()}
        Dataset.from_dict(table).to_parquet(tmp_path / "d.parquet")
        data = load_images(DataOptions(str(tmp_path / "d.parquet"), label_column="kind", min_images=3))
        assert data["train"].features["label"].names == ["blue dark", "green light"]

    def test_min_images_needs_the_labels_of_all_splits(self, tmp_path):
        table = rows(4)
        table["part"] = ["train", "train", "train", "test"] * 3
        Dataset.from_dict(table).to_parquet(tmp_path / "d.parquet")
        options = DataOptions(str(tmp_path / "d.parquet"), label_column="kind", split_column="part", min_images=2)
        with pytest.raises(ValueError, match="min_images=2.*labels of the training images are not read"):
            load_unlabelled(options)

    def test_raw_names(self, parquet):
        data = load_images(DataOptions(parquet, label_column="kind", clean_names=False))
        assert data["train"].features["label"].names == list(COLOURS)

    def test_names_given_for_numbers_are_taken_as_they_are(self, parquet):
        names = ("Boeing 737-800", "sea_lion", "cat")
        data = load_images(DataOptions(parquet, label_column="number", class_names=names))
        assert data["train"].features["label"].names == list(names)

    def test_class_names_set_the_order_of_named_classes(self, parquet):
        names = ("red", "green_light", "blue-dark")
        data = load_images(DataOptions(parquet, label_column="kind", class_names=names))
        assert data["test"].features["label"].names == ["red", "green light", "blue dark"]
        assert data["test"][0]["image"].getpixel((0, 0))[1:] == COLOURS["blue-dark"][1:]
        assert data["test"][0]["label"] == 2

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"label_column": "species"}, "No column 'species'. The data has: image, kind, number, artist"),
            ({"image_column": "photo"}, "No column 'photo'"),
            ({"image_column": "number"}, "does not hold images"),
            ({"label_column": "image"}, "Labels must be names or whole numbers"),
            ({"label_column": "number"}, "holds numbers: give the class names"),
            ({"label_column": "number", "class_names": ("x", "y")}, "out of range for 2 class names: 2"),
            ({"class_names": ("red", "blue-dark")}, "not among the class names given: green_light"),
            ({"class_names": (*COLOURS, "pink")}, "Classes without an image: pink"),
            ({"where": ("artist=eve",)}, "No row is left.*Values of 'artist': ann, bob"),
            ({"where": ("artist",)}, "COLUMN=VALUE"),
            ({"where": ("nobody=1",)}, "No column 'nobody'"),
            ({"min_images": 7}, "No class has 7 images. The largest has 6"),
            ({"split_column": "artist"}, "No split 'test'. The data has: ann, bob"),
            ({"train_split": "validation"}, "No split"),
            ({"test_split": "train"}, "must differ"),
            ({"path": "/nowhere/at/all"}, "No file or folder"),
        ],
    )
    def test_clear_errors(self, parquet, changes, match):
        options = DataOptions(**({"path": parquet, "label_column": "kind"} | changes))
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            load_images(options)


@pytest.fixture
def clip_processor():
    return CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


class TestTransforms:
    def test_evaluation_is_the_image_processor(self, clip_processor):
        images = [picture((200, 30, 60), (40, 20)), picture((1, 2, 3), (17, 33), mode="L")]
        batch = EvalTransform(clip_processor)({"image": images, "label": [1, 0]})
        expected = clip_processor([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
        assert torch.equal(batch["pixel_values"], expected)
        assert batch["labels"] == [1, 0]

    @pytest.mark.parametrize("crop", ["random_resized_crop", "random_crop"])
    @pytest.mark.parametrize(
        "processor",
        [
            CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
            ViTImageProcessorPil(size={"height": 16, "width": 16}),
        ],
    )
    def test_training_crops_normalise_like_the_model(self, crop, processor):
        transform = TrainTransform(processor, crop)
        pixels = transform({"image": [picture((250, 100, 7), (40, 20))], "label": [0]})["pixel_values"]
        assert pixels.shape == (1, 3, 16, 16)
        expected = (torch.tensor([250, 100, 7]) / 255 - torch.tensor(processor.image_mean)) / torch.tensor(
            processor.image_std
        )
        torch.testing.assert_close(pixels, expected.view(1, 3, 1, 1).expand_as(pixels), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("crop", ["random_resized_crop", "random_crop", "none"])
    def test_images_of_any_shape_keep_theirs(self, crop):
        processor = Siglip2ImageProcessorPil(patch_size=4, max_num_patches=12)
        transform = TrainTransform(processor, crop, scale=(0.5, 1.0))
        rows = {"image": [picture((250, 100, 7), (40, 10)), picture((1, 2, 3), (8, 30))], "label": [0, 1]}
        inputs = transform(rows)
        assert inputs["labels"] == [0, 1]
        assert inputs["pixel_values"].shape == (2, 12, 3 * 4 * 4)
        assert inputs["pixel_attention_mask"].sum(1).tolist() == inputs["spatial_shapes"].prod(1).tolist()
        (height, width), (other_height, other_width) = inputs["spatial_shapes"].tolist()
        assert height < width and other_height > other_width
        real = inputs["pixel_values"][0][inputs["pixel_attention_mask"][0].bool()]
        torch.testing.assert_close(real, torch.tensor([250, 100, 7]).repeat(16).expand_as(real) / 127.5 - 1)

    def test_training_is_random_and_seeded(self, clip_processor):
        noise = PILImage.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8))
        transform = TrainTransform(clip_processor)

        def draw(seed):
            torch.manual_seed(seed)
            return transform({"image": [noise], "label": [0]})["pixel_values"]

        assert torch.equal(draw(1), draw(1))
        assert not torch.equal(draw(1), draw(2))

    def test_flips_half_of_the_images(self, clip_processor):
        half = PILImage.fromarray(
            np.repeat(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8), 8, axis=1).repeat(16, 0)
        )
        torch.manual_seed(0)
        transform = TrainTransform(clip_processor, scale=(1.0, 1.0))
        pixels = transform({"image": [half] * 400, "label": [0] * 400})["pixel_values"]
        flipped = (pixels[:, 0, :, 0] > pixels[:, 0, :, -1]).all(-1).float().mean().item()
        assert flipped == pytest.approx(0.5, abs=0.1)

    def test_crop_boxes(self):
        torch.manual_seed(0)
        boxes = np.array([random_crop_box(120, 120, (0.08, 0.5)) for _ in range(2000)])
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        assert boxes.min() >= 0 and boxes.max() <= 120
        share, ratio = width * height / 120**2, width / height
        assert share.min() == pytest.approx(0.08, abs=0.01) and share.max() == pytest.approx(0.5, abs=0.01)
        assert share.mean() == pytest.approx(0.29, abs=0.01)
        assert 0.7 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.4
        assert np.log(ratio).mean() == pytest.approx(0, abs=0.02)

    def test_crop_of_an_extreme_image_falls_back_to_the_centre(self):
        assert random_crop_box(1000, 10, (1.0, 1.0)) == (493, 0, 506, 10)

    def test_bad_arguments(self, clip_processor):
        with pytest.raises(ValueError, match="`crop` must be one of.*crop='zoom'"):
            TrainTransform(clip_processor, crop="zoom")
        with pytest.raises(ValueError, match=r"scale=\(0, 1\)"):
            TrainTransform(clip_processor, scale=(0, 1))
        with pytest.raises(ValueError, match="no fixed size"):
            TrainTransform(CLIPImageProcessorPil(size={"shortest_edge": 16}, do_center_crop=False))

    def test_lazy_through_a_data_set(self, parquet, clip_processor):
        data = load_images(DataOptions(parquet, label_column="kind"))["test"].with_transform(
            EvalTransform(clip_processor)
        )
        row = data[0]
        assert row["pixel_values"].shape == (3, 16, 16) and row["labels"] == 0
        cached = cache_pixels(data)
        assert torch.equal(cached[0]["pixel_values"], row["pixel_values"]) and len(cached) == len(data)


@pytest.mark.parametrize("path", ["", " "])
def test_an_empty_path_is_not_the_current_folder(path):
    with pytest.raises(ValueError, match="Expected path to be text that is not empty"):
        DataOptions(path)
