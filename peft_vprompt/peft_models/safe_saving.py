"""`SavedPeftModel`: saving that never leaves anything half-written, loading that fits or changes nothing, and the card."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import ModelCard
from peft import PeftConfig, PeftModel
from peft.utils import (
    SAFETENSORS_WEIGHTS_NAME,
    WEIGHTS_NAME,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from torch import Tensor

from ..core.tokenization import resolve_local_path
from ..errors import AdapterMismatchError
from ..tuners.base import registry
from ..tuners.base.config import BASELINE_TASK_TYPE
from ..utils.archive import Archive
from ..utils.io import atomic_files
from ..utils.pickled import PickleError, Stored
from ..utils.readable import unreadable_files
from ..utils.validation import first_line
from .model_card import is_untouched, render_model_card, seal


#: What `PeftModel.from_pretrained` says, all of it, when it loads the weights of the model it has just made.
FROM_PRETRAINED = {"is_trainable", "autocast_adapter_dtype", "low_cpu_mem_usage", "key_mapping"}


class SavedPeftModel(PeftModel):
    """A base model with adapters of ours. Made by `get_peft_model` and `PeftModel.from_pretrained`."""

    _has_loaded = False

    # ---- loading ----------------------------------------------------------------------------------------------

    def load_adapter(self, model_id: str | os.PathLike, adapter_name: str, *args, **kwargs):
        """Load an adapter's weights, all of them or none.

        Raises:
            AdapterMismatchError: the file cannot be read, is not a plain tensor file, or its tensors are not exactly
                the ones this model needs. The model is left as it was.
        """
        is_new = adapter_name not in self.peft_config
        made_to_load = not (is_new or self._has_loaded) and kwargs.keys() >= FROM_PRETRAINED
        before = None if is_new else self._adapter_state(adapter_name)
        try:
            result = self._load_checked(model_id, adapter_name, *args, **kwargs)
        except BaseException:
            if is_new and adapter_name in self.peft_config:
                self.delete_adapter(adapter_name)
            elif made_to_load:
                self.base_model.unload()  # nobody but from_pretrained holds this model
            elif before is not None:
                set_peft_model_state_dict(self, before, adapter_name)
            raise
        self._has_loaded = True
        # Assigned weights (low_cpu_mem_usage) are views into the file, whose alignment changes the last bits of sums.
        for key, parameter in self.named_parameters():
            if any(f"{kind}.{adapter_name}." in key for kind in ("learner", "readout", "_modules")):
                parameter.data = parameter.data.clone()
        return result

    def _load_checked(self, model_id, adapter_name, *args, **kwargs):
        hub_options, _ = self._split_kwargs(kwargs)
        folder = Path(model_id, hub_options.get("subfolder") or "")
        self._require_weights(folder)
        try:
            _check_pickle(folder)
            weights = load_peft_weights(str(model_id), device="cpu", **hub_options)
        except (SafetensorError, PickleError, UnpicklingError, EOFError, RuntimeError) as error:
            raise AdapterMismatchError(
                f"Cannot read the adapter weights in {str(model_id)!r}: {first_line(error)}. Expected an "
                "intact adapter_model.safetensors (or a .bin of plain tensors; nothing else is unpickled). "
                "Save or download it again."
            ) from error
        if adapter_name in self.peft_config:
            self._check_fit(adapter_name, weights, model_id, hub_options)
        try:
            result = super().load_adapter(model_id, adapter_name, *args, **kwargs)
        except RuntimeError:  # of torch, when a shape differs: ours says which adapter and which model
            if adapter_name in self.peft_config:
                self._check_fit(adapter_name, weights, model_id, hub_options)
            raise
        self._check_fit(adapter_name, weights, model_id, hub_options)
        return result

    @staticmethod
    def _require_weights(folder: Path) -> None:
        """Refuse a folder without a file of weights, which PEFT would look for on the Hub."""
        expected = (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)
        if folder.is_dir() and not any((folder / name).is_file() for name in expected):
            found = ", ".join(sorted(path.name for path in folder.iterdir()))
            raise AdapterMismatchError(
                f"Expected the weights of the adapter, {' or '.join(expected)}, in {str(folder)!r}. Received: {found}. "
                "Save or download it again, whole."
            )

    def _adapter_state(self, adapter_name: str) -> dict[str, Tensor]:
        state = get_peft_model_state_dict(self, adapter_name=adapter_name, save_embedding_layers=False)
        return {key: value.detach().clone() for key, value in state.items()}

    def _check_fit(self, adapter_name: str, weights: dict[str, Tensor], model_id, hub_options: dict) -> None:
        """Refuse a saved adapter that is not for this model."""
        self._check_weights(weights, adapter_name, model_id)

    def _check_weights(self, weights: dict[str, Tensor], adapter_name: str, model_id) -> None:
        """Compare names and shapes of an adapter's tensors with what this model needs."""
        state = get_peft_model_state_dict(self, adapter_name=adapter_name, save_embedding_layers=False)
        expected = {key: tuple(value.shape) for key, value in state.items()}
        problems = [f"missing {key}" for key in expected.keys() - weights.keys()]
        problems += [f"unexpected {key[:200]}" for key in weights.keys() - expected.keys()]
        problems += [
            f"{key} has type {weights[key].dtype} instead of {value.dtype}"
            for key, value in state.items()
            if key in weights and weights[key].is_floating_point() != value.is_floating_point()
        ]
        problems += [
            f"{key} has shape {tuple(weights[key].shape)} instead of {shape}"
            for key, shape in expected.items()
            if key in weights and tuple(weights[key].shape) != shape
        ]
        if problems:
            trained_on = self.peft_config[adapter_name].base_model_name_or_path
            raise AdapterMismatchError(
                f"The adapter in {str(model_id)!r} does not fit this {type(self.get_base_model()).__name__}: "
                f"{'; '.join(sorted(problems)[:4])}{' ...' if len(problems) > 4 else ''}. It was trained on "
                f"{trained_on or 'a model built in memory'}; load it on that model, or save it again."
            )
        bad = [key for key, value in weights.items() if not bool(torch.isfinite(value).all())]
        if bad:
            raise AdapterMismatchError(f"The adapter in {str(model_id)!r} has NaN or infinite values in {bad[:4]}.")

    # ---- saving -----------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """Save adapters as PEFT does, through a temporary folder: no reader ever sees half of a file.

        Classes are saved by the names the adapter was configured or trained with.

        What was written is read back before it takes its place: what the folder held stays where that fails.

        Raises:
            OSError: the files cannot be read back.
            ValueError: `save_directory` is a file, or an adapter has values that are not finite.
        """
        target = Path(save_directory)
        if target.is_file():
            raise ValueError(f"Expected a directory to save to. Received a file: {str(target)!r}.")
        if not kwargs.get("is_main_process", True):
            super().save_pretrained(str(target), *args, **kwargs)
            return
        for name in kwargs.get("selected_adapters") or self.peft_config:
            self._check_finite(name)
            self._complete_config(self.peft_config.get(name))
        with atomic_files(target) as staging:
            if (target / "README.md").is_file():
                shutil.copy2(target / "README.md", staging)
            super().save_pretrained(str(staging), *args, **kwargs)
            self._check_written(staging, target)

    def _check_written(self, staging: Path, target: Path) -> None:
        """Read the files of a folder back before they are called saved."""
        if problems := unreadable_files(staging):
            raise OSError(
                f"The adapter cannot be read back from where it was written: {'; '.join(problems[:4])}. Nothing in "
                f"{str(target)!r} was changed. Look whether the disk is full or damaged, and save again."
            )

    def _check_finite(self, adapter_name: str) -> None:
        """Refuse to save what could not be loaded again."""
        if adapter_name not in self.peft_config:
            return
        state = get_peft_model_state_dict(self, adapter_name=adapter_name, save_embedding_layers=False)
        bad = [key for key, value in state.items() if not (value.is_meta or bool(value.isfinite().all()))]
        if bad:
            raise ValueError(
                f"Adapter {adapter_name!r} has NaN or infinite values in {bad[:4]}, so it is not saved; what the folder "
                "holds stays. Its training diverged: use a lower learning rate."
            )

    def _complete_config(self, config: PeftConfig | None) -> None:
        """Record what is needed to rebuild the base model and the tokenizer elsewhere."""
        if config is None:
            return
        base = self.get_base_model()
        base = getattr(base, "base_layer", base)  # a bare encoder is wrapped whole
        base_class = getattr(type(base), "unlabelled_class", type(base))
        config.auto_mapping = {"base_model_class": base_class.__name__, "parent_library": base_class.__module__}
        config.base_model_name_or_path = resolve_local_path(config.base_model_name_or_path)

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Write a model card with a snippet that runs as it stands; a card that somebody edited is only updated."""
        if not registry.is_known(self.active_peft_config.peft_type):  # a tuner of PEFT's on class names
            super().create_or_update_model_card(output_dir)
            return
        path = Path(output_dir) / "README.md"
        ours = not path.is_file() or is_untouched(path.read_text(encoding="utf-8"))
        if ours:
            path.write_text(render_model_card(self), encoding="utf-8")
        before: Any = ModelCard.load(path).data
        tags = set(before.tags or ())
        super().create_or_update_model_card(output_dir)
        card: Any = ModelCard.load(path)
        card.data.tags = sorted({*tags, *(card.data.tags or ())})  # PEFT puts its own in their place
        path.write_text(seal(str(card)) if ours else str(card), encoding="utf-8")


def _check_pickle(folder: Path) -> None:
    """Read a file of weights that is no safetensors file by our own reader first, which runs and allocates nothing.

    Raises:
        PickleError: it is damaged, asks for a call, or claims to hold more than it does.
    """
    path = folder / WEIGHTS_NAME
    if path.is_file() and not (folder / SAFETENSORS_WEIGHTS_NAME).exists():
        archive = Archive(path)
        values = archive.content.values() if isinstance(archive.content, dict) else [archive.content]
        for value in values:
            if not isinstance(value, Stored):
                raise PickleError("it holds something that is no tensor")
            archive.read(value)


registry.register_model_class(BASELINE_TASK_TYPE, SavedPeftModel)
