"""Folders of image features: the same whatever the images lie in, whoever made them and however often they were stopped."""

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import load_dataset

from peft_vprompt.data import DataOptions, EvalTransform, load_images
from peft_vprompt.data.any_images import load_shards
from peft_vprompt.data.feature_folders import DIGESTS, FEATURES, MANIFEST, NAMES, made_with, read_features
from peft_vprompt.data.image_digests import image_digests
from peft_vprompt.data.streams import open_stream
from peft_vprompt.errors import UnsupportedModelError
from peft_vprompt.experiments.models import build_model
from peft_vprompt.experiments.run import run_experiment
from peft_vprompt.experiments.settings import Settings
from peft_vprompt.training import feature_folders
from peft_vprompt.training.cached_features import cache_features, feature_rows, require_features_of
from peft_vprompt.training.feature_folders import SKIPPED_FILE, feature_maker, write_features
from peft_vprompt.training.trainer import train
from peft_vprompt.tuners.base.registry import get_method
from tests.support.kills import killed_at
from tests.support.labelled_images import write_folder
from tests.support.streamed_images import encoded, write_parquets, write_tar, write_tars


CLASSES = ("ant", "bee", "cow")
IMAGES = [(name, index) for name in CLASSES for index in range(6)]


@pytest.fixture(scope="module")
def clip(clip_path):
    return build_model(clip_path, "coop", ("image",))


