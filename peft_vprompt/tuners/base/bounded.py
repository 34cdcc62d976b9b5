"""No config takes more memory than it may: new tensors are counted before they are made.

A config of two kilobytes can ask for a billion prompts. `bounded` compares what is about to be made with the file that the
config was saved beside, or, for a new adapter, with the base model. It knows no method: it looks at every tensor that
`torch` is asked for in the meantime.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from huggingface_hub import hf_hub_download
from peft import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...errors import AdapterMismatchError


#: A new adapter may have as many numbers as its base model so many times, and so many more.
TIMES_BASE_MODEL = 4
BESIDE_BASE_MODEL = 2**24

#: A saved adapter is made of as many numbers as its file holds; first values pass through copies.
TIMES_FILE = 4
BESIDE_FILE = 2**20

#: Operations that make a tensor of a size that they are told.
_BY_SIZE = (
    *("empty", "zeros", "ones", "full", "rand", "randn", "randint", "normal", "eye", "arange", "empty_strided"),
    *("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided", "repeat", "empty_permuted"),
)


@contextmanager
def bounded(config: PeftConfig, model: nn.Module) -> Iterator[None]:
    """Refuse tensors, before they are made, of which a config asks for too many while the block runs.

    Raises:
        AdapterMismatchError: a saved config asks for more than its file of weights holds.
        ValueError: a new one asks for many times the parameters of the base model.
    """
    saved_in: Any = getattr(config, "saved_in", None)
    held = None if saved_in is None else saved_numbers(*saved_in)
    if held is not None:
        error = AdapterMismatchError(
            f"The config of the adapter in {str(saved_in[0])!r} asks for more numbers than the {held:,} of its file of "
            f"weights. Received: {_largest(config)}. Save or download it again, whole."
        )
        limit = TIMES_FILE * held + BESIDE_FILE
    else:
        size = sum(parameter.numel() for parameter in model.parameters())
        limit = TIMES_BASE_MODEL * size + BESIDE_BASE_MODEL
        error = ValueError(
            f"Expected an adapter of at most {limit:,} numbers, for a base model of {size:,}. Received a config that asks "
            f"for more: {_largest(config)}. Use smaller values."
        )
    with _Counted(limit, error):
        yield


class _Counted(TorchDispatchMode):
    """Raises an error instead of making more numbers than a limit."""

    def __init__(self, limit: int, error: Exception):
        super().__init__()
        self.left = limit
        self.error = error

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.left -= _made_by(func.overloadpacket.__name__, args)
        if self.left < 0:
            raise self.error
        return func(*args, **(kwargs or {}))


def _made_by(name: str, args: tuple) -> int:
    """Return how many numbers an operation is going to make, 0 where it only works on what there is."""
    if name == "embedding":
        return args[0].shape[1] * args[1].numel()
    if name not in _BY_SIZE:
        return 0
    size = next((arg for arg in args if isinstance(arg, (list, tuple))), ())
    made = math.prod(size) if size else next((arg for arg in args if isinstance(arg, int)), 0)
    return made * (args[0].numel() if name == "repeat" else 1)


def saved_numbers(model_id: str | os.PathLike, options: dict) -> int | None:
    """Return how many numbers a saved adapter's safetensors file holds, None without one; see `saved_shapes`."""
    shapes = saved_shapes(model_id, options)
    return None if shapes is None else sum(map(math.prod, shapes.values()))


def saved_shapes(model_id: str | os.PathLike, options: dict) -> dict[str, list[int]] | None:
    """Return the shapes that the header of a saved adapter's safetensors file names, None without such a file.

    Args:
        model_id: folder or Hub id of the adapter. Of the Hub the file is downloaded, as loading does right afterwards.
        options: `subfolder`, `revision`, `cache_dir` and `token`, as for `PeftModel.from_pretrained`.
    """
    folder = os.path.join(model_id, options.get("subfolder") or "")
    path = os.path.join(folder, SAFETENSORS_WEIGHTS_NAME) if os.path.isdir(folder) else _downloaded(model_id, options)
    if path is None or not os.path.isfile(path):
        return None
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return None  # loading says what is wrong with it


def _downloaded(model_id: str | os.PathLike, options: dict) -> str | None:
    """Return the file of weights of an adapter on the Hub; None where the config was not from there, or there is none."""
    place: dict[str, Any] = {key: options.get(key) for key in ("subfolder", "cache_dir", "revision")}
    try:
        hf_hub_download(str(model_id), CONFIG_NAME, local_files_only=True, **place)
        return hf_hub_download(str(model_id), SAFETENSORS_WEIGHTS_NAME, token=options.get("token"), **place)
    except (OSError, ValueError):
        return None  # a folder that has gone since; weights of another kind; loading says what is wrong with others


def _largest(config: PeftConfig) -> str:
    """Name the largest numbers and the longest lists of a config."""
    sizes = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, int) and not isinstance(value, bool):
            sizes[field.name] = value, f"{field.name}={value}"
        elif isinstance(value, (list, tuple)):
            sizes[field.name] = len(value), f"{field.name} of {len(value):,} entries"
    largest = sorted(sizes.values(), reverse=True)[:2]
    return " and ".join(words for _, words in largest)
