"""`SavedPeftModel`: saving that never leaves anything half-written, loading that fits or changes nothing, and the card."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import HfApi, ModelCard
from peft import PeftConfig
from peft.utils import (
    SAFETENSORS_WEIGHTS_NAME,
    WEIGHTS_NAME,
    load_peft_weights,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from torch import Tensor

from ..backbones.supported import HEADS, class_name
from ..core.offloading import is_sharded
from ..core.tokenization import resolve_local_path
from ..errors import AdapterMismatchError
from ..losses.label_checks import MULTI_LABEL
from ..tuners.base import registry
from ..tuners.base.config import BASELINE_TASK_TYPE, ClassifierConfig, PromptConfig
from ..tuners.base.mixed_class import plain_class
from ..tuners.base.switching import adapter_layers, adapter_parameters, require_unmerged
from ..utils.archive import Archive
from ..utils.pickled import PickleError, Stored
from ..utils.readable import unreadable_files
from ..utils.validation import first_line, shorten
from .adapter_files import adapter_files, check_digest, complete_adapter, saved_otherwise, tell_other_config
from .adapter_model import AdapterModel
from .card_details import CardDetails
from .labels import plain_config
from .model_card import (
    add_tags,
    is_generated,
    is_untouched,
    render_model_card,
    row_of,
    seal,
    take_results,
    with_snippet,
)
from .publishing import download_card, publish_card, publish_configs


#: What `PeftModel.from_pretrained` says, all of it, when it loads the weights of the model it has just made.
FROM_PRETRAINED = {"is_trainable", "autocast_adapter_dtype", "low_cpu_mem_usage", "key_mapping"}


#: What the config tells those who look into it because PEFT does not know the method.
IMPORT_NOTE = "Run `import {}` before loading: it registers this method with PEFT and transformers."


class SavedPeftModel(AdapterModel):
    """A base model with adapters of ours. Made by `get_peft_model` and `PeftModel.from_pretrained`."""

    _has_loaded = False
    _is_published = False
    #: Repository and branch of the Hub that is published to.
    _published_as: tuple[str | None, str | None] = (None, None)
    #: What the card says of the training.
    card_details: CardDetails | None = None

    # ---- loading ----------------------------------------------------------------------------------------------

    def load_adapter(self, model_id: str | os.PathLike, adapter_name: str, *args, **kwargs):
        """Load an adapter's weights, all of them or none.

        Raises:
            AdapterMismatchError: the file cannot be read, is not a plain tensor file, or its tensors are not exactly
                the ones this model needs. The model is left as it was.
            ValueError: the adapter is there and merged.
        """
        require_unmerged(self, adapter_name)
        is_new = adapter_name not in self.peft_config
        made_to_load = not (is_new or self._has_loaded) and kwargs.keys() >= FROM_PRETRAINED
        before = None if is_new else {key: value.clone() for key, value in self.adapter_state(adapter_name).items()}
        try:
            result = self._load_checked(model_id, adapter_name, *args, **kwargs)
        except BaseException:
            if is_new and adapter_name in self.peft_config:
                self.delete_adapter(adapter_name)
            elif made_to_load:
                self._take_back(adapter_name)  # nobody but from_pretrained holds this model
            elif before is not None:
                set_peft_model_state_dict(self, before, adapter_name)
            raise
        self._has_loaded = True
        self._show_labels()
        # Assigned weights (low_cpu_mem_usage) are views into the file, whose alignment changes the last bits of sums.
        for key, parameter in self.named_parameters():
            if f".{adapter_name}." in key:
                parameter.data = parameter.data.clone()
        return result

    def _take_back(self, adapter_name: str) -> None:
        """Undo the making of this model: the base model may have had adapters before."""
        if len(self.peft_config) == 1:
            self.unload()
        else:
            self.delete_adapter(adapter_name)

    def _load_checked(self, model_id, adapter_name, *args, **kwargs):
        hub_options, _ = self._split_kwargs(kwargs)
        folder = Path(model_id, hub_options.get("subfolder") or "")
        complete_adapter(folder)
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
        check_digest(weights, model_id, hub_options)
        if mapping := kwargs.get("key_mapping"):
            weights = load_peft_weights(str(model_id), device="cpu", key_mapping=mapping, **hub_options)
        if adapter_name in self.peft_config:
            self._check_fit(adapter_name, weights, model_id, hub_options)
            if isinstance(self.peft_config[adapter_name], PromptConfig):
                tell_other_config(self.peft_config[adapter_name], model_id, hub_options)
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
            found = shorten(sorted(path.name for path in folder.iterdir())) or "an empty folder"
            raise AdapterMismatchError(
                f"Expected the weights of the adapter, {' or '.join(expected)}, in {str(folder)!r}. Received: {found}. "
                "Save or download it again, whole."
            )

    def _check_fit(self, adapter_name: str, weights: dict[str, Tensor], model_id, hub_options: dict) -> None:
        """Refuse a saved adapter that is not for this model."""
        self.check_weights(weights, adapter_name, model_id, hub_options)

    def check_weights(
        self,
        weights: dict[str, Tensor],
        adapter_name: str,
        model_id: str | os.PathLike,
        hub_options: dict | None = None,
    ) -> None:
        """Compare the tensors of a file, `model_id`, with what this model needs for an adapter.

        `hub_options` are those of a folder or Hub id that has a config beside the file.

        Raises:
            AdapterMismatchError: names, types or shapes differ, or values are not finite.
        """
        state = self.adapter_state(adapter_name)
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
            remedy = self._remedy(adapter_name, model_id, hub_options)
            raise AdapterMismatchError(
                f"The adapter in {str(model_id)!r} does not fit this {type(self.get_base_model()).__name__}: "
                f"{'; '.join(sorted(problems)[:4])}{' ...' if len(problems) > 4 else ''}. {remedy}"
            )
        bad = [key for key, value in weights.items() if not bool(torch.isfinite(value).all())]
        if bad:
            raise AdapterMismatchError(f"The adapter in {str(model_id)!r} has NaN or infinite values in {bad[:4]}.")

    def _remedy(self, adapter_name: str, model_id: str | os.PathLike, hub_options: dict | None) -> str:
        """Return what helps where the tensors of a file are not those that an adapter needs."""
        config: Any = self.peft_config[adapter_name]
        ours = isinstance(config, PromptConfig) and hub_options is not None
        other = saved_otherwise(config, model_id, hub_options or {}) if ours else []
        if not other:
            trained_on = config.base_model_name_or_path or "a model built in memory"
            return f"It was trained on {trained_on}; load it on that model, or save it again."
        next_stage = any(field.startswith("head_classes=[") for field in other) and config.head_classes is None
        return (
            f"It was saved with {', '.join(other)}. {'Call model.start_class_head() first, or load' if next_stage else 'Load'} "
            "it with PeftModel.from_pretrained or under another name, which takes its config too."
        )

    # ---- saving -----------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """Save adapters as PEFT does, all files of them together: a kill leaves the old adapter or the new one.

        Classes are saved by the names the adapter was configured or trained with.

        What was written is read back before it takes its place: what the folder held stays where that fails.

        Raises:
            OSError: the files cannot be read back.
            ValueError: `save_directory` is a file, there is no adapter, one has values that are not finite, or something
                is trained that belongs to none.
            CannotWriteError: the disk is full, or the folder is not to be written.
        """
        target = Path(save_directory)
        if target.is_file():
            raise ValueError(f"Expected a directory to save to. Received a file: {str(target)!r}.")
        if not kwargs.get("is_main_process", True):
            super().save_pretrained(str(target), *args, **kwargs)
            return
        if not self.peft_config:
            raise ValueError("Expected an adapter to save. Received a model whose last adapter was deleted.")
        self._check_nothing_left_out()
        for name in kwargs.get("selected_adapters") or self.peft_config:
            self._check_values(name, kwargs.get("state_dict"))
            self._complete_config(self.peft_config.get(name))
        with adapter_files(target) as staging:
            super().save_pretrained(str(staging), *args, **kwargs)
            if self._is_published:
                publish_configs(staging)
            self._check_written(staging, target)

    def _check_written(self, staging: Path, target: Path) -> None:
        """Read the files of a folder back before they are called saved."""
        if problems := unreadable_files(staging):
            raise OSError(
                f"The adapter cannot be read back from where it was written: {'; '.join(problems[:4])}. Nothing in "
                f"{str(target)!r} was changed. Look whether the disk is full or damaged, and save again."
            )

    @contextmanager
    def publishing(self, repo_id: str | None = None, revision: str | None = None) -> Iterator[None]:
        """Save without paths of this machine until the block ends: for what others will load, from a repository."""
        before = self._is_published, self._published_as
        self._is_published, self._published_as = True, (repo_id, revision)
        try:
            yield
        finally:
            self._is_published, self._published_as = before

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str | None = None,
        tags: Sequence[str] | None = None,
        card: str | os.PathLike | None = None,
    ) -> Any:
        """Upload the adapters, their configs and the card to the Hub; see `transformers.utils.PushToHubMixin`.

        A card that the repository has already is kept and updated, if somebody wrote or edited it; transformers' own
        method would write another one over ours. Local paths are left out. `max_shard_size` means nothing here. A file
        `card` stands for the card where the repository has none.
        """
        repo_id = HfApi().create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        with TemporaryDirectory() as folder, self.publishing(repo_id, revision):
            download_card(repo_id, folder, revision, token, card)
            self.save_pretrained(folder)
            if tags:
                add_tags(Path(folder, "README.md"), tags)
            return self._upload_modified_files(
                folder,
                repo_id,
                files_timestamps={},
                commit_message=commit_message or "Upload adapter",
                commit_description=commit_description,
                token=token,
                create_pr=create_pr,
                revision=revision,
            )

    def _check_values(self, adapter_name: str, given: dict[str, Tensor] | None) -> None:
        """Refuse to save what could not be loaded again: of this process, or of a `given` state of the whole model."""
        if adapter_name not in self.peft_config:
            return
        state = self.adapter_state(adapter_name, given)
        if sharded := [key for key, value in state.items() if is_sharded(value)]:
            raise ValueError(
                f"Expected whole tensors to save. Received shards of {sharded[0]} (FSDP). Gather them in every process with "
                "state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), of "
                "torch.distributed.checkpoint.state_dict, and call save_pretrained(folder, state_dict=state)."
            )
        bad = [key for key, value in state.items() if not (value.is_meta or bool(value.isfinite().all()))]
        if bad:
            raise ValueError(
                f"Adapter {adapter_name!r} has NaN or infinite values in {bad[:4]}, so it is not saved; what the folder "
                "holds stays. Its training diverged: use a lower learning rate."
            )

    def _check_nothing_left_out(self) -> None:
        """Refuse to save adapters without what was trained beside them: a LoRA of the base model, say.

        Raises:
            ValueError: names what is trained and belongs to no adapter of this model.
        """
        config: Any = self.active_peft_config
        if not registry.is_known(self.peft_type) or getattr(config, "bias", "none") != "none":
            return  # PEFT's own tuners may train the base model's biases, and save them
        kept = set(map(id, adapter_parameters(adapter_layers(self.base_model))))
        left = [name for name, p in self.get_base_model().named_parameters() if p.requires_grad and id(p) not in kept]
        if left:
            raise ValueError(
                f"Expected trained parameters of this model's adapters alone. Received {len(left)} others, which are not "
                f"saved with them: {', '.join(left[:3])}{', ...' if len(left) > 3 else ''}. Freeze them with "
                "requires_grad_(False), name their modules in modules_to_save, or, for a LoRA of the base model, train it "
                "first, merge it (merge_and_unload) and save that base model."
            )

    def _complete_config(self, config: PeftConfig | None) -> None:
        """Record what is needed to rebuild the base model and the tokenizer elsewhere."""
        if config is None:
            return
        base = self.get_base_model()
        base_class = plain_class(base)
        recorded = {
            "base_model_class": base_class.__name__,
            "parent_library": base_class.__module__,
            "note": IMPORT_NOTE.format(registry.registering_module(config)),
        }
        config.auto_mapping = (config.auto_mapping or {}) | recorded
        self._record_head(config)
        config.base_model_name_or_path = resolve_local_path(config.base_model_name_or_path)

    def _record_head(self, config: PeftConfig) -> None:
        """Record the classes of a classification head: the active adapter's are what the base model says at present."""
        base: Any = self.get_base_model()
        if class_name(base) not in HEADS:
            return
        is_active = config is self.peft_config.get(self.active_adapter)
        says = base.config if is_active else plain_config(base)
        labels = dict(says.id2label)
        if is_active and not hasattr(config, "problem_type"):
            said = {key: value for key, value in (config.auto_mapping or {}).items() if key != "problem_type"}
            config.auto_mapping = said | ({"problem_type": MULTI_LABEL} if self._is_multi_label else {})
        if isinstance(config, ClassifierConfig):
            if config.id2label is None or is_active:
                config.num_labels = says.num_labels
                config.id2label = labels
                config.label2id = dict(says.label2id)
            return
        copied: Any = getattr(config, "modules_to_save", None) or ()
        recorded: Any = config.auto_mapping or {}
        is_copied = HEADS[class_name(base)] in copied  # else the head is the base model's
        if is_copied and (is_active or "id2label" not in recorded):
            config.auto_mapping = recorded | {"id2label": {str(index): name for index, name in labels.items()}}

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Write a model card with a snippet that runs as it stands; a card that somebody edited is only updated.

        A card that the Trainer or transformers wrote gets our snippet and tags.
        """
        if row_of(self) is None:
            super().create_or_update_model_card(output_dir)
            return
        path = Path(output_dir) / "README.md"
        text = path.read_text(encoding="utf-8") if path.is_file() else None
        ours = text is None or is_untouched(text)
        repo_id, revision = self._published_as
        rendered = render_model_card(self, self._is_published, self.card_details, repo_id=repo_id, revision=revision)
        if ours:
            path.write_text(rendered, encoding="utf-8")
        elif is_generated(text):
            path.write_text(with_snippet(text, rendered), encoding="utf-8")
        else:
            edited = ModelCard(text, ignore_metadata_errors=True)
            take_results(edited, ModelCard(rendered))
            path.write_text(str(edited), encoding="utf-8")
        before: Any = ModelCard.load(path).data
        tags = set(before.tags or ())
        super().create_or_update_model_card(output_dir)
        card: Any = ModelCard.load(path)
        card.data.tags = sorted({*tags, *(card.data.tags or ())})  # PEFT puts its own in their place
        publish_card(card)
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
