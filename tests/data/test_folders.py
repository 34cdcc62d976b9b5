"""Image folders: which folders are splits, which are classes, and what is said of the others."""

import pytest

from peft_vprompt.data import DataOptions, class_counts, load_images, load_split, load_unlabelled
from tests.support.command_line import vprompt
from tests.support.labelled_images import paths_and_names, write_folder


NESTED = {f"{animal}/{time}": 3 for animal in ("cat", "dog") for time in ("day", "night")}


def names(path, **options):
    return load_images(DataOptions(path, **options))["train"].features["label"].names


class TestLabels:
    @pytest.mark.parametrize(("labels_from", "expected"), [("first", ["cat", "dog"]), ("last", ["day", "night"])])
    def test_nested_folders_by_option(self, labels_from, expected, tmp_path):
        assert names(write_folder(tmp_path, NESTED), labels_from=labels_from) == expected

    def test_nested_folders(self, tmp_path):
        with pytest.warns(UserWarning, match="whole path, such as 'cat/day'.*--labels-from first"):
            assert names(write_folder(tmp_path, NESTED)) == ["cat/day", "cat/night", "dog/day", "dog/night"]

    @pytest.mark.parametrize("below", ("", "train/"))
    def test_folders_of_different_depth(self, below, tmp_path):
        path = write_folder(tmp_path, {below + "cat": 3, below + "cat/day": 3, below + "dog/old/day": 3})
        with pytest.warns(UserWarning, match="lie in each other"):
            assert names(path) == ["cat", "cat/day", "dog/old/day"]

    def test_what_makes_one_class_of_several(self, tmp_path):
        with pytest.raises(ValueError, match="one class, 'day'.*labels_from='last'"):
            names(write_folder(tmp_path / "nested", {"cat/day": 3, "dog/day": 5}), labels_from="last")
        with pytest.raises(ValueError, match="one class, 'dog'.*min_images=4"):
            names(write_folder(tmp_path / "flat", {"cat": 3, "dog": 5}), min_images=4)

    def test_an_unknown_choice(self, tmp_path):
        with pytest.raises(ValueError, match=r"labels_from.*\['path', 'first', 'last'\].*'middle'"):
            names(write_folder(tmp_path, NESTED), labels_from="middle")

    def test_a_loose_image(self, tmp_path):
        path = write_folder(tmp_path, {"a": 3, "b": 3, ".": 1})
        with pytest.warns(UserWarning, match="1 image is beside the class folders.*0.png"):
            assert names(path) == ["a", "b"]

    @pytest.mark.parametrize("split", ("", "train/"))
    def test_a_folder_without_an_image(self, split, tmp_path):
        path = write_folder(tmp_path, {split + "a": 3, split + "b": 3})
        (tmp_path / split / "c").mkdir()
        with pytest.warns(UserWarning, match="Folders without an image are no classes: .*/c"):
            assert names(path) == ["a", "b"]

    def test_loose_images_alone(self, tmp_path):
        with pytest.raises(ValueError, match="lie in no class folders.*a folder of its name.*--unlabelled"):
            names(write_folder(tmp_path, {".": 3}))

    def test_one_class(self, tmp_path):
        path = write_folder(tmp_path, {"cat": 3})
        with pytest.raises(ValueError, match="one class, 'cat'.*folder"):
            names(path)
        assert len(load_split(DataOptions(path))) == 3

    def test_linked_folders(self, tmp_path):
        write_folder(tmp_path / "real", {"a": 3, "b": 3})
        (tmp_path / "links").mkdir()
        for name in ("a", "b"):
            (tmp_path / "links" / name).symlink_to(tmp_path / "real" / name)
        assert names(str(tmp_path / "links")) == ["a", "b"]
        (tmp_path / "links" / "a" / "up").symlink_to(tmp_path / "links")
        with pytest.warns(UserWarning) as told:
            assert class_counts(load_images(DataOptions(str(tmp_path / "links")))["train"]).tolist()[:1] == [2]
        assert any("a link to a folder that it lies in" in str(warning.message) for warning in told)

    def test_a_link_to_a_folder_that_is_gone(self, tmp_path):
        path = write_folder(tmp_path, {"a": 3, "b": 3})
        (tmp_path / "c").symlink_to(tmp_path / "gone")
        with pytest.warns(UserWarning, match="Links to folders that are not there.*/c"):
            assert names(path) == ["a", "b"]

    def test_what_programs_leave_behind(self, tmp_path):
        path = write_folder(tmp_path, {"a": 3, "b": 3, "__MACOSX/a": 1, ".cache/a": 1})
        (tmp_path / "a" / "._0.png").write_bytes(b"no image")
        (tmp_path / "a" / "Thumbs.db").write_bytes(b"no image")
        assert names(path) == ["a", "b"]

    def test_pictures_that_are_not_read_are_told(self, tmp_path):
        """Of phones and cameras, or without an ending; but not what is beside the class folders."""
        path = write_folder(tmp_path, {"a": 3, "b": 3})
        for name in ("a/IMG_1.HEIC", "b/1.cr2", "b/photo", "LICENSE"):
            (tmp_path / name).write_bytes(b"of another kind")
        with pytest.warns(UserWarning, match="3 pictures are left out.*IMG_1.HEIC.*1.cr2.*photo.*JPEG or PNG") as told:
            assert names(path) == ["a", "b"]
        assert not any("LICENSE" in str(warning.message) for warning in told)