@pytest.fixture(scope="module")
def maker(clip):
    return feature_maker(clip.model, clip.image_processor)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same eighteen images as a folder, three tars and two parquet files."""
    root = tmp_path_factory.mktemp("places")
    write_folder(root / "folder", dict.fromkeys(CLASSES, 6))
    write_tars(root / "tars", IMAGES, 3)
    write_parquets(root / "parquets", IMAGES, 2)
    return root


def tars(places):
    return open_stream(DataOptions(places / "tars", label_column="txt"))


def write(maker, images, folder):
    return write_features(maker, images, folder, batch_size=2, shard_size=4)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(maker, places, tmp_path_factory):
    """Features of the tars, made at once."""
    folder = tmp_path_factory.mktemp("whole")
    write(maker, tars(places), folder)
    return folder


def table(folder, split="train"):
    rows = read_features(folder)[split]
    return np.asarray(rows[FEATURES][:]), rows["label"][:], b"".join(rows[DIGESTS][:])


def test_folders_tars_and_parquet_give_the_same_features(maker, places, whole, tmp_path, clip):
    write(maker, load_shards(DataOptions(places / "folder"), size=4), tmp_path / "folder")
    write(maker, open_stream(DataOptions(places / "parquets")), tmp_path / "parquets")
    expected, labels, digests = table(whole)
    for name in ("folder", "parquets"):
        features, found, known = table(tmp_path / name)
        np.testing.assert_allclose(features, expected, atol=1e-6)
        assert found == labels == [name for name, _ in IMAGES] and known == digests
    images = load_images(DataOptions(places / "folder", test_fraction=0))["train"]
    cached = cache_features(clip.model, images, EvalTransform(clip.image_processor), cache_dir=tmp_path / "cache")
    np.testing.assert_allclose(np.asarray(cached[FEATURES][:]), expected, atol=1e-6)
    assert digests == image_digests(images).tobytes()
    rows = read_features(tmp_path / "folder")["train"]
    assert (
        rows[NAMES][:2] == ["ant/0.png", "ant/1.png"]
        and read_features(whole)["train"][NAMES][0] == "images-000.tar/0000.png"
    )
    assert rows.cache_files and not rows.data.nbytes > 10 * rows.num_rows * 16 * 4  # mapped, not copied


def test_a_kill_at_any_moment(maker, places, whole, tmp_path):
    images, folder = tars(places), tmp_path / "killed"
    kills = 0
    for call in range(3, 4000, 19):
        if not killed_at(call, lambda: write(maker, images, folder)):
            break
        kills += 1
    assert kills > 2
    write(maker, images, folder)
    assert files(folder) == files(whole)


def test_a_stop_in_the_middle_of_a_file(maker, places, whole, tmp_path, monkeypatch):
    encode, calls = maker.encode, []

    def stopped(inputs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(inputs)

    with pytest.raises(KeyboardInterrupt):
        write(feature_folders.FeatureMaker(maker.content, maker.preprocess, stopped), tars(places), tmp_path)
    assert len(list(tmp_path.glob("*.arrow"))) == 1
    with pytest.raises(ValueError, match=r"not complete. Start the `vprompt features` .* again"):
        read_features(tmp_path)
    calls[:] = [1] * 4
    write(feature_folders.FeatureMaker(maker.content, maker.preprocess, stopped), tars(places), tmp_path)
    assert len(calls) == 4 + 7  # nine batches, of which the first part held two
    assert files(tmp_path) == files(whole)


def _write_in_child(maker, places, folder, slow):
    encode = maker.encode

    def slowly(inputs):
        slow.wait(0.05)
        return encode(inputs)

    write(feature_folders.FeatureMaker(maker.content, maker.preprocess, slowly), tars(places), folder)


def test_several_processes_share_a_folder(maker, places, whole, tmp_path):
    context = multiprocessing.get_context("fork")
    slow = context.Event()
    children = [context.Process(target=_write_in_child, args=(maker, places, tmp_path, slow)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert files(tmp_path) == files(whole)


def test_what_a_dead_process_had_in_hand_is_taken_up(maker, places, whole, tmp_path):
    """A child is killed while it holds the lock of a file of images."""
    pid = os.fork()
    if not pid:
        broken = feature_folders.FeatureMaker(maker.content, maker.preprocess, lambda inputs: os.kill(os.getpid(), 9))
        write(broken, tars(places), tmp_path)
        os._exit(1)
    os.waitpid(pid, 0)
    assert list(tmp_path.glob(".features-*.lock"))
    write(maker, tars(places), tmp_path)
    assert files(tmp_path) == files(whole)


def test_ranks_of_a_launcher_begin_at_other_files(maker, places, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    orders = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        work = feature_folders._Work(maker, tars(places), Path("nowhere"), 2, 4)
        monkeypatch.setattr(work, "is_done", lambda source: orders.append(source) or True)
        assert list(work.turns()) == []
    assert orders == [0, 1, 2, 1, 2, 0, 2, 0, 1]


def test_a_damaged_shard_is_told_and_made_anew(maker, places, whole, tmp_path):
    write(maker, tars(places), tmp_path)
    shard = tmp_path / "features-00001-0001.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"features-00001-0001.arrow' are damaged.*makes what is missing or damaged anew"
    ):
        read_features(tmp_path)
    with pytest.warns(UserWarning, match=r"features-00001-0001.arrow' are damaged: their checksum is another"):
        write(maker, tars(places), tmp_path)
    assert (tmp_path / "features-00001-0001.damaged").read_bytes() == content
    (tmp_path / "features-00001-0001.damaged").unlink()
    assert files(tmp_path) == files(whole)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="features-00001-0001.arrow"):
        read_features(tmp_path)


def test_images_that_cannot_be_read_are_named_and_left_out(maker, tmp_path):
    members = {
        "0.png": encoded("ant", 0),
        "1.png": b"no image",
        "2.png": encoded("ant", 2),
        "3.png": b"",
        "4.png": b"x",
    }
    write_tar(tmp_path / "a.tar", members)
    with pytest.warns(
        UserWarning, match=r"3 of 5 images cannot be read and were skipped: a.tar/1.png \(not an image\)"
    ):
        summary = write(maker, open_stream(DataOptions(tmp_path / "a.tar")), tmp_path / "out")
    assert summary.images == 2 and summary.skipped == 3 and summary.problems == tmp_path / "out" / SKIPPED_FILE
    assert summary.problems.read_text().splitlines()[:3] == [
        "file,problem",
        "a.tar/1.png,not an image",
        "a.tar/3.png,empty",
    ]
    assert read_features(tmp_path / "out")["train"][NAMES][:] == ["a.tar/0.png", "a.tar/2.png"]
    (tmp_path / "folder" / "ant").mkdir(parents=True)
    (tmp_path / "folder" / "ant" / "0.png").write_bytes(encoded("ant", 0))
    (tmp_path / "folder" / "ant" / "1.png").symlink_to(tmp_path / "gone.png")
    with pytest.warns(UserWarning, match=r"ant/1.png \(broken link\)"):
        write(maker, load_shards(DataOptions(tmp_path / "folder")), tmp_path / "of-files")
    write_tar(tmp_path / "b.tar", {"0.png": b"x", "1.png": b"y"})
    with pytest.raises(ValueError, match="None of 2 images can be read: b.tar/0.png is not an image"):
        write(maker, open_stream(DataOptions(tmp_path / "b.tar")), tmp_path / "none")


def test_another_model_or_other_images_do_not_go_on(maker, places, whole):
    other = feature_folders.FeatureMaker(maker.content | {"model": "x"}, maker.preprocess, maker.encode)
    with pytest.raises(ValueError, match="made with other model. Choose another --output"):
        write(other, tars(places), whole)
    with pytest.raises(ValueError, match="made with other images"):
        write(maker, open_stream(DataOptions(places / "parquets")), whole)
    with pytest.raises(ValueError, match="made with other batch size"):
        write_features(maker, tars(places), whole, batch_size=4, shard_size=4)
    with pytest.raises(ValueError, match="Expected shards of whole batches.*as 6"):
        write_features(maker, tars(places), whole, batch_size=3, shard_size=4)


def test_a_folder_of_something_else_stays(maker, places, tmp_path):
    (tmp_path / MANIFEST).write_text('{"name": "my page"}')
    with pytest.raises(ValueError, match="with another manifest.json"):
        write(maker, tars(places), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": 9}, "of the form 1"),
        ({"shards": [{"file": "../x", "split": "train", "rows": 1, "sha256": ""}]}, "is damaged"),
        ({"shards": None}, "is damaged"),
    ],
)
def test_a_manifest_that_is_none(change, message, tmp_path, whole):
    manifest = json.loads((whole / MANIFEST).read_text()) | change
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=message):
        read_features(tmp_path)


def test_features_are_plain_arrow(whole):
    rows = load_dataset("arrow", data_files=sorted(map(str, whole.glob("*.arrow"))), split="train")
    assert rows.num_rows == len(IMAGES) and set(rows.column_names) == {FEATURES, DIGESTS, NAMES, "label"}
    with pa.memory_map(str(whole / "features-00000-0000.arrow")) as file:
        assert pa.ipc.open_stream(file).read_all().num_rows == 4


def run_on(folder, output, clip_path, **settings):
    data = load_images(DataOptions(folder))
    settings = {
        "method": "coop",
        "model": clip_path,
        "shots": 2,
        "epochs": 1,
        "batch_size": 4,
        "base_novel": False,
    } | settings
    return run_experiment(Settings(**settings), data, output, quiet=True)


def test_training_on_them_is_training_on_cached_features(places, whole, clip_path, tmp_path):
    folder = load_images(DataOptions(places / "folder"))
    mapped = load_images(DataOptions(whole))
    recipe = get_method("coop").recipe.override(epochs=2, batch_size=4)
    weights = []
    for data in (mapped, folder):
        bundle = build_model(clip_path, "coop", list(CLASSES))
        rows = cache_features(bundle.model, data["train"], EvalTransform(bundle.image_processor), cache_dir=tmp_path)
        train(bundle.model, feature_rows(rows), recipe, tmp_path / "run", epochs=2, checkpoints=False)
        weights.append([p.detach().clone() for p in bundle.model.parameters() if p.requires_grad])
    assert mapped["train"]["label"][:] == folder["train"]["label"][:]
    for ours, theirs in zip(*weights, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    before = set(os.listdir(whole))
    report = run_on(whole, tmp_path / "coop", clip_path)
    assert report["accuracy"].keys() == {"all"} and (tmp_path / "coop" / "adapter_model.safetensors").is_file()
    assert set(os.listdir(whole)) == before  # nothing is written beside the features


def test_methods_that_need_images_say_so(whole, clip_path, vit_path, tmp_path):
    for method, error, message in (
        ("vpt", UnsupportedModelError, "learns visual prompts"),
        ("tip-adapter", ValueError, "learns from several views of each image. Received image features"),
        ("linear", ValueError, "trains an image classifier"),
    ):
        model = vit_path if method == "linear" else clip_path
        length = {"epochs": None, "batch_size": None} if method == "tip-adapter" else {}
        with pytest.raises(error, match=message):
            run_on(whole, tmp_path / method, model, method=method, **length)
    assert not list(tmp_path.iterdir())


def test_features_of_something_else_are_refused_by_name(whole, clip_path, clip):
    rows = read_features(whole)["train"]
    transform = EvalTransform(clip.image_processor)
    require_features_of(clip.model, transform, rows)
    assert set(made_with(rows)) == {"model", "precision", "preprocessing"}
    held = build_model(clip_path, "coop", ("image",), precision="bf16")
    with pytest.raises(ValueError, match="features in bf16, in which this model is held. Received: float32"):
        require_features_of(held.model, transform, rows)
    larger = build_model(clip_path, "coop", ("image",), image_size=48)
    with pytest.raises(ValueError, match="of another .*preprocessing"):
        require_features_of(larger.model, EvalTransform(larger.image_processor), rows)
    changed = build_model(clip_path, "coop", ("image",))
    next(p for n, p in changed.model.named_parameters() if "vision" in n).data += 1
    with pytest.raises(ValueError, match="of another model. Name the model"):
        require_features_of(changed.model, transform, rows)
