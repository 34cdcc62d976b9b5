"""Few-shot lists as CoOp's code writes them: pickles of Dassl's objects, read without running code."""

import pickle
import sys
from types import ModuleType

import pytest

from peft_vprompt.data import draw_of, load_task, published_few_shot
from peft_vprompt.data.benchmarks.few_shot_lists import read_list
from peft_vprompt.data.images import image_paths
from tests.data.test_prompting_tasks import write_split_file


pytestmark = pytest.mark.filterwarnings("ignore:.*classes; the published files name")
TASK = "coop-11/eurosat"


@pytest.fixture
def datum(monkeypatch):
    """Dassl's class, where its package has it, for the time of the test."""

    class Datum:
        def __init__(self, impath="", label=0, domain=0, classname=""):
            self._impath, self._label, self._domain, self._classname = impath, label, domain, classname

    name = "dassl.data.datasets.base_dataset"
    for part in ("dassl", "dassl.data", "dassl.data.datasets", name):
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    Datum.__module__, Datum.__qualname__ = name, "Datum"
    sys.modules[name].Datum = Datum
    return Datum


@pytest.fixture
def root(tmp_path):
    return write_split_file(tmp_path, "eurosat")


def write(root, rows, shots=2, seed=1):
    """Write a list as CoOp's `datasets/eurosat.py` does."""
    file = root / "split_fewshot" / f"shot_{shots}-seed_{seed}.pkl"
    file.parent.mkdir(exist_ok=True)
    with open(file, "wb") as opened:
        pickle.dump({"train": rows, "val": rows[:1]}, opened, protocol=pickle.HIGHEST_PROTOCOL)
    return file


def theirs(datum, *pictures):
    """Images as they lie on the machine of somebody else."""
    return [datum(f"/home/them/data/eurosat/2750/train/{name}", int(name[0]), 0, "any") for name in pictures]


@pytest.mark.parametrize("inside", [True, False], ids=["above", "itself"])
def test_the_list_wins_over_the_draw_and_says_so(inside, root, datum, monkeypatch):
    pictures = ["1_5.png", "1_0.png", "0_3.png", "0_1.png"]
    file = write(root, theirs(datum, *pictures))
    assert read_list(file)[0] == ("/home/them/data/eurosat/2750/train/1_5.png", 1)
    monkeypatch.chdir(root.parent)
    train = load_task(TASK, "eurosat")["train"]  # a relative folder, whose lists are looked for in the whole path
    draw = draw_of(TASK, root.parent if inside else root)
    with pytest.warns(UserWarning, match="those that .*shot_2-seed_1.pkl lists"):
        chosen = draw(train, 2, 1)
    assert [path.rpartition("/")[2] for path in image_paths(chosen)] == pictures
    with pytest.warns(UserWarning, match="lists"):
        half = draw(train, 2, 1, class_names=["Sea_Lake"])
    assert [path.rpartition("/")[2] for path in image_paths(half)] == ["0_3.png", "0_1.png"]
    assert image_paths(draw(train, 2, 2)) == image_paths(published_few_shot(train, 2, 2))  # no list of this seed
    assert draw_of(TASK) is published_few_shot


def test_paths_of_windows(root, datum):
    write(root, [datum(r"C:\data\eurosat\2750\train\0_2.png", 0)])
    with pytest.warns(UserWarning, match="lists"):
        chosen = draw_of(TASK, root)(load_task(TASK, root)["train"], 2, 1)
    assert len(chosen) == 1 and image_paths(chosen)[0].endswith("train/0_2.png")


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (lambda d: theirs(d, "0_1.png", "0_9.png"), "names 1 images that are no training images: .*0_9.png"),
        (lambda d: [d("x/2750/train/0_1.png", 1)], "of class 1, which the training images have in class 0"),
        (lambda d: [d("x/2750/train/0_1.png", "0")], "list 'train' of Dassl's Datum"),
        (lambda d: [("x/2750/train/0_1.png", 0)], "list 'train' of Dassl's Datum"),
        (lambda d: [], "list 'train' of Dassl's Datum"),
    ],
)
def test_lists_that_do_not_fit_are_refused(rows, match, root, datum):
    write(root, rows(datum))
    with pytest.raises(ValueError, match=f"{match}.*Move the file away"):
        draw_of(TASK, root)(load_task(TASK, root)["train"], 2, 1)


def test_a_pickle_that_would_run_code_is_refused(root, tmp_path):
    class Attack:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    file = write(root, [Attack()])
    with pytest.raises(ValueError, match="asks to call builtins.exec"):
        read_list(file)
    assert not (tmp_path / "ran").exists()
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match="Cannot read the few-shot list"):
        read_list(file)
