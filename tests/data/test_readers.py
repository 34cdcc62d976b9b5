"""Data as people have them: tables, archives, patterns, saved data sets, ids on the Hub; and names that are mistyped."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from pyarrow import parquet

from peft_vprompt.data import DataOptions, load_images, readers
from peft_vprompt.data.options import describe, described, portable, require_outside
from peft_vprompt.data.streams import can_stream
from peft_vprompt.errors import CannotWriteError
from tests.support.labelled_images import paths_and_names, picture, write_folder
from tests.support.saved_models import save_colours
from tests.support.streamed_images import encoded, write_tar


@pytest.fixture
def images(tmp_path):
    """A folder `pictures` with four images of each of two classes, which the file names do not tell."""
    write_folder(tmp_path / "pictures", {"all": 8})
    return tmp_path


def rows(folder="pictures/all"):
    return [(f"{folder}/{index}.png", ("sea_lion", "owl")[index % 2]) for index in range(8)]


def separated(header, separator=",", table=None):
    return "\n".join(separator.join(row) for row in [header, *(table or rows())]) + "\n"


def as_json(table, label="label"):
    return [{"image": path, label: name} for path, name in table]


def read(path, **options):
    return load_images(DataOptions(str(path), **options))


def checked(data, names=("owl", "sea lion")):
    """Whether the data have eight images of the two classes, each with the label that it should have."""
    right = {picture("all", index).tobytes(): rows()[index][1] for index in range(8)}
    right |= {picture(name, index).tobytes(): name for name in ("sea_lion", "owl") for index in range(4)}
    assert {name: len(split) for name, split in data.items()} == {"train": 6, "test": 2}
    for split in data.values():
        assert split.features["label"].names == list(names)
        for row in split:
            assert names[row["label"]] == right[row["image"].tobytes()].replace("_", " ")
    return True


class TestTables:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("t.csv", separated(("image", "label"))),
            ("t.csv", "\ufeff" + separated(("file_name", "label"), ";")),
            ("t.tsv", separated(("path", "label"), "\t")),
            ("t.csv", separated(("image", "label"), ", ").replace("png", "png ")),
            ("t.csv", separated(("image", "label")).replace("/", "\\")),
            ("t.jsonl", "\n".join(map(json.dumps, as_json(rows())))),
            ("t.json", json.dumps(as_json(rows()))),
        ],
        ids=["csv", "semicolons", "tsv", "blanks", "Windows", "jsonl", "json"],
    )
    def test_paths_are_relative_to_the_table(self, images, name, text, monkeypatch):
        (images / name).write_text(text, encoding="utf-8")
        assert checked(read(images / name))
        monkeypatch.chdir(images / "pictures")
        assert checked(read(f"../{name}"))

    @pytest.mark.parametrize("ending", ["csv", "jsonl"])
    def test_columns_that_nobody_uses(self, images, ending):
        """Numbers too large for a column of numbers, and in JSON lines values of several types, are read as text."""
        others = [{"code": 10**20 + i, "note": "" if i % 2 else i} for i in range(8)]
        table = [row | other for row, other in zip(as_json(rows()), others, strict=True)]
        text = separated(table[0], table=[[str(value) for value in row.values()] for row in table])
        (images / f"t.{ending}").write_text(text if ending == "csv" else "\n".join(map(json.dumps, table)))
        assert checked(read(images / f"t.{ending}"))
        assert len(read(images / f"t.{ending}", where=(f"code!={10**20}",), test_fraction=0)["train"]) == 7

    def test_a_column_called_as_image_features_are(self, images):
        Dataset.from_list([row | {"image_features": [0.5, 1.0]} for row in as_json(rows())]).to_parquet(
            images / "t.parquet"
        )
        assert checked(read(images / "t.parquet"))

    def test_lists_beside_other_values(self, images):
        table = [row | {"tags": [i] if i % 2 else i} for i, row in enumerate(as_json(rows()))]
        (images / "t.jsonl").write_text("\n".join(map(json.dumps, table)))
        with pytest.warns(UserWarning, match="The column 'tags' of .*t.jsonl is left out.*Write them alike"):
            assert checked(read(images / "t.jsonl"))
        with pytest.raises(ValueError, match="No column 'tags'"), pytest.warns(UserWarning, match="'tags'"):
            read(images / "t.jsonl", label_column="tags", multi_label=True)

    def test_parquet_of_paths(self, images):
        Dataset.from_list(as_json(rows())).to_parquet(images / "t.parquet")
        assert checked(read(images / "t.parquet"))

    def test_parquet_files_that_say_otherwise_what_they_hold(self, tmp_path):
        """Each table has its own names of classes and its own folder of images, and the same size and time."""
        for name, classes in (("a", ["ant", "cat"]), ("b", ["bee", "ant"])):
            write_folder(tmp_path / name, {classes[0]: 1})
            (tmp_path / name / classes[0]).rename(tmp_path / name / "images")
            features = Features({"image": Value("string"), "label": ClassLabel(names=classes)})
            table = Dataset.from_dict({"image": ["images/0.png"] * 4, "label": [0, 0, 1, 1]}, features)
            table.to_parquet(tmp_path / name / "t.parquet")
        data = read(tmp_path, test_fraction=0)["train"]
        names = [data.features["label"].names[label] for label in data["label"]]
        assert names == ["ant", "ant", "cat", "cat", "bee", "bee", "ant", "ant"]
        right = [picture(name, 0).tobytes() for name in ("ant", "bee")]
        assert [data[row]["image"].tobytes() for row in (0, 4)] == right

    @pytest.mark.parametrize("several", [False, True])
    def test_parquet_files_of_images_with_their_own_names_of_classes(self, several, tmp_path):
        for i, classes in enumerate((["ant", "bee"], ["bee", "ant"])):
            label = ClassLabel(names=classes)
            features = Features({"image": Image(), "label": List(label) if several else label})
            labels = [[0], [1], [0, 1]] if several else [0, 1, 1]
            table = Dataset.from_dict({"image": [encoded("ant", 0)] * 3, "label": labels}, features)
            table.to_parquet(tmp_path / f"train-{i}.parquet")
        data = read(tmp_path, test_fraction=0, multi_label=several)["train"]
        assert data.features["label"].names == ["ant", "bee"] and data[5]["image"].size == picture("ant", 0).size
        hot = [[1, 0], [0, 1], [1, 1], [0, 1], [1, 0], [1, 1]]
        assert data["label"][:] == (hot if several else [0, 1, 1, 1, 0, 0])

    @pytest.mark.parametrize("first", [0, 1])
    @pytest.mark.parametrize("kind", ["int64", "string", "large_string"])
    def test_parquet_files_of_which_one_says_what_it_holds(self, kind, first, tmp_path):
        features = Features({"image": Image(), "label": ClassLabel(names=["ant", "bee"]), "size": Value("int32")})
        rows = {"image": [encoded("ant", 0)] * 2, "label": [1, 0], "size": [1, 2]}
        Dataset.from_dict(rows, features).to_parquet(tmp_path / f"train-{first}.parquet")
        rows["label"] = [1, 0] if kind == "int64" else ["bee", "ant"]
        plain = Features({"image": Image(), "label": Value(kind), "size": Value("int64")})
        table = Dataset.from_dict(rows, plain).data.table.replace_schema_metadata(None)
        parquet.write_table(table, tmp_path / f"train-{1 - first}.parquet")
        data = read(tmp_path, test_fraction=0)["train"]
        assert [data.features["label"].names[label] for label in data["label"]] == ["bee", "ant"] * 2

    def test_parquet_files_that_do_not_agree_on_numbers(self, tmp_path):
        for i, feature in enumerate((ClassLabel(names=["ant", "bee"]), ClassLabel(names=["bee"]), Value("int64"))):
            features = Features({"image": Image(), "label": feature})
            Dataset.from_dict({"image": [encoded("ant", 0)], "label": [0]}, features).to_parquet(
                tmp_path / f"{i}.parquet"
            )
        with pytest.raises(ValueError, match="Write the classes as text"):
            read(tmp_path, test_fraction=0)

    @pytest.mark.parametrize("kind", ["parquet", "tar"])
    def test_another_table_of_the_same_time_is_read_anew(self, kind, tmp_path):
        found = []
        for name in ("ant", "bee"):
            if kind == "tar":
                write_tar(tmp_path / "t.tar", {"0.png": encoded(name, 0), "0.txt": name.encode()})
            else:
                Dataset.from_dict({"image": [encoded(name, 0)], "txt": [name]}).to_parquet(tmp_path / "t.parquet")
            os.utime(tmp_path / f"t.{kind}", (1, 1))
            found += readers.read_rows(str(tmp_path), image_column="image", label_column="txt")["train"]["txt"]
        assert found == ["ant", "bee"]

    def test_tables_by_split(self, images):
        (images / "tables").mkdir()
        for split, part in (("train", slice(0, 4)), ("valid", slice(4, 6)), ("test", slice(6, 8))):
            table = separated(("image", "label"), table=rows("../pictures/all")[part])
            (images / "tables" / f"{split}.csv").write_text(table)
        data = load_images(DataOptions(str(images / "tables")), validation=True)
        assert {name: len(split) for name, split in data.items()} == {"train": 4, "validation": 2, "test": 2}

    def test_a_column_that_is_text_in_one_file_is_text_in_all(self, images):
        tables = {"train": ("7", "x"), "test": ("8", "9")}
        for place, (one, other) in tables.items():
            for number, note in enumerate((one, other)):
                table = [(path, name, note, "5") for path, name in rows()]
                (images / f"{place}-{number}.csv").write_text(
                    separated(("image", "label", "note", "size"), table=table)
                )
        splits = readers.read_rows(str(images / "*.csv"), image_column="image", label_column="label")
        assert {name: set(split["note"]) for name, split in splits.items()} == {
            "train": {"7", "x"},
            "test": {"8", "9"},
        }
        assert splits["train"].features["size"].dtype == "int64"

    def test_rows_of_one_file_stay_together(self, images):
        (images / "t.csv").write_text(separated(("image", "label"), table=[*rows(), *rows()[::-1], *rows()]))
        data = read(images / "t.csv", val_fraction=0.5)
        kept = {name: {image.tobytes() for image in split["image"]} for name, split in data.items()}
        assert {name: len(some) for name, some in kept.items()} == {"train": 2, "test": 2, "validation": 4}
        assert len(set.union(*kept.values())) == 8 and sum(map(len, data.values())) == 24

    def test_labels_that_look_like_something_else(self, images):
        table = [(path, ("NA", "007", "1e5", "nan")[index % 4]) for index, (path, _) in enumerate(rows())]
        (images / "t.csv").write_text(separated(("image", "label"), table=table))
        assert read(images / "t.csv")["train"].features["label"].names == ["007", "1e5", "NA", "nan"]

    def test_a_table_beside_the_images(self, images):
        (images / "pictures" / "all" / "labels.csv").write_text(separated(("image", "label"), table=rows(".")))
        with pytest.warns(UserWarning, match="labels.csv. Name one as the data"), pytest.raises(ValueError):
            read(images / "pictures" / "all")
        assert checked(read(images / "pictures" / "all" / "labels.csv"))

    def test_parquet_among_class_folders(self, tmp_path):
        path = write_folder(tmp_path, {"a": 3, "b": 3})
        Dataset.from_list(
            as_json([("a/0.png", "x"), ("a/1.png", "x"), ("b/0.png", "y"), ("b/1.png", "y")])
        ).to_parquet(tmp_path / "t.parquet")
        with pytest.warns(UserWarning, match="parquet files, which are read, and 6 images"):
            assert read(path)["train"].features["label"].names == ["x", "y"]

    def test_a_row_without_a_label(self, images):
        (images / "t.csv").write_text(separated(("image", "label"), table=[*rows()[:5], ("pictures/all/5.png", "")]))
        with pytest.raises(
            ValueError, match=r"Rows without a label in the column 'label': 1 of 6.*where 'label!=None'"
        ):
            read(images / "t.csv")
        assert sum(map(len, read(images / "t.csv", where=("label!=None",)).values())) == 5

    @pytest.mark.parametrize("label", [[0, 1, 1], {"name": "owl"}, 0.5])
    def test_labels_of_another_kind(self, images, label):
        (images / "t.jsonl").write_text("\n".join(json.dumps({"image": path, "label": label}) for path, _ in rows()))
        with pytest.raises(ValueError, match="Labels must be names or whole numbers"):
            read(images / "t.jsonl")

    def test_missing_files_are_named(self, images):
        (images / "t.csv").write_text(separated(("image", "label"), table=[*rows(), ("gone.png", "owl")]))
        with pytest.raises(ValueError, match=r"1 of 9 images.*1 not there \(.*gone.png\)"):
            read(images / "t.csv")

    def test_addresses_are_not_followed(self, images):
        table = [(f"https://example.org/{path}", name) for path, name in rows()]
        (images / "t.csv").write_text(separated(("image", "label"), table=table))
        with pytest.raises(ValueError, match=r"8 of 8 images.*addresses.*https://example.org/.*--follow-urls"):
            read(images / "t.csv")
        assert len(read(images / "t.csv", follow_urls=True)["train"]) == 6

    @pytest.mark.parametrize(
        ("name", "text", "match"),
        [
            ("t.jsonl", "{'image': 1}", "Cannot read the table .*t.jsonl"),
            ("t.jsonl", "[1, 2]", "one JSON object for each image"),
            ("t.csv", separated(("picture", "label")), "No column 'image'. The data has: picture, label"),
            ("t.csv", separated(("image", "kind")), "No column 'label'. The data has: image, kind"),
            ("t.xlsx", "x", r"Expected a folder of images, or a data file that ends in \.csv.*t.xlsx"),
            ("0.png", "x", "Received an image: .*0.png"),
            ("t.zip", "x", "Cannot unpack .*t.zip: File is not a zip file"),
            ("t.tar", "x", "Cannot read .*t.tar as a tar of the WebDataset form"),
            ("t.csv", "a/0.png,owl\na/1.png,owl\n", "first line, such as image,label. Received an image, 'a/0.png'"),
            ("t.csv", "image,label\n", "Cannot read the table .*t.csv.*a row for each image"),
            ("t.csv", "image,label\npictures/0.png,owl,x\npictures/1.png,owl,x\n", "Cannot read the table .*t.csv"),
        ],
    )
    def test_files_that_are_something_else(self, images, name, text, match):
        (images / name).write_text(text)
        with pytest.raises(ValueError, match=match):
            read(images / name)


class TestMetadata:
    @pytest.mark.parametrize("name", ("metadata.csv", "metadata.jsonl"))
    def test_labels(self, images, name):
        folder = images / "pictures"
        table = rows("all")
        lines = "\n".join(json.dumps({"file_name": path, "label": kind}) for path, kind in table)
        (folder / name).write_text(separated(("file_name", "label"), table=table) if name.endswith("csv") else lines)
        assert checked(read(folder))

    def test_both_files_that_name_the_same_images_are_refused(self, images):
        lines = "\n".join(json.dumps({"file_name": path, "label": kind}) for path, kind in rows("all"))
        (images / "pictures" / "metadata.jsonl").write_text(lines)
        (images / "pictures" / "metadata.csv").write_text(separated(("file_name", "label"), table=rows("all")))
        with pytest.raises(ValueError, match="Keep one of the two files"):
            read(images / "pictures")

    def test_two_files_that_name_other_images(self, images):
        table = rows("all")
        lines = "\n".join(json.dumps({"file_name": path, "label": kind}) for path, kind in table[:4])
        (images / "pictures" / "metadata.jsonl").write_text(lines)
        twice = [*table[4:], table[-1]]
        (images / "pictures" / "metadata.csv").write_text(separated(("file_name", "label"), table=twice))
        data = read(images / "pictures", test_fraction=0)["train"]
        assert len(data) == len(table) + 1

    def test_folders_are_the_classes_where_it_says_none(self, tmp_path):
        path = write_folder(tmp_path, {"cat": 3, "dog": 3})
        (tmp_path / "metadata.csv").write_text("file_name,year\ncat/0.png,1\ncat/1.png,1\ndog/0.png,2\ndog/1.png,2\n")
        with pytest.warns(UserWarning, match="2 images in .* are left out: metadata.csv does not name them"):
            data = read(path, test_fraction=0)["train"]
        assert paths_and_names(data) == {("cat", "cat"), ("dog", "dog")} and len(data) == 4

    def test_a_column_of_another_name(self, images):
        folder = images / "pictures" / "all"
        table = [(Path(path).name, kind) for path, kind in rows("all")]
        (folder / "metadata.csv").write_text(separated(("file_name", "kind"), table=table))
        with pytest.raises(ValueError, match="No column 'label' in .*metadata.csv.*It has: kind.*--label-column"):
            read(folder)
        assert checked(read(folder, label_column="kind"))

    def test_in_the_folders_of_splits(self, tmp_path):
        path = write_folder(tmp_path, {"train": 4, "test": 2})
        for split, count in (("train", 4), ("test", 2)):
            table = [(f"{index}.png", "ab"[index % 2], "7" if split == "train" else "x") for index in range(count)]
            (tmp_path / split / "metadata.csv").write_text(separated(("file_name", "label", "note"), table=table))
        data = read(path)
        assert {name: split["label"][:] for name, split in data.items()} == {"train": [0, 1, 0, 1], "test": [0, 1]}


class TestArchives:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    @pytest.mark.parametrize("base", (None, "photos"))
    def test_a_zip_of_a_folder(self, tmp_path, base):
        write_folder(tmp_path / "in" / (base or ""), {"sea_lion": 4, "owl": 4})
        archive = shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "in", base)
        for _ in range(2):
            assert checked(read(archive))

    def test_another_zip_of_the_same_size_and_time_is_unpacked_anew(self, tmp_path):
        names = {}
        for kind in ("owl", "elk"):
            write_folder(tmp_path / kind, {kind: 4, "cat": 4})
            archive = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / kind))
            os.utime(archive, (1, 1))
            names[kind] = (read(archive)["train"].features["label"].names, archive.stat().st_size)
        assert names["owl"] == (["cat", "owl"], names["elk"][1]) and names["elk"][0] == ["cat", "elk"]

    @pytest.mark.parametrize(("bit", "said"), [(1, "password required"), (1 << 5, "compressed patched data|patched")])
    def test_a_zip_that_cannot_be_unpacked_is_named(self, tmp_path, bit, said):
        write_folder(tmp_path / "in", {"a": 3, "b": 3})
        path = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "in"))
        content = bytearray(path.read_bytes())
        for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # flags of an entry, twice
            start = content.find(mark)
            while start >= 0:
                content[start + place] |= bit
                start = content.find(mark, start + 1)
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"Cannot unpack .*photos.zip.*({said})"):
            read(path)
        assert not any((tmp_path / "cache").rglob("*.png"))

    @pytest.mark.parametrize("kind", ["zip", "gztar"])
    def test_an_archive_out_of_proportion_is_not_unpacked(self, kind, tmp_path, monkeypatch):
        monkeypatch.setattr(readers, "_UNPACKED_MORE", 1000)
        write_folder(tmp_path / "in", {"a": 3, "b": 3})
        (tmp_path / "in" / "a" / "bomb.txt").write_bytes(bytes(10**6))
        archive = shutil.make_archive(str(tmp_path / "photos"), kind, tmp_path / "in")
        with pytest.raises(ValueError, match=r"photos.* bytes, which holds 1,00\d,\d+. Unpack it yourself"):
            read(archive)
        assert not any((tmp_path / "cache").rglob("bomb.txt"))

    def test_a_cache_that_cannot_be_written_is_named(self, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "file" / "cache")
        write_folder(tmp_path / "in", {"a": 3, "b": 3})
        archive = shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "in")
        for data in (archive, save_colours(tmp_path / "colours.parquet")):
            with pytest.raises(CannotWriteError, match="Cannot write '.*file/cache.*set HF_DATASETS_CACHE to another"):
                read(data, label_column="colour")

    def test_a_zip_of_splits(self, tmp_path):
        write_folder(tmp_path / "in", {"train/a": 3, "train/b": 3})
        archive = shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "in")
        assert read(archive)["train"].features["label"].names == ["a", "b"]

    @pytest.mark.parametrize("kind", ["zip", "tar"])
    def test_an_archive_for_each_split(self, kind, tmp_path):
        (tmp_path / "packed").mkdir()
        for split, base in (("train", None), ("test", "test")):
            write_folder(tmp_path / split / (base or ""), {"a": 2, "b": 2})
            shutil.make_archive(str(tmp_path / "packed" / split), kind, tmp_path / split, base)
        data = read(tmp_path / "packed")
        assert {name: rows["label"][:] for name, rows in data.items()} == {"train": [0, 0, 1, 1], "test": [0, 0, 1, 1]}
        assert kind == "zip" or not can_stream(DataOptions(tmp_path / "packed"))
        shutil.make_archive(str(tmp_path / "packed" / "train"), kind, tmp_path / "test")
        with pytest.raises(ValueError, match=r"split 'train' alone in .*train.*Received the splits: test. Unpack"):
            read(tmp_path / "packed")

    @pytest.mark.parametrize("kind", ("tar", "gztar"))
    @pytest.mark.parametrize("base", (None, "photos"))
    def test_a_tar_of_a_folder(self, tmp_path, base, kind):
        write_folder(tmp_path / "in" / (base or ""), {"sea_lion": 4, "owl": 4})
        (tmp_path / "in" / (base or "") / "owl" / "notes.txt").write_text("not an image")
        assert checked(read(shutil.make_archive(str(tmp_path / "photos"), kind, tmp_path / "in", base)))

    def test_a_tar_that_reaches_outside(self, tmp_path):
        write_folder(tmp_path / "in", {"a": 3, "b": 3})
        with tarfile.open(tmp_path / "t.tar", "w") as file:
            for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
                file.add(tmp_path / "in" / name, name)
            file.add(tmp_path / "in" / "a" / "2.png", "../../../outside/2.png")
        assert len(read(tmp_path / "t.tar", test_fraction=0)["train"]) == 4
        assert not list(tmp_path.rglob("outside"))

    def test_names_where_tar_files_have_numbers(self, images, tmp_path):
        """The remedy that the error names works."""
        for entry in ("cls", "txt"):
            with tarfile.open(tmp_path / f"{entry}.tar", "w") as file:
                for index, (path, kind) in enumerate(rows()):
                    file.add(images / path, f"{index}.png")
                    member = tarfile.TarInfo(f"{index}.{entry}")
                    member.size = len(kind)
                    file.addfile(member, io.BytesIO(kind.encode()))
        with pytest.raises(ValueError, match="cls.tar.*--label-column txt"):
            read(tmp_path / "cls.tar")
        assert checked(read(tmp_path / "txt.tar", label_column="txt"))

    @pytest.mark.parametrize("ending", ("tar", "tar.gz"))
    def test_tar_files(self, images, ending):
        path = images / f"shard-000.{ending}"
        with tarfile.open(path, "w:gz" if ending.endswith("gz") else "w") as file:
            for index in range(8):
                entries = {
                    "png": (images / "pictures" / "all" / f"{index}.png").read_bytes(),
                    "cls": str(index % 2).encode(),
                    "json": json.dumps({"kind": rows()[index][1]}).encode(),
                }
                for kind, content in entries.items():
                    entry = tarfile.TarInfo(f"{index:03d}.{kind}")
                    entry.size = len(content)
                    file.addfile(entry, io.BytesIO(content))
        assert checked(read(path, label_column="json.kind"))
        assert checked(read(path, class_names={"1": "owl", "0": "sea lion"}), ["sea lion", "owl"])


class TestSaved:
    def test_what_save_to_disk_wrote(self, tmp_path):
        data = read(write_folder(tmp_path / "in", {"sea_lion": 4, "owl": 4}))
        data.save_to_disk(tmp_path / "both")
        assert checked(read(tmp_path / "both"))
        DatasetDict(data)["train"].save_to_disk(tmp_path / "one")
        assert {name: len(split) for name, split in read(tmp_path / "one").items()} == {"train": 4, "test": 2}


class TestPatterns:
    @pytest.mark.parametrize("pattern", ("*/*.png", "*", "**/*.png"))
    def test_images(self, tmp_path, pattern):
        path = write_folder(tmp_path, {"sea_lion": 4, "owl": 4})
        assert checked(read(f"{path}/{pattern}"))

    def test_some_of_the_folders(self, tmp_path):
        path = write_folder(tmp_path, {"a1": 2, "a2": 2, "b": 2})
        assert read(f"{path}/a?")["train"].features["label"].names == ["a1", "a2"]

    def test_tables(self, images):
        for part in range(2):
            table = separated(("image", "label"), table=rows()[4 * part : 4 * part + 4])
            (images / f"part{part}.csv").write_text(table)
        assert checked(read(images / "part*.csv"))

    def test_nothing_fits(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="No file or folder fits"):
            read(tmp_path / "*.jpg")


class TestNames:
    @pytest.mark.parametrize("given", ("{}/fotos", "fotos", "./fotos", "fotos.csv", "fotos/cats"))
    def test_a_mistyped_path(self, given, tmp_path, monkeypatch):
        write_folder(tmp_path, {"photos/cats": 1})
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        with pytest.raises(FileNotFoundError, match="No file or folder .*fotos.*'photos'"):
            read(given.format(tmp_path))

    def test_a_folder_without_images(self, tmp_path):
        (tmp_path / "a.heic").write_text("x")
        with pytest.raises(ValueError, match=r"No images in .*1 of .heic.*\.jpg"):
            read(tmp_path)

    def test_an_id_on_the_hub(self, tmp_path, monkeypatch):
        data = read(write_folder(tmp_path / "in", {"sea_lion": 4, "owl": 4}))
        asked = []
        monkeypatch.setattr(readers, "load_dataset", lambda name: asked.append(name) or data)
        monkeypatch.chdir(tmp_path)
        assert checked(read("someone/animals")) and asked == ["someone/animals"]


class TestDescriptions:
    def test_a_relative_path_can_be_read_from_anywhere(self, tmp_path, monkeypatch):
        write_folder(tmp_path / "photos", {"a": 2, "b": 2})
        monkeypatch.chdir(tmp_path)
        about = portable(describe(DataOptions("photos", where=("label=a",), class_names={"a": "A"})), "runs/one")
        assert about["path"] == "../../photos"
        monkeypatch.chdir("/")
        again = described(json.loads(json.dumps(about)), tmp_path / "runs" / "one")
        assert again == DataOptions(str(tmp_path / "photos"), where=("label=a",), class_names={"a": "A"})

    def test_data_in_the_folder_of_the_results(self, tmp_path):
        write_folder(tmp_path / "photos", {"a": 2})
        about = portable(describe(DataOptions(str(tmp_path / "photos"))), tmp_path)
        assert about["path"] == "./photos"
        assert described(about, tmp_path).path == str(tmp_path / "photos")

    def test_an_output_in_the_place_of_a_file_with_brackets(self, tmp_path):
        data = tmp_path / "birds [2020].csv"
        data.write_text(separated(("image", "label")))
        with pytest.raises(ValueError, match="output outside of the data"):
            require_outside(DataOptions(data), data)
        require_outside(DataOptions(data), tmp_path / "birds 2.csv")

    def test_a_link_to_a_file_keeps_its_name(self, tmp_path):
        (tmp_path / "blobs").mkdir()
        (tmp_path / "blobs" / "1a2b").write_text(separated(("image", "label")))
        (tmp_path / "t.csv").symlink_to(tmp_path / "blobs" / "1a2b")
        about = portable(describe(DataOptions(str(tmp_path / "t.csv"))), tmp_path / "runs")
        assert described(about, tmp_path / "runs").path == str(tmp_path / "t.csv")

    def test_an_id_stays(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        about = portable(describe(DataOptions("someone/animals")), tmp_path)
        assert described(about, tmp_path / "elsewhere") == DataOptions("someone/animals")
        assert portable(None, tmp_path) is None