class TestSplits:
    @pytest.mark.parametrize("train", ("train", "Training"))
    @pytest.mark.parametrize("validation", ("val", "valid", "validation", "dev"))
    def test_folders_of_the_names_of_splits(self, train, validation, tmp_path):
        sizes = {train: 3, validation: 2, "test": 1}
        path = write_folder(tmp_path, {f"{split}/{name}": n for split, n in sizes.items() for name in ("a", "b")})
        data = load_images(DataOptions(path), validation=True)
        assert {name: len(rows) for name, rows in data.items()} == {"train": 6, "validation": 4, "test": 2}
        assert len(load_split(DataOptions(path), validation)) == len(load_split(DataOptions(path), "validation")) == 4
        data = load_images(DataOptions(path, test_split=validation), validation=True)
        assert {name: len(rows) for name, rows in data.items()} == {"train": 6, "test": 4}

    @pytest.mark.parametrize("name", ("train", "test", "val"))
    def test_a_class_that_is_called_like_a_split(self, name, tmp_path):
        path = write_folder(tmp_path, {name: 3, "bus": 3})
        with pytest.warns(UserWarning, match=f"{name} stand beside bus.*classes, none as a split"):
            rows = load_images(DataOptions(path))["train"]
        assert paths_and_names(rows) == {(name, name), ("bus", "bus")}

    def test_such_a_class_in_a_split(self, tmp_path):
        path = write_folder(
            tmp_path, {f"{split}/{name}": 2 for split in ("train", "test") for name in ("train", "bus")}
        )
        assert names(path) == ["bus", "train"]

    def test_classes_that_are_all_called_like_splits(self, tmp_path):
        path = write_folder(tmp_path, {"train": 3, "test": 3})
        with pytest.warns(UserWarning, match="names of splits"), pytest.raises(ValueError, match="no class folders"):
            names(path)

    @pytest.mark.parametrize("below", ["images/{split}/{animal}", "{animal}/{split}"])
    def test_splits_that_are_not_at_the_top(self, below, tmp_path):
        folders = {below.format(split=s, animal=a): 3 for s in ("train", "test") for a in ("cat", "dog")}
        with pytest.warns(UserWarning) as told:
            assert len(names(write_folder(tmp_path, folders))) == 4
        assert any("names of splits and lie in other folders" in str(warning.message) for warning in told)

    def test_folders_without_images_are_neither(self, tmp_path):
        path = write_folder(tmp_path, {"train/a": 3, "train/b": 3, "test/a": 1, "test/b": 1})
        (tmp_path / "notes").mkdir()
        assert len(load_images(DataOptions(path))["test"]) == 2


