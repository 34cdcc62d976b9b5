"""Kills, full disks, second starts, damage and long use, on the embedded model: what docs/reliability.md shows.

    python -m examples.studies.reliability   # docs/results/reliability.json; goes on where it was stopped
    python docs/render/reliability.py         # the page from the JSON

Every trial runs a command in a forked process, which `kill -9` ends after a random share of the time that the command
takes; it is started again until it gets through, and what it leaves is compared with what an uninterrupted run leaves.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from peft_vprompt.errors import CannotWriteError


ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results" / "reliability.json"

#: Entries of JSON files in which a run that was resumed may differ: times, memory, and that it was resumed.
TIMES = {
    "train_seconds",
    "seconds_per_step",
    "evaluate_seconds",
    "peak_memory",
    "process_bytes",
    "device_bytes",
    "resumed_step",
    "environment",
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
}

#: Most bytes of a file, in the place of full disks.
LIMITS = [0, 300, 5000, 20000]

#: Most kills of one chain: then the command runs to its end.
CHAIN = 3


def in_child(work: Callable[[], object], kill_after: float | None = None, limit: int | None = None) -> int | None:
    """Do `work` in a forked process; return its exit status, None where it was killed.

    Args:
        work: what to do; an exception is the exit status 1, `SystemExit` its own; `CannotWriteError` 2, as of a command.
        kill_after: seconds after which the process is killed.
        limit: most bytes of a file that it may write, in the place of a full disk.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - of the process, to its end
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            work()
            status = 0
        except CannotWriteError:
            status = 2
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        finally:
            os._exit(status)
    deadline = None if kill_after is None else time.monotonic() + kill_after
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.002)


