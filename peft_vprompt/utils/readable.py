"""Whether files that were written can be read back, every byte of them, without unpickling anything."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open


#: Files of weights, whose values must be finite; other tensors (of an average, say) have their reasons.
WEIGHTS = ("adapter_model.safetensors", "model.safetensors")
#: Endings of the files that torch writes: zip archives with a check sum for each record.
ARCHIVES = (".pt", ".pth", ".bin")


def unreadable_files(folder: str | Path) -> list[str]:
    """Return what is wrong with the files in a folder, one line for each that cannot be read back.

    Tensors must be there, and finite where they are weights; records of torch's archives must have their check sums; JSON
    must parse. Other files are not looked at.
    """
    problems = []
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        try:
            problem = _problem(path)
        except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
            problem = str(error) or type(error).__name__
        if problem:
            problems.append(f"{path.relative_to(folder)}: {problem}")
    return problems


def _problem(path: Path) -> str | None:
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        weights = tensors if path.name in WEIGHTS else {}
        bad = [name for name, tensor in weights.items() if not bool(tensor.double().isfinite().all())]
        return f"values that are not finite in {bad[:4]}" if bad else None
    if path.suffix in ARCHIVES:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        return f"the record {damaged} is damaged" if damaged else None
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    return None
