"""Names of classes are found by what they say: files of names, folders, numbers, adapters."""

import json

import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value

from peft_vprompt.data import DataOptions, class_counts, load_images, load_split, read_class_names, with_class_names
from peft_vprompt.data.class_names import RepeatedNames, class_label, find_classes, in_label_order, names_by_number
from tests.support.labelled_images import paths_and_names, write_folder


WNIDS = "n01440764 tench, Tinca tinca\nn01443537 goldfish\n"
BOTH_KEYS = {"0": "tench", "1": "shark", "n01": "tench", "n02": "shark"}
SETTER_FIRST = {"n02100735": "setter", "n02119789": "kit_fox"}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("n.txt", "sea lion\n\n  owl \n", ("sea lion", "owl")),
        ("n.txt", "\ufeffcat\ndog", ("cat", "dog")),
        ("n.json", '["sea lion", "owl"]', ("sea lion", "owl")),
        ("n.json", '{"b": "owl", "a": "sea lion"}', {"b": "owl", "a": "sea lion"}),
        ("n.json", '{"owl": 1, "sea lion": 0}', ("sea lion", "owl")),
        ("n.json", '{"1": ["n02", "shark"], "0": ["n01", "tench"]}', BOTH_KEYS),
        ("n.json", '{"a": ["n01", "tench"], "b": ["n02", "shark"]}', {"n01": "tench", "n02": "shark"}),
        ("n.txt", "n02119789 7 kit_fox\nn02100735 2 setter\n", {"2": "setter", "7": "kit_fox"} | SETTER_FIRST),
        ("n.txt", "{0: 'tench, Tinca tinca',\n 1: \"bull's eye\"}\n", {"0": "tench, Tinca tinca", "1": "bull's eye"}),
        ("n.txt", "['sea lion', 'owl']", ("sea lion", "owl")),
        ("n.csv", "folder,name\na,sea lion\nb,owl\n", {"a": "sea lion", "b": "owl"}),
        ("n.csv", 'a,"sea lion, grey"\n', {"a": "sea lion, grey"}),
        ("n.csv", "a;owl\n", {"a": "owl"}),
        ("n.csv", "class,label\nsea lion,1\nowl,0\n", ("owl", "sea lion")),
        ("n.csv", "name,id\nowl,3\nfox,7\n", {"3": "owl", "7": "fox"}),
        ("n.csv", "animal,code\nowl,0\nfox,1\n", ("owl", "fox")),
        ("n.csv", "folder,name\nzero,0\none,1\n", {"zero": "0", "one": "1"}),
        ("n.csv", "class,model\na,707\nb,727\n", {"a": "707", "b": "727"}),
        ("n.csv", "animal,code\nowl,1\nfox,2\n", {"1": "owl", "2": "fox"}),
        ("n.txt", "owl, 0\nsea lion, grey, 1\n", ("owl", "sea lion, grey")),
        ("n.csv", "class name\nsea lion\nowl\n", ("sea lion", "owl")),
        ("n.tsv", "a\tsea lion\n", {"a": "sea lion"}),
        ("n.txt", "a\tsea lion\nb\towl\n", {"a": "sea lion", "b": "owl"}),
        ("n.txt", "0 tench\n10: goldfish\n2, shark\n", {"0": "tench", "10": "goldfish", "2": "shark"}),
        ("n.txt", WNIDS, {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish"}),
        ("n.txt", "n01440764: tench\nn01443537 - fox-red\n", {"n01440764": "tench", "n01443537": "fox-red"}),
        ("n.txt", "0 - tench\n1=shark\n", {"0": "tench", "1": "shark"}),
        ("n.txt", "737-800\n747-400\n", ("737-800", "747-400")),
        ("n.txt", "magpie, Pica pica\nowl\n", ("magpie, Pica pica", "owl")),
    ],
)
def test_files_of_names(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_class_names(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("n.txt", "\n", "no class name"),
        ("n.json", '{"a": [1]}', "JSON list of strings"),
        ("n.json", '{"classes": ["cat", "dog"]}', "JSON list of strings"),
        ("n.json", '{"a": 0, "b": 0}', "one number to several"),
        ("n.json", "cat\ndog", "Expected JSON in .*n.json"),
        ("n.csv", "a,x\na,y\n", "twice: a"),
        ("n.csv", "a,x,1\n", "two columns"),
        ("n.txt", "{0: tench,\n1: goldfish}\n", "list or dict as Python or JSON writes it.*Save it as JSON"),
        ("n.yaml", "names:\n  0: cat\n", "one name per line, JSON.*n.yaml"),
        ("n.txt", b"caf\xe9\nth\xe9\n", "Expected text in UTF-8 in .*n.txt.*at byte 3.*Save it"),
    ],
)
def test_bad_files_of_names(tmp_path, name, text, match):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=match):
        read_class_names(tmp_path / name)


