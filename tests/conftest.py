"""Fixtures shared by all tests."""

import gc
import os
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from matplotlib.figure import Figure

from peft_vprompt import demo
from peft_vprompt.data import DataOptions, load_images
from peft_vprompt.experiments import models
from tests.support.models import CLASS_NAMES, CONFIGS, tiny_tokenizer
from tests.support.saved_models import save_colours, save_tiny_clip, save_tiny_vit


MEMORY = Path("/dev/shm")
#: Temporary folders of the tests may take this much memory, in bytes; with less they are on disk.
ROOM = 4 * 2**30


def pytest_configure(config):
    """Keep temporary folders in memory where there is room: every adapter is written durably, and disks are slow."""
    if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


os.environ["VPROMPT_PRECISION"] = "float32"  # the same numbers on every machine

torch.set_num_threads(1)  # the models are so small that waiting for a second thread costs more than it gives


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory) -> str:
    """A folder with the tiny tokenizer."""
    path = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture
def make(tokenizer_path):
    """Build a config of a method's case by name."""

    def build(method, case, **options):
        return CONFIGS[method][case](
            **{"class_names": CLASS_NAMES, "tokenizer_name_or_path": tokenizer_path} | options
        )

    return build


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference outputs and benchmark data, beside the checkout."""
    path = Path(os.environ.get("VPROMPT_SHARED", Path(__file__).parents[2] / "shared"))
    if not path.is_dir():
        pytest.skip("the reference outputs and benchmark data are not beside this checkout")
    return path


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What is kept of data sets and features is in a folder of the tests, also of the processes that they start."""
    folder = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
        patch.setenv("HF_DATASETS_CACHE", str(folder))
        yield


@pytest.fixture(scope="module", autouse=True)
def clean_checkout():
    """Tests write to their own folders: none leaves a file in the checkout."""
    root = Path(__file__).parents[1]
    before = set(os.listdir(root))
    yield
    left = sorted(name for name in set(os.listdir(root)) - before if not name.startswith((".", "__", "build")))
    assert not left, f"left in {root}: {left}"


@pytest.fixture(autouse=True)
def fixed_seed():
    """The same random prompts in every run, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def clip_path(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def vit_path(tmp_path_factory):
    return save_tiny_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    return save_colours(tmp_path_factory.mktemp("colours") / "colours.parquet")


@pytest.fixture
def embedded(monkeypatch, clip_path, colours):
    """Tiny stand-ins for the embedded model and task, so that the demo takes seconds."""
    data = load_images(DataOptions(colours, label_column="colour"))
    monkeypatch.setattr(models, "demo_model_path", lambda: clip_path)
    monkeypatch.setattr(demo, "demo_task", lambda split, name="shapes": data[split])


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures written to files from now on, to look at what is drawn in them."""
    written, save = [], Figure.savefig

    def savefig(figure, *args, **options):
        written.append(figure)
        return save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return written


@pytest.fixture(scope="module", autouse=True)
def quick():
    """What makes many small runs quick: one thread, and a garbage collector that looks at new objects only.

    The Trainer collects garbage at the end of each run, most of it among the objects of imported libraries.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # what lives now is imported code for the most part, and is not looked at again
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def forgetful():
    """Accelerate keeps precision and devices for the whole process; each test starts without them."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