class TestUnlabelled:
    def test_a_flat_folder(self, tmp_path):
        data = load_unlabelled(DataOptions(write_folder(tmp_path, {".": 5}), class_names=("a", "b")))
        assert {name: len(rows) for name, rows in data.items()} == {"train": 5}
        assert data["train"].column_names == ["image"]

    def test_flat_images_beside_labelled_test_images(self, tmp_path):
        data = load_unlabelled(DataOptions(write_folder(tmp_path, {"train": 5, "test/a": 1, "test/b": 2})))
        assert {name: len(rows) for name, rows in data.items()} == {"train": 5, "test": 3}

    def test_labels_to_check_by_are_those_of_all_images(self, tmp_path, clip_path):
        path = write_folder(tmp_path / "data", {"train/a": 3, "train/b": 3, "train": 2, "test/a": 1, "test/b": 1})
        given = ("--data", path, "--model", clip_path, "--output", tmp_path / "labels.safetensors", "--check")
        shown = vprompt("pseudo-label", *given, code=2)
        assert "Received: 8 images, of which 6 have one" in shown and not (tmp_path / "labels.safetensors").exists()

    def test_all_images_without_their_labels(self, tmp_path):
        path = write_folder(tmp_path, {"2024/may": 3, "2025/june": 3, ".": 1})
        data = load_unlabelled(DataOptions(path, class_names=("a", "b"), test_fraction=0, labels_from="first"))
        assert len(data["train"]) == 7


class TestMadeSplits:
    def test_labels_that_are_none_of_the_names(self, tmp_path):
        """What comes next works: folders may be days, or cameras."""
        path = write_folder(tmp_path, {"monday": 3, "friday": 3})
        with pytest.raises(ValueError, match="--test-fraction 0"):
            load_unlabelled(DataOptions(path, class_names=("cat", "dog")))
        assert len(load_unlabelled(DataOptions(path, class_names=("cat", "dog"), test_fraction=0))["train"]) == 6

    def test_no_test_images(self, tmp_path):
        options = DataOptions(write_folder(tmp_path, {"a": 3, "b": 1}), test_fraction=0)
        assert {name: len(rows) for name, rows in load_images(options).items()} == {"train": 4}
        with pytest.raises(ValueError, match="no test images.*test_fraction=0.*--split train"):
            load_split(options, "test")

    def test_validation_images(self, tmp_path):
        options = DataOptions(write_folder(tmp_path, {"a": 10, "b": 10}), val_fraction=0.25, test_fraction=0.2)
        data = load_images(options)
        assert {name: len(rows) for name, rows in data.items()} == {"train": 12, "validation": 4, "test": 4}
        images = [image.tobytes() for rows in data.values() for image in rows["image"]]
        assert len(set(images)) == 20
        for split, rows in data.items():
            again = load_split(options, split)
            assert [image.tobytes() for image in again["image"]] == [image.tobytes() for image in rows["image"]]

    def test_validation_images_beside_such(self, tmp_path):
        path = write_folder(tmp_path, {f"{split}/{name}": 3 for split in ("train", "val") for name in "ab"})
        with pytest.raises(ValueError, match="a split 'validation' of its own.*val_fraction=0.5"):
            load_images(DataOptions(path, val_fraction=0.5))
        with pytest.raises(ValueError, match="published validation images.*val_fraction=0.5"):
            DataOptions(path, benchmark="coop-11/eurosat", val_fraction=0.5)

    @pytest.mark.parametrize("name", ("test_fraction", "val_fraction"))
    @pytest.mark.parametrize("value", (-0.1, 1, 2.0))
    def test_shares_out_of_range(self, name, value, tmp_path):
        path = write_folder(tmp_path, {"a": 3, "b": 3})
        with pytest.raises(ValueError, match=f"`{name}` must lie between 0 and 1. Received: {name}={value}"):
            load_images(DataOptions(path, **{name: value}))