@pytest.mark.parametrize("first", (0, 1, 5))
@pytest.mark.parametrize("form", ("{}", "{:03d}"))
def test_numbered_folders_are_in_the_order_of_numbers(tmp_path, first, form):
    numbers = range(first, first + 12)
    path = write_folder(tmp_path, {form.format(number): 2 for number in numbers})
    names = tuple(f"name of {number}" for number in numbers)
    rows = load_images(DataOptions(path, class_names=names))["train"]
    assert rows.features["label"].names == list(names)
    assert paths_and_names(rows) == {(form.format(number), f"name of {number}") for number in numbers}
    mapping = {str(number): f"name of {number}" for number in reversed(numbers)}
    assert paths_and_names(load_images(DataOptions(path, class_names=mapping))["train"]) == paths_and_names(rows)


def test_numbered_folders_without_names(tmp_path):
    path = write_folder(tmp_path, {str(number): 2 for number in (10, 9, 100)})
    assert load_images(DataOptions(path))["train"].features["label"].names == ["9", "10", "100"]


def test_part_of_the_numbered_folders(tmp_path):
    names = tuple(f"name of {number}" for number in range(12))
    counted = write_folder(tmp_path / "from-0", {"0": 2, "7": 2, "10": 2})
    rows = load_split(DataOptions(counted, class_names=names))
    assert paths_and_names(rows) == {("0", "name of 0"), ("7", "name of 7"), ("10", "name of 10")}
    unclear = write_folder(tmp_path / "unclear", {"3": 2, "7": 2})
    with pytest.raises(ValueError, match=r"2 numbered classes \(3, 7\).*12 names.*mapping"):
        load_split(DataOptions(unclear, class_names=names))
    rows = load_split(DataOptions(unclear, class_names={"3": "c", "7": "g", "8": "h"}))
    assert paths_and_names(rows) == {("3", "c"), ("7", "g")}


@pytest.mark.parametrize("names", [("oat", "Sea_Lion"), ("Sea_Lion", "oat")])
def test_a_list_of_the_folders_sets_the_order_alone(tmp_path, names):
    path = write_folder(tmp_path, {"sea-lion": 3, "oat": 3})
    rows = load_images(DataOptions(path, class_names=names))["train"]
    assert rows.features["label"].names == list(names)
    assert paths_and_names(rows) == {("sea-lion", "Sea_Lion"), ("oat", "oat")}


def test_names_are_not_given_by_position(tmp_path):
    path = write_folder(tmp_path, {"n01440764": 3, "n01443537": 3})
    with pytest.raises(ValueError, match=r"n01440764, n01443537.*nearest.*'n01440764'.*never by their position"):
        load_images(DataOptions(path, class_names=("goldfish", "tench")))
    mapping = {"n01443537": "goldfish", "n01440764": "tench"}
    for given in (mapping, ("n01443537, goldfish", "n01440764, tench")):  # as a text file with commas is read
        rows = load_images(DataOptions(path, class_names=given))["train"]
        assert paths_and_names(rows) == {("n01440764", "tench"), ("n01443537", "goldfish")}


@pytest.mark.parametrize("folders", [("0", "1"), ("000", "001"), ("n01", "n02")])
def test_names_by_number_and_by_another_key(folders, tmp_path):
    path = write_folder(tmp_path, dict.fromkeys(folders, 3))
    rows = load_images(DataOptions(path, class_names=BOTH_KEYS))["train"]
    assert rows.features["label"].names == ["tench", "shark"]
    assert paths_and_names(rows) == {(folders[0], "tench"), (folders[1], "shark")}
    assert DataOptions(path, class_names=BOTH_KEYS).listed_names == ["tench", "shark"]