def contents(folder: Path) -> dict[str, object]:
    """Return what a run left, by file: JSON without times, tensors; checkpoints, plots and journals aside.

    Raises:
        ValueError: a file is broken, or there is a hidden one that nobody will finish.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or "checkpoints" in name:
            continue
        try:
            if path.suffix == ".json":
                found[name] = _without_times(json.loads(path.read_text(encoding="utf-8")))
            elif path.suffix == ".safetensors":
                found[name] = {key: value.tolist() for key, value in load_file(path).items()}
        except (ValueError, SafetensorError) as error:
            raise ValueError(f"Broken file {name}: {error}") from error
    return found


def _without_times(value):
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in TIMES}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def kill_trials(work: Callable[[Path], object], folder: Path, kills: int, seed: int = 0) -> dict:
    """Kill `work` at random moments, start it again until it gets through, and compare what it leaves.

    Args:
        work: writes to the folder that it is given.
        folder: an empty folder for the trials.
        kills: kills in all.
        seed: of the moments.

    Returns:
        `kills`, `chains` (starts until one got through), `equal` chains, `broken` files after a kill.
    """
    start = time.monotonic()
    if in_child(lambda: work(folder / "whole")):
        raise RuntimeError("The uninterrupted run failed.")
    seconds = time.monotonic() - start
    expected = contents(folder / "whole")
    moments = random.Random(seed)
    result = {"kills": 0, "chains": 0, "equal": 0, "broken": 0, "seconds": round(seconds, 2)}
    while result["kills"] < kills:
        place = folder / f"chain-{result['chains']}"
        killed = 0
        while True:
            more = killed < CHAIN and result["kills"] < kills
            status = in_child(partial(work, place), moments.uniform(0, seconds) if more else None)
            if status is not None:
                break
            killed += 1
            result["kills"] += 1
            result["broken"] += _is_broken(place)
        result["chains"] += 1
        result["equal"] += status == 0 and contents(place) == expected
    return result


def _is_broken(folder: Path) -> bool:
    try:
        contents(folder)
    except ValueError:
        return True
    return False


def _is_littered(folder: Path) -> bool:
    """Tell whether there is a part of a file that nobody will finish; after a kill the next start takes it away."""
    return any(folder.rglob(".*.partial")) or any(folder.rglob(".saving-*"))


def full_disks(work: Callable[[Path], object], folder: Path, limits: list[int]) -> dict:
    """Let `work` meet a limit of the size of files, then start it again without one.

    Returns:
        `disks`, how many of them gave exit status 2 (one line) or did not matter, and after how many it went on.
    """
    result = {"disks": len(limits), "clear": 0, "went_on": 0}
    expected = None
    for limit in limits:
        place = folder / f"limit-{limit}"
        status = in_child(partial(work, place), limit=limit)
        result["clear"] += status in (0, 2) and not _is_broken(place) and not _is_littered(place)
        again = in_child(partial(work, place))
        left = contents(place)
        expected = left if expected is None else expected
        result["went_on"] += again == 0 and left == expected
    return result


def vprompt(*arguments) -> Callable[[Path], None]:
    """Return a command of the command line as a function of its output."""

    def run(output: Path) -> None:
        from vprompt import app

        app([str(argument) for argument in (*arguments, "--output", output)])

    return run


QUICK = ("--shots", 2, "--epochs", 4, "--batch-size", 16)

#: What is tried, by name.
COMMANDS = {
    "train": vprompt("train", "--method", "coop", *QUICK),
    "sweep": vprompt(
        "sweep",
        "--method",
        "coop",
        "--shots",
        1,
        "--epochs",
        1,
        "--rates",
        "1,0.5",
        "--weight-decays",
        0,
        "--seeds",
        1,
    ),
    "demo": vprompt("demo", "--methods", "zero-shot,coop", "--shots", 1),
    "noise-study": vprompt(
        "noise-study",
        "--methods",
        "coop",
        "--rates",
        "0,0.5",
        "--losses",
        "ce",
        "--seeds",
        1,
        "--shots",
        2,
        "--epochs",
        2,
    ),
    "pseudo-label": lambda output: vprompt("pseudo-label")(output / "labels.safetensors"),
}


def features(output: Path) -> None:
    """Keep the features of the embedded images in a folder, and write them down."""
    from peft_vprompt.data import EvalTransform
    from peft_vprompt.demo import demo_task
    from peft_vprompt.experiments.models import build_model
    from peft_vprompt.training.cached_features import cache_features
    from peft_vprompt.utils.io import write_json

    rows = demo_task("test")
    clip = build_model(None, "coop", rows.features["label"].names)
    found = cache_features(clip.model, rows, EvalTransform(clip.image_processor), cache_dir=output / "cache")
    write_json({"features": np.asarray(found["image_features"][:]).tolist()}, output / "features.json")


def save(output: Path) -> None:
    """Save two adapters over each other, many times."""
    import torch

    from peft_vprompt.demo import CLASS_NAMES
    from peft_vprompt.experiments.models import build_model

    model = build_model(None, "coop", CLASS_NAMES).model
    for turn in range(40):
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.constant_(parameter, turn % 2)
        model.save_pretrained(output)


def memory(switches: int, lists: int) -> dict:
    """Switch adapters and class lists many times; return the resident memory in megabytes after a tenth and at the end."""
    import torch

    from peft_vprompt import CoOpConfig
    from peft_vprompt.demo import CLASS_NAMES
    from peft_vprompt.experiments.models import build_model

    model = build_model(None, "coop", CLASS_NAMES).model.eval()
    model.add_adapter("other", CoOpConfig(class_names=list(CLASS_NAMES[:8]), num_virtual_tokens=4))
    model.set_adapter("default")
    result = {"adapter_switches": switches, "class_lists": lists}
    with torch.no_grad():
        for turn in range(switches):
            model.set_adapter(("default", "other")[turn % 2])
            model.encode_classes()
            if turn in (switches // 10, switches - 1):
                result.setdefault("switches_mb", []).append(_resident())
        for turn in range(lists):
            model.set_class_names([f"{CLASS_NAMES[turn % 32]} {turn}", *CLASS_NAMES[:3]])
            model.encode_classes()
            if turn in (lists // 10, lists - 1):
                result.setdefault("lists_mb", []).append(_resident())
    return result


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def fingerprint_share(settings, data) -> float:
    """Return which share of a run its identity takes."""
    from peft_vprompt.experiments.identity import Contents
    from peft_vprompt.experiments.run import Run, run_experiment
    from peft_vprompt.experiments.run_state import RunOptions

    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        run_experiment(settings, data, Path(folder) / "run", quiet=True)
        whole = time.perf_counter() - start
        run = Run(settings, data, Path(folder) / "other", RunOptions())
        run.build()
        start = time.perf_counter()
        run.identify(Contents(data))
        images = time.perf_counter() - start
        from peft_vprompt.experiments.models import base_content, load_base

        base = load_base(settings.model)
        start = time.perf_counter()
        base_content(base)
        return (images + time.perf_counter() - start) / whole


def main(kills: int = 20) -> None:
    """Try what is not in the results yet, and write them after each part."""
    from datasets import DatasetDict

    from peft_vprompt.demo import demo_task
    from peft_vprompt.experiments.settings import Settings
    from peft_vprompt.utils.environment import environment
    from peft_vprompt.utils.io import read_json, write_json

    data = DatasetDict(train=demo_task("train"), test=demo_task("test"))  # drawn once, for all children
    results = read_json(RESULTS, missing_ok=True) or {"kills": {}, "full_disks": {}}

    def part(place: dict, name: str, measure: Callable[[], object]) -> None:
        if name not in place:
            place[name] = measure()
            print(name, place[name], file=sys.stderr)
            write_json(results | {"environment": environment()}, RESULTS)

    part(results, "memory", lambda: memory(1000, 2000))
    settings = Settings("coop", shots=16, epochs=50, base_novel=True)
    part(results, "fingerprint_share", lambda: fingerprint_share(settings, data))
    with TemporaryDirectory() as name:
        folder = Path(name)
        for command, work in (COMMANDS | {"features": features, "save": save}).items():
            part(results["kills"], command, partial(kill_trials, work, folder / "kills" / command, kills))
        for command in ("train", "sweep", "pseudo-label"):
            part(
                results["full_disks"],
                command,
                partial(full_disks, COMMANDS[command], folder / "disks" / command, LIMITS),
            )


if __name__ == "__main__":
    main()
