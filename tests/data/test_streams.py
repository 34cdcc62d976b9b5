"""Images that are streamed: from tar and parquet files, here and at addresses, and what of them is refused."""

import io
import pickle
import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from peft_vprompt.data import DataOptions, load_images
from peft_vprompt.data.encoded import decode, made_ahead
from peft_vprompt.data.streams import can_stream, open_stream
from tests.support.labelled_images import picture, write_folder
from tests.support.streamed_images import encoded, write_parquets, write_tar, write_tars


IMAGES = [(name, index) for name in ("ant", "bee") for index in range(4)]


def read(stream):
    """Name, pixels' sum and label of every image."""
    found = [each for shard in range(len(stream.splits)) for each in stream.read(shard)]
    return [(each.name, int(np.asarray(decode(each, stream.image)).sum()), each.label) for each in found]


def expected(name, index):
    return int(np.asarray(picture(name, index)).sum())


@pytest.fixture
def memory():
    """An empty file system in memory, and how addresses in it begin."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def test_tars_and_parquet_files(tmp_path):
    write_tars(tmp_path / "tars", IMAGES, 2)
    write_parquets(tmp_path / "parquets", IMAGES, 3)
    sums = [expected(*each) for each in IMAGES]
    stream = open_stream(DataOptions(tmp_path / "tars", label_column="txt"))
    assert stream.splits == ["train"] * 2 and stream.sizes == [None, None] and stream.label.dtype == "string"
    assert read(stream) == [
        (f"images-{place // 4:03}.tar/{place % 4:04}.png", sums[place], name) for place, (name, _) in enumerate(IMAGES)
    ]
    stream = open_stream(DataOptions(tmp_path / "parquets"))
    assert [row[1:] for row in read(stream)] == [(total, name) for total, (name, _) in zip(sums, IMAGES, strict=True)]
    assert read(stream)[3][0] == "images-001.parquet row 0" and len(stream.splits) == 3
    assert [each.name for each in stream.read(0, 1)] == ["images-000.parquet row 1", "images-000.parquet row 2"]


@pytest.mark.parametrize("place", ["memory://shards", "memory://shards/*.tar", "memory://shards/images-000.tar"])
def test_any_file_system(place, memory, tmp_path):
    write_tars(tmp_path, IMAGES, 1)
    with memory.open("/shards/images-000.tar", "wb") as file:
        file.write((tmp_path / "images-000.tar").read_bytes())
    memory.pipe("/shards/.hidden.tar", b"")
    stream = open_stream(DataOptions(place, label_column="txt"))
    assert [(total, label) for _, total, label in read(stream)] == [(expected(*each), each[0]) for each in IMAGES]
    local = open_stream(DataOptions(f"file://{tmp_path}/*.tar", label_column="txt"))
    assert read(local) == read(stream)
    before = stream.digest()
    assert open_stream(DataOptions(place, label_column="txt")).digest() == before
    memory.pipe("/shards/images-000.tar", (tmp_path / "images-000.tar").read_bytes() + bytes(512))
    assert open_stream(DataOptions(place, label_column="txt")).digest() != before


def test_splits_filters_and_columns(tmp_path):
    features = Features({"photo": Image(), "kind": ClassLabel(names=["x", "y"]), "file_name": Value("string")})
    for split, kind in (("train", 0), ("test", 1)):
        table = {
            "photo": [{"bytes": encoded("ant", index), "path": None} for index in range(3)],
            "kind": [kind, kind, 1],
            "file_name": [f"{split}{index}" for index in range(3)],
        }
        Dataset.from_dict(table, features).to_parquet(tmp_path / f"{split}-00000.parquet")
    stream = open_stream(DataOptions(tmp_path, label_column="kind"))
    assert sorted(stream.splits) == ["test", "train"] and stream.label.names == ["x", "y"]
    stream = open_stream(DataOptions(tmp_path, image_column="photo", label_column="kind", where=("kind!=y",)), "train")
    assert [(name, label) for name, _, label in read(stream)] == [("train0", 0), ("train1", 0)]
    assert [each.name for each in stream.read(0, 1)] == ["train1"]
    with pytest.raises(ValueError, match="No split 'dev'. The data has: "):
        open_stream(DataOptions(tmp_path), "dev")
    with pytest.raises(ValueError, match="No column 'size'"):
        open_stream(DataOptions(tmp_path, where=("size=1",)))
    with pytest.raises(ValueError, match=r"Expected images in the column 'kind'.*--image-column"):
        open_stream(DataOptions(tmp_path, image_column="kind"))


def test_no_labels_are_told_where_they_are_asked_for(tmp_path):
    write_tars(tmp_path, IMAGES, 1)
    with pytest.warns(UserWarning, match=r"No column 'label'.* txt.*--label-column"):
        open_stream(DataOptions(tmp_path), labelled=True)


def test_each_file_has_its_own_names_of_classes(tmp_path):
    def write(name, classes):
        features = Features({"image": Image(), "label": ClassLabel(names=classes)})
        table = {"image": [{"bytes": encoded("ant", 0), "path": None}] * 2, "label": [0, 1]}
        Dataset.from_dict(table, features).to_parquet(tmp_path / f"{name}.parquet")

    write("a", ["x", "y"])
    write("b", ["y", "x"])
    stream = open_stream(DataOptions(tmp_path))
    assert [[each.label for each in stream.read(shard)] for shard in range(2)] == [[0, 1], [1, 0]]
    chosen = open_stream(DataOptions(tmp_path, where=("label=y",)))
    assert [[each.label for each in chosen.read(shard)] for shard in range(2)] == [[1], [1]]
    own = pq.read_table(tmp_path / "b.parquet")
    pq.write_table(own.replace_schema_metadata(None), tmp_path / "b.parquet")  # counts as the first
    assert [[each.label for each in chosen.read(shard)] for shard in range(2)] == [[1], [1]]
    write("b", ["z", "x"])
    with pytest.raises(ValueError, match=r"Received 'z' in b\.parquet\. Write the classes as text"):
        list(open_stream(DataOptions(tmp_path)).read(1))


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("first", ["text", "classes"])
def test_files_of_which_some_name_classes_and_some_hold_text(first, lists, tmp_path):
    def write(name, feature, labels):
        features = Features({"image": Image(), "label": List(feature) if lists else feature})
        table = {"image": [{"bytes": encoded("ant", 0), "path": None}] * 2}
        table["label"] = [[label] for label in labels] if lists else labels
        Dataset.from_dict(table, features).to_parquet(tmp_path / f"{name}.parquet")

    if first == "text":
        write("a", Value("string"), ["x", "y"])
    else:
        write("a", ClassLabel(names=["y", "x"]), [1, 0])
    write("b", ClassLabel(names=["x", "y"]), [0, 1])
    expected = ["x", "y"] if first == "text" else [1, 0]
    stream = open_stream(DataOptions(tmp_path))
    found = [[each.label for each in stream.read(shard)] for shard in range(2)]
    assert found == [[[label] for label in expected] if lists else expected] * 2
    if not lists:
        chosen = open_stream(DataOptions(tmp_path, where=("label=y",)))
        assert [[each.label for each in chosen.read(shard)] for shard in range(2)] == [expected[1:]] * 2


@pytest.mark.parametrize("name", ["birds [2020]", "a*b", "what?"])
def test_folders_are_called_as_they_are(name, tmp_path, memory):
    folder = write_parquets(tmp_path / name, [("ant", 0), ("bee", 0), ("ant", 1), ("bee", 1)], 2)
    expected = ["ant", "bee"] * 2
    for place in (folder, folder / "images-000.parquet"):
        options = DataOptions(place, test_fraction=0)
        rows = load_images(options)["train"]
        assert (
            can_stream(options) and [rows.features["label"].names[i] for i in rows["label"]] == expected[: len(rows)]
        )
        assert [label for *_, label in read(open_stream(options))] == expected[: len(rows)]
    memory.pipe(f"/bucket/{name}/images.parquet", (folder / "images-000.parquet").read_bytes())
    for place in (f"memory://bucket/{name}", f"memory://bucket/{name}/images.parquet"):
        assert [label for *_, label in read(open_stream(DataOptions(place)))] == ["ant", "bee"]


def test_linked_folders_are_followed(tmp_path):
    write_parquets(tmp_path / "elsewhere", IMAGES, 1)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert [label for *_, label in read(open_stream(DataOptions(tmp_path / "data")))] == [name for name, _ in IMAGES]


def test_what_is_streamed(tmp_path):
    write_folder(tmp_path / "folder", {"ant": 1})
    write_tars(tmp_path / "tars", IMAGES, 1)
    write_tar(tmp_path / "packed.tar", {"ant/0.png": encoded("ant", 0), "bee/0.png": encoded("bee", 0)})
    (tmp_path / "table.csv").write_text("image\nfolder/ant/0.png\n")
    told = {n: can_stream(DataOptions(tmp_path / n)) for n in ("folder", "tars", "packed.tar", "table.csv", "tars/..")}
    assert told == {"folder": False, "tars": True, "packed.tar": False, "table.csv": False, "tars/..": False}
    with pytest.raises(FileNotFoundError, match="No file or folder"):
        can_stream(DataOptions(tmp_path / "no"))
    assert can_stream(DataOptions("owner/name")) and can_stream(DataOptions("s3://bucket/x.tar"))


def test_paths_are_read_from_a_local_table_alone(memory, tmp_path):
    write_folder(tmp_path, {"ant": 1})
    Dataset.from_dict({"image": ["ant/0.png"]}).to_parquet(tmp_path / "t.parquet")
    assert read(open_stream(DataOptions(tmp_path / "t.parquet")))[0][1] == expected("ant", 0)
    memory.pipe("/t.parquet", (tmp_path / "t.parquet").read_bytes())
    with pytest.raises(
        ValueError, match=r"Expected encoded images in t.parquet, which is not on this machine.*'ant/0.png'"
    ):
        read(open_stream(DataOptions("memory://t.parquet")))
    Dataset.from_dict({"image": ["https://example.org/a.png"]}).to_parquet(tmp_path / "u.parquet")
    with pytest.raises(ValueError, match="followed only where you ask for it by follow_urls"):
        read(open_stream(DataOptions(tmp_path / "u.parquet")))


class Evil:
    """What unpickling would do if anybody did it."""

    def __reduce__(self):
        return (open, ("unpickled", "w"))


def test_nothing_in_a_stream_is_run_or_written(tmp_path, monkeypatch):
    """Pickles are bytes, and names that lead outside of a folder are names."""
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("unpickled"))
    evil = pickle.dumps(Evil())
    members = {"../../outside.png": encoded("ant", 0), "../../outside.pkl": evil, "../../outside.pyd": evil}
    write_tar(tmp_path / "evil.tar", members)
    stream = open_stream(DataOptions(tmp_path / "evil.tar"))
    assert [row[:2] for row in read(stream)] == [("evil.tar/../../outside.png", expected("ant", 0))]
    objects = io.BytesIO()
    np.save(objects, np.array([Evil()], dtype=object), allow_pickle=True)
    write_tar(tmp_path / "array.tar", {"a.png": encoded("ant", 0), "a.npy": objects.getvalue()})
    with pytest.raises(ValueError, match=r"Cannot read .*array.tar.*allow_pickle=False"):
        read(open_stream(DataOptions(tmp_path / "array.tar")))
    table = pa.table({"image": [encoded("ant", 0)], "label": ["x"], "extra": [evil]})
    meta = {b"huggingface": b'{"info": {"features": {"image": {"_type": "os.system"}}}}', b"pandas": evil}
    pq.write_table(table.replace_schema_metadata(meta), tmp_path / "evil.parquet")
    with pytest.raises(ValueError, match="Cannot read .*evil.parquet"):
        read(open_stream(DataOptions(tmp_path / "evil.parquet")))
    pq.write_table(table.replace_schema_metadata({b"pandas": evil}), tmp_path / "evil.parquet")
    assert [row[1:] for row in read(open_stream(DataOptions(tmp_path / "evil.parquet")))] == [
        (expected("ant", 0), "x")
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["array.tar", "evil.parquet", "evil.tar", "inside"]
    assert not list((tmp_path / "inside").iterdir())


def test_links_in_a_tar_are_passed_over(tmp_path):
    with tarfile.open(tmp_path / "links.tar", "w") as file:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
        entry = tarfile.TarInfo("1.png")
        entry.size = len(encoded("ant", 1))
        file.addfile(entry, io.BytesIO(encoded("ant", 1)))
    assert [name for name, *_ in read(open_stream(DataOptions(tmp_path / "links.tar")))] == ["links.tar/1.png"]


def test_files_that_cannot_be_read_are_named(tmp_path):
    write_tars(tmp_path / "tars", IMAGES, 2)
    broken = tmp_path / "tars" / "images-001.tar"
    broken.write_bytes(broken.read_bytes()[:1800])
    with pytest.raises(ValueError, match="Cannot read images-001.tar: .* Mend it, or leave it out"):
        read(open_stream(DataOptions(tmp_path / "tars", label_column="txt")))
    (tmp_path / "no.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="Cannot read .*no.parquet"):
        open_stream(DataOptions(tmp_path / "no.parquet"))
    with pytest.raises(FileNotFoundError, match="No file or folder"):
        open_stream(DataOptions("memory://nothing/*.tar"))
    write_folder(tmp_path / "folder", {"ant": 1})
    with pytest.raises(ValueError, match=r"that end in .parquet, .tar.*Received: 0.png"):
        open_stream(DataOptions(f"file://{tmp_path}/folder"))


def test_addresses_are_streamed_by_features_first():
    with pytest.raises(FileNotFoundError, match="streamed by `vprompt features`"):
        load_images(DataOptions("s3://bucket/images.tar"))


def test_errors_come_in_their_turn():
    def items():
        yield from range(3)
        raise OSError("gone")

    found = []
    with pytest.raises(OSError, match="gone"):
        for item, made in made_ahead(items(), lambda item: item * 10):
            found.append((item, made))
    assert found == [(0, 0), (1, 10), (2, 20)]
    with pytest.raises(ZeroDivisionError):
        list(made_ahead(iter([1, 0]), lambda item: 1 // item))


def test_a_column_of_splits_is_refused(tmp_path):
    write_parquets(tmp_path, IMAGES, 1)
    with pytest.raises(ValueError, match=r"split_column='part'. Leave it out, and take the rows of a split by where="):
        open_stream(DataOptions(tmp_path, split_column="part"))