def test_the_remedy_works(tmp_path):
    path = write_folder(tmp_path / "images", {"kitti": 3, "dog": 3})
    with pytest.raises(ValueError, match="kitti") as caught:
        load_images(DataOptions(path, class_names=("kitty", "dog")))
    shown = str(caught.value)
    mapping = json.loads(shown[shown.index("{") : shown.index("}") + 1])
    assert mapping == {"kitti": "kitty", "dog": "dog"}
    rows = load_images(DataOptions(path, class_names=mapping))["train"]
    assert paths_and_names(rows) == {("kitti", "kitty"), ("dog", "dog")}


def test_folders_of_a_name_that_is_given_several_times(tmp_path):
    path = write_folder(tmp_path, {"crane": 3, "owl": 3})
    with pytest.raises(ValueError, match=r"several times.*: crane\. Write each once"):
        load_images(DataOptions(path, class_names=("crane", "owl", "crane")))


def test_lines_of_numbers_that_are_names(tmp_path):
    path = write_folder(tmp_path / "images", {"1 euro": 3, "2 euro": 3})
    (tmp_path / "names.txt").write_text("2 euro\n1 euro\n")
    rows = load_images(DataOptions(path, class_names=read_class_names(tmp_path / "names.txt")))["train"]
    assert rows.features["label"].names == ["2 euro", "1 euro"]


def test_lines_of_numbers_that_are_names_of_an_adapter(tmp_path):
    (tmp_path / "names.txt").write_text("2 euro\n50 cent\n1 euro\n10 cent\n")
    given = read_class_names(tmp_path / "names.txt")
    assert in_label_order(given, ["1 euro", "2 euro", "5 euro", "50 cent", "10 cent"]) == [
        *("2 euro", "50 cent", "1 euro", "10 cent")
    ]
    with pytest.raises(ValueError, match="50 cent.*as a JSON list"):
        in_label_order(given)
    assert in_label_order({"1": "crane", "2": "owl", "3": "crane"}) == ["crane", "owl", "crane"]


def test_part_of_the_classes_keep_their_names(tmp_path):
    path, names = write_folder(tmp_path, {"kiwi": 3, "oat": 3}), ("apple", "banana", "kiwi", "oat")
    for split in ("train", None):
        rows = load_split(DataOptions(path, class_names=names), split)
        assert rows.features["label"].names == list(names)
        assert paths_and_names(rows) == {("kiwi", "kiwi"), ("oat", "oat")}
    with pytest.raises(ValueError, match="without an image: apple, banana.*min_images=1"):
        load_images(DataOptions(path, class_names=names))
    rows = load_images(DataOptions(path, class_names=names, min_images=1))["train"]
    assert paths_and_names(rows) == {("kiwi", "kiwi"), ("oat", "oat")}


@pytest.mark.parametrize("mapping", [{"kiwi": "Kiwi", "oat": "Oat"}, {"0": "Oat", "1": "Kiwi"}])
def test_published_labels_have_names_and_numbers(tmp_path, mapping):
    features = Features(image=Value("binary"), label=ClassLabel(names=["oat", "kiwi"]))
    content = (write_folder(tmp_path / "images", {"x": 1}), (tmp_path / "images" / "x" / "0.png").read_bytes())[1]
    rows = Dataset.from_dict({"image": [content] * 6, "label": [0, 0, 0, 1, 1, 1]}, features)
    rows.cast_column("image", Image()).save_to_disk(tmp_path / "saved")
    options = DataOptions(str(tmp_path / "saved"), class_names=mapping, test_fraction=0)
    data = load_images(options)["train"]
    assert [data.features["label"].names[label] for label in data["label"]] == ["Oat"] * 3 + ["Kiwi"] * 3
    with pytest.raises(ValueError, match="oat, kiwi"):
        load_images(DataOptions(options.path, class_names=("cereal", "fruit")))


