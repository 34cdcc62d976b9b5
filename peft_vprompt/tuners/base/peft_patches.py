"""What of PEFT is changed, with the reason, the undo and the end of each patch.

* `name_damaged_configs`: PEFT reads `adapter_config.json` before it knows whose it is. A damaged file ends in a `KeyError`, a
  `RecursionError` or a message without the file's name, and a file of any size is read whole. With the patch each of these is
  an `AdapterMismatchError` that names the file; what is intact is read as before. `undo_named_configs` takes it back. It
  goes when PEFT checks its configs.
* `keep_wrapped_names`: transformers' `load_adapter` also renames an adapter's keys as it does those of its base model's old
  checkpoints. For AltCLIP that turns every `layer.` into `layers.`, and so the `base_layer.` of a wrapped encoder into a name
  that no module has: copies of modules inside were left at their first values. With the patch it is turned back. It goes when
  transformers looks for whole names there.
* `keep_adapters_apart`: PEFT leaves out whatever has another adapter's name anywhere in its path when it collects the tensors
  of one: beside an adapter "0" all that is in a layer 0. With the patch the name counts where adapters stand, behind the
  name of their `ModuleDict`. `unpatched` of the function is PEFT's own. It goes when PEFT looks there.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from types import ModuleType
from typing import Any

from peft.config import PeftConfigMixin
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from peft.utils import save_and_load

from ...errors import AdapterMismatchError
from ...utils.fields import shown
from ...utils.late_imports import patch_functions
from .patterns import check_patterns


#: Largest config in bytes: two hundred thousand class names are a fifth of it.
MAX_CONFIG_BYTES = 2**25

#: Name of this package, which the classes of its configs and models are from.
OWN_PACKAGE = __name__.partition(".")[0]

_original = PeftConfigMixin.__dict__["from_json_file"]


def name_damaged_configs() -> None:
    """Let PEFT name the file of a config that it cannot read. Does nothing where it is done."""
    setattr(PeftConfigMixin, "from_json_file", classmethod(_from_json_file))  # noqa: B010


def undo_named_configs() -> None:
    """Give PEFT its own reader back."""
    PeftConfigMixin.from_json_file = _original


def _from_json_file(cls, path_json_file: str, **kwargs) -> dict:
    """Read a config as PEFT does.

    Raises:
        AdapterMismatchError: the file is no config of a method that is known here, or one of ours with patterns of modules
            that could take for ever.
    """
    values: Any = None
    try:
        status = os.stat(path_json_file)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_CONFIG_BYTES:
            _refuse(path_json_file, f"a file of {status.st_size:,} bytes, or no file of its own")
        values = _original.__func__(cls, path_json_file, **kwargs)
    except AdapterMismatchError:
        raise
    except (ValueError, TypeError, RecursionError, OSError) as error:
        _refuse(path_json_file, f"one that cannot be read ({type(error).__name__})", error)
    if not isinstance(values, dict) or "self" in values:
        _refuse(path_json_file, "JSON that is no table of fields")
    mapping = values.get("auto_mapping")
    own = mapping.get(OWN_PACKAGE, {}) if isinstance(mapping, dict) else {}
    if not isinstance(mapping, dict | None) or not isinstance(own, dict):
        _refuse(path_json_file, f"auto_mapping={shown(mapping)}, which is no table of what was recorded")
    method = values.get("peft_type")
    if not isinstance(method, str) or method not in PEFT_TYPE_TO_CONFIG_MAPPING:
        known = ", ".join(sorted(str(getattr(name, "value", name)) for name in PEFT_TYPE_TO_CONFIG_MAPPING))
        remedy = (
            "Import the module that registers the method, or install the version of peft_vprompt or peft that has it. If there "
            "is none, save or download the adapter again, whole."
        )
        _refuse(path_json_file, f"peft_type={shown(method)}, which is none of {known}", remedy=remedy)
    if PEFT_TYPE_TO_CONFIG_MAPPING[method].__module__.startswith(f"{OWN_PACKAGE}."):
        check_patterns(values, path_json_file)
    return values


def _refuse(
    path: str, received: str, cause: Exception | None = None, remedy: str = "Save or download it again, whole."
) -> None:
    raise AdapterMismatchError(
        f"Expected the config of an adapter in {os.fspath(path)!r}. Received {received}. {remedy}"
    ) from cause


def keep_wrapped_names(conversion: ModuleType) -> None:
    """Let PEFT's module of the renamings that transformers needs keep the name of what a tuner layer has inside."""
    patch_functions(conversion, {"build_peft_weight_mapping": _with_base_layer})


def _with_base_layer(original: Callable) -> Callable:
    from transformers.core_model_loading import WeightRenaming  # there wherever PEFT has that module

    def build_peft_weight_mapping(*args, **kwargs) -> list:
        mapping = original(*args, **kwargs)
        return [*mapping, WeightRenaming(r"\.base_layers\.", ".base_layer.")] if mapping else mapping

    return build_peft_weight_mapping


def keep_adapters_apart() -> None:
    """Let PEFT tell adapters apart by the place of their names in the names of tensors."""
    patch_functions(save_and_load, {"_filter_state_dict_for_adapter_name": _by_place})


def _by_place(original: Callable) -> Callable:
    def filter_state_dict(state_dict: dict, unwanted_adapter_names: list[str]) -> dict:
        starts = "|".join({re.escape(prefix) for prefix in PEFT_TYPE_TO_PREFIX_MAPPING.values()})
        # Each place of a name, as modules of the base model may be called like one too (`text_encoder_1`).
        place = re.compile(rf"(?<![^.])(?:modules_to_save|(?:{starts})[^.]*)\.(?=([^.]+))")
        found = {key: names for key in state_dict if (names := set(place.findall(key)))}
        others = original({key: state_dict[key] for key in state_dict if key not in found}, unwanted_adapter_names)
        kept = others.keys() | {key for key, names in found.items() if names.isdisjoint(unwanted_adapter_names)}
        return {key: value for key, value in state_dict.items() if key in kept}

    return filter_state_dict
