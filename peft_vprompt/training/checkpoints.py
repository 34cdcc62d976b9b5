"""Checkpoints that are whole: sealed when all their parts are written, and only such are resumed from."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..utils.arguments import typed
from ..utils.digests import digest_json
from ..utils.io import read_json, write_json
from ..utils.process_watch import set_restart_hint
from ..utils.readable import unreadable_files
from ..utils.warning import warn_caller


#: List of the files of a checkpoint, with their digests: the last file that is written of it.
SEAL = "complete.json"

#: The average of the weights so far, in a checkpoint.
AVERAGE_FILE = "weight_average.safetensors"

#: What all checkpoints of a folder are called, as a pattern.
CHECKPOINTS = f"{PREFIX_CHECKPOINT_DIR}-*"


class KeepLastCheckpoint(TrainerCallback):
    """Seal every checkpoint once it was read back, then delete the older ones.

    Has to stand after all callbacks that write into a checkpoint.

    Raises:
        OSError: the new checkpoint cannot be read back. The older one stays.
    """

    def on_save(self, args, state, control, **kwargs):
        """Read the checkpoint of this step, seal it, then delete the others.

        Raises:
            OSError: it cannot be read back.
        """
        if args.world_size > 1:  # each process writes its random numbers into it
            args.distributed_state.wait_for_everyone()
        new = checkpoint_of(args, state)
        say_kept(new)
        if not state.is_world_process_zero:
            return
        if problems := unreadable_files(new):
            shutil.rmtree(new, ignore_errors=True)
            raise OSError(
                f"The checkpoint {new} cannot be read back: {'; '.join(problems[:4])}. It was deleted, and an older one "
                "stays. Look whether the disk is full or damaged, and start the run again: it goes on from there."
            )
        write_json({"files": _digests(new)}, new / SEAL)
        for other in new.parent.glob(CHECKPOINTS):
            if other != new:
                shutil.rmtree(other, ignore_errors=True)


def say_kept(checkpoint: Path | None) -> None:
    """Let the message of an end that nobody wanted say what a start in the same way goes on from."""
    place = (
        f"the training goes on from {checkpoint}" if checkpoint else "the training starts afresh, as no epoch is done"
    )
    set_restart_hint(f"Started again in the same way, {place}.")


def checkpoint_of(args: TrainingArguments, state: TrainerState) -> Path:
    """Return where the Trainer writes the checkpoint of the step that was made."""
    # pyrefly: ignore[bad-argument-type]  # a Trainer always has a folder
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint, by its name; -1 where that has none."""
    digits = checkpoint.name.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else -1


def find_average(checkpoint: Path) -> Path | None:
    """Return the file of the average that goes with a checkpoint, in it or waiting beside it; None without one."""
    places = (checkpoint / AVERAGE_FILE, waiting_average(checkpoint))
    return next((place for place in places if place.is_file()), None)


def waiting_average(checkpoint: Path) -> Path:
    """Return where the average waits for the Trainer to write its part of a checkpoint."""
    return checkpoint.with_name(f".{checkpoint.name}-{AVERAGE_FILE}")


def checkpoint_folder(output_dir: str | Path, settings: dict) -> Path:
    """Return the folder for the checkpoints of one run: the same for the same settings, another for any other."""
    return Path(output_dir) / "checkpoints" / digest_json(settings, 12)


@typed
def last_checkpoint(folder: str | Path, averaged: bool = False) -> Path | None:
    """Return the newest complete checkpoint; a newer one that lacks a part is passed over with a warning.

    The Trainer writes its state last, so without one a checkpoint was cut off; where there is a seal, all files are as
    it says. A checkpoint of a run with `averaged` weights is complete with the average alone.
    """
    found = sorted(Path(folder).glob(CHECKPOINTS), key=step_of, reverse=True)
    for checkpoint in found:
        problem = _problem(checkpoint, averaged)
        if problem is None:
            return checkpoint
        warn_caller(f"The checkpoint {str(checkpoint)!r} is passed over: {problem}.")
    return None


def _problem(checkpoint: Path, averaged: bool) -> str | None:
    """Return what a checkpoint lacks; None where it is complete."""
    try:
        step = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).global_step
    except FileNotFoundError:
        return "it was cut off before trainer_state.json"
    except (ValueError, TypeError, RecursionError):
        return "its trainer_state.json is damaged"
    if step != step_of(checkpoint):
        return f"its state is that of step {step}"
    if averaged and find_average(checkpoint) is None:
        return f"it lacks {AVERAGE_FILE}"
    try:
        sealed = read_json(checkpoint / SEAL, missing_ok=True)
        files = {} if sealed is None else dict(sealed["files"])
    except (ValueError, KeyError, TypeError):
        return f"its {SEAL} is damaged"
    present = _digests(checkpoint)
    needed = {name: digest for name, digest in files.items() if averaged or name != AVERAGE_FILE}
    other = [name for name, digest in needed.items() if present.get(name) != digest]
    return f"{', '.join(other)} is not as it was written" if other else None


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != SEAL:
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()[:32]
    return found