def test_numbers_as_labels(tmp_path):
    write_folder(tmp_path, {"x": 6})
    (tmp_path / "t.csv").write_text("image,label\n" + "".join(f"x/{i}.png,{1 + i % 2}\n" for i in range(6)))
    options = DataOptions(str(tmp_path / "t.csv"), test_fraction=0)
    with pytest.raises(ValueError, match="no numbers or out of range for 2 class names: -1, cat"):
        names_by_number(["0", "-1", "cat"], ["x", "y"])
    with pytest.raises(ValueError, match="out of range for 2 class names: 2.*counts from 0"):
        load_images(DataOptions(options.path, class_names=("a", "b")))
    data = load_images(DataOptions(options.path, class_names={"2": "b", "1": "a"}, test_fraction=0))["train"]
    assert [data.features["label"].names[label] for label in data["label"]] == ["a", "b"] * 3


def test_accents_in_one_form_and_another(tmp_path):
    """macOS writes the names of files so, and everybody else otherwise."""
    one, other = "caf\u00e9", "cafe\u0301"
    assert find_classes([other], ["tea", one]) == {0: 1}
    write_folder(tmp_path, {one: 2, other: 2})
    with pytest.warns(
        UserWarning, match=f"look the same and are written by other characters.*: {one}. They are different"
    ):
        assert len(load_images(DataOptions(tmp_path))["train"].features["label"].names) == 2
    write_folder(tmp_path / "split", {f"train/{one}": 2, "train/tea": 2, f"test/{other}": 2})
    with pytest.raises(ValueError, match="not among the classes of train: .*NFC or NFD"):
        load_split(DataOptions(tmp_path / "split"), "test")


def test_several_classes_of_one_name(tmp_path):
    path = write_folder(tmp_path, {str(number): 3 for number in range(3)})
    options = DataOptions(path, class_names=("crane", "owl", "crane"))
    with pytest.warns(UserWarning, match="several classes: crane"):
        data = load_images(options)
    assert data["train"].features["label"].names == ["crane", "owl", "crane"]
    assert class_counts(data["train"]).tolist() == [2, 2, 2]
    data.save_to_disk(tmp_path / "saved")
    with pytest.warns(UserWarning, match="several classes: crane"):
        again = load_images(DataOptions(str(tmp_path / "saved")))
    assert again["test"]["label"][:] == data["test"]["label"][:]
    assert again["test"].features == data["test"].features


def test_labels_of_names_that_are_repeated():
    feature = class_label(["crane", "owl", "crane"])
    assert isinstance(feature, RepeatedNames) and feature.int2str([0, 2]) == ["crane", "crane"]
    assert feature.str2int("owl") == 1
    with pytest.raises(ValueError, match="crane"):
        feature.str2int("crane")
    assert Features.from_dict(Features(label=feature).to_dict()) == Features(label=feature)
    assert type(class_label(["a", "b"])) is ClassLabel


class TestFindClasses:
    def test_by_name_and_not_by_position(self):
        assert find_classes(["oat", "Kiwi_fruit"], ["apple", "kiwi-fruit", "oat"]) == {0: 2, 1: 1}

    def test_says_the_nearest(self):
        with pytest.raises(ValueError, match=r"none of the adapter's 2: kiwis. The nearest to 'kiwis' is 'kiwi'"):
            find_classes(["kiwis"], ["apple", "kiwi"])

    def test_repeated_names(self):
        assert find_classes(["crane", "owl", "crane"], ["owl", "crane", "crane"]) == {0: 1, 1: 0, 2: 2}
        with pytest.warns(UserWarning, match="'crane' is the name of 2 classes"):
            assert find_classes(["crane"], ["owl", "crane", "crane"]) == {0: 1}

    def test_rows_among_an_adapters_classes(self, tmp_path):
        rows = load_split(DataOptions(write_folder(tmp_path, {"kiwi": 3, "oat": 2})), None)
        among = with_class_names(rows, ["oat", "apple", "kiwi"])
        assert among.features["label"].names == ["oat", "apple", "kiwi"]
        assert paths_and_names(among) == {("kiwi", "kiwi"), ("oat", "oat")}
