"""`PromptTuner`: how prompts get into a model and out again, for all methods.

A method (`PromptMethod`) says which prompts it puts on which tower; injection and adapters are here. Adapters of several
methods may live on one tuner: what concerns one adapter is asked of the method that its config belongs to. Class names,
features and logits are not here: see `classifier`.
"""

from __future__ import annotations

import copy
import dataclasses
from contextlib import nullcontext
from typing import Any

from accelerate import init_empty_weights
from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper, set_additional_trainable_modules
from torch import Tensor, nn

from ...backbones.supported import Backbone
from ...core.batch_norm import hold_statistics
from . import in_place, registry
from .adapter_names import check_adapter_name
from .base_model import backbone_of, check_model, feature_dim, prompted_encoders, trainable, wrap_encoders
from .bounded import bounded
from .config import PromptConfig
from .hf_patches import ask_for_feature, declare_mean_loss, is_stock, restore_class
from .method import PromptMethod
from .module_layer import check_finite
from .prompted_encoder import LEARNER, READOUT, PromptedEncoder
from .prompted_text_encoder import PromptedTextEncoder
from .prompted_vision_encoder import PromptedVisionEncoder
from .switching import adapter_layers, forget_copies, switch_copies
from .tokenizers import Tokenizers
from .tuned_module import CopyBeside, full_precision, require_floats, take_dtypes


class PromptTuner(BaseTuner):
    """Core of the prompt-learning tuners; a subclass names its PEFT prefix and its method."""

    tuner_layer_cls = PromptedEncoder
    shares_model = True
    target_module_mapping: dict = {}
    method: PromptMethod
    peft_config: dict[str, PromptConfig]

    def __init__(self, model: nn.Module, peft_config: PeftConfig | dict[str, PeftConfig], adapter_name: str, **kwargs):
        base = getattr(model, "config", None)
        self.tokenizers = Tokenizers(getattr(base, "_name_or_path", None), getattr(base, "_commit_hash", None))
        carried = prompted_encoders(model)
        alone = isinstance(peft_config, dict)  # from a PEFT model, not from `inject_adapter_in_model`
        theirs = getattr(model, "peft_config", None)  # of a LoRA, say, that the base model carries
        shared = carried[0].configs if carried else {} if alone or theirs is None else theirs
        self._was_trainable = carried[0].was_trainable if carried else trainable(model)
        before = dict(shared)
        shared[adapter_name] = peft_config[adapter_name] if alone else peft_config
        try:
            super().__init__(model, shared, adapter_name, **kwargs)
        except BaseException:
            shared.clear()
            shared.update(before)
            raise
        if alone and theirs is not None:
            model.peft_config = theirs

    def __getattr__(self, name: str):
        """Look up missing attributes in the model, except its adapter configs: ours are not to be mixed with them."""
        if name == "peft_config":
            raise AttributeError(name)
        return super().__getattr__(name)

    # ---- injection --------------------------------------------------------------------------------------------

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Put one adapter's prompts into the model: PEFT's entry point for every new adapter.

        Nothing is changed before all checks have passed.

        Raises:
            UnsupportedModelError: the method does not work on this model.
            ValueError: the config does not fit it, or a name that no adapter can have.
        """
        check_adapter_name(adapter_name)
        # A copy, in which the model's own is noted: the caller's object stays as it is, and may serve another model.
        config = self.peft_config[adapter_name] = copy.copy(self.peft_config[adapter_name])
        tuner_class = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
        self.active_adapter = self.active_adapter or [adapter_name]  # where the last one was deleted
        backbone = backbone_of(model)
        check_model(config, model, backbone)
        vision, text = wrap_encoders(model, backbone)
        self.tokenizers.token = config.token or self.tokenizers.token
        self.tokenizers.revision = config.revision or self.tokenizers.revision
        tuner_class.method.check(config, vision.view, None if text is None else text.view)
        for encoder in (vision,) if text is None else (vision, text):
            require_floats(encoder.base_layer, tuner_class.method.trained_modules(config, encoder.view))
        with bounded(config, model), init_empty_weights() if low_cpu_mem_usage else nullcontext():
            modules = self._new_modules(config, model, backbone, vision, text)
        if backbone.head is not None:
            head = backbone.head.rpartition(".")[2]
            config.modules_to_save = list(dict.fromkeys([*(config.modules_to_save or []), head]))
        require_floats(model, config.modules_to_save or ())

        prompts: Any = next((module for encoder, _, module in modules if encoder is vision), None)
        if backbone.head is not None and prompts is not None:
            classifier = model.get_submodule(backbone.head.rpartition(".")[0])
            vision.has_stock_head = is_stock(classifier)
            if prompts.pooling != "original" or vision.has_stock_head and vision.view.head_rows is not None:
                ask_for_feature(classifier)

        # A further adapter changes nothing of what is trained, as in PEFT; the first one freezes the base model.
        trained = {p: p.requires_grad for p in model.parameters()} if len(self.peft_config) > 1 else {}
        self._install(model, backbone, vision, text)
        self._forget(adapter_name)  # of the same name, as PEFT replaces one when a model is wrapped again
        for encoder, kind, module in modules:
            encoder.add_module_of(f"{tuner_class.prefix}{kind}", adapter_name, module.train(encoder.training))
        for encoder in self.encoders:
            encoder.patch_layers(not encoder.disable_adapters)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        self._mark_only_adapters_as_trainable(self.model)
        copy_whole_modules(self, self.model, config, adapter_name)
        for encoder in self.encoders:
            if names := tuner_class.method.trained_modules(config, encoder.view):
                parts = dataclasses.replace(config, modules_to_save=list(names))
                copy_whole_modules(self, encoder.base_layer, parts, adapter_name)
        switch_copies(self, adapter_name)
        for parameter, wanted in trained.items():
            parameter.requires_grad = wanted
        freeze_finished(self)
        hold_statistics(self.model)

    def _new_modules(
        self,
        config: PromptConfig,
        model: nn.Module,
        backbone: Backbone,
        vision: PromptedVisionEncoder,
        text: PromptedTextEncoder | None,
    ) -> list[tuple[PromptedEncoder, str, nn.Module]]:
        """Return the method's new modules: the tower that holds each, its kind, the module."""
        method = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type].method
        modules: list[tuple[PromptedEncoder, str, nn.Module | None]] = []
        size = vision.view.width if text is None else feature_dim(model, backbone)
        if text is not None:
            name = config.tokenizer_name_or_path
            tokenizer = self.tokenizers.find(name) if method.needs_tokenizer(config) else None
            modules.append((text, LEARNER, method.text_prompts(config, text.view, tokenizer, size)))
            modules.append((text, READOUT, method.readout(config, text.view, size)))
        text_view = None if text is None else text.view
        modules.append((vision, LEARNER, method.vision_prompts(config, vision.view, text_view, size)))
        return [entry for entry in modules if entry[2] is not None]

    def _install(
        self,
        model: nn.Module,
        backbone: Backbone,
        vision: PromptedVisionEncoder,
        text: PromptedTextEncoder | None,
    ) -> None:
        """Put the tuner layers in the towers' places."""
        self.backbone = backbone
        if backbone.vision == in_place.LAYER:
            if not isinstance(model, in_place.CarriesPrompts):
                in_place.carry(model, vision)
        else:
            model.set_submodule(backbone.vision, vision)
        if text is not None:
            model.set_submodule(backbone.text, text)
        dictionary: Any = self.peft_config
        for encoder in self.encoders:
            encoder.configs = dictionary
            encoder.was_trainable = self._was_trainable
        if backbone.head is not None:
            declare_mean_loss(model.get_submodule(backbone.head.rpartition(".")[0]))

    def _forget(self, adapter_name: str) -> None:
        """Take the modules of an adapter out of all layers."""
        for encoder in self.encoders:
            encoder.delete_adapter(adapter_name)
        forget_copies(self, adapter_name, self.vision_encoder.active_adapters)

    def _pre_injection_hook(self, model: nn.Module, config: PromptConfig, adapter_name: str) -> None:
        if isinstance(model, PeftModel) and prompted_encoders(model):
            raise ValueError(
                "This base model carries prompt adapters already. Call .unload() on the PEFT model that holds them, "
                "or add the new adapter to it with add_adapter / load_adapter."
            )
        copied = {name for m in model.modules() if isinstance(m, AuxiliaryTrainingWrapper) for name in m._adapters}
        own = {name for name, other in self.peft_config.items() if registry.shares_model(other.peft_type)}
        if copied - own or copied and not prompted_encoders(model):
            raise ValueError(
                "This base model carries another adapter's trained copies of whole modules (its modules_to_save), which "
                "would be mixed with those of the new adapter. Call .merge_and_unload() on the PEFT model that holds "
                "them, and put the new adapter on the result."
            )

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        """Freeze whatever is neither an adapter's module nor managed by a modules-to-save wrapper."""
        ours = set()
        for module in model.modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                ours.update(map(id, module.parameters()))
            elif isinstance(module, PromptedEncoder):
                for name in module.adapter_layer_names:
                    ours.update(map(id, getattr(module, name).parameters()))
        for parameter in model.parameters():
            if id(parameter) not in ours:
                parameter.requires_grad = False

    def _create_and_replace(self, *args, **kwargs):
        raise TypeError("Prompts are put in by inject_adapter; there are no target modules to replace.")

    def _prepare_adapter_config(self, peft_config, model_config):
        return peft_config

    @staticmethod
    def _check_target_module_exists(peft_config, key):
        return False

    def put_readout(self, adapter_name: str, readout: nn.Module) -> None:
        """Give an adapter another readout; what it learned before stays as it is."""
        # pyrefly: ignore[missing-attribute]  # readouts are where class names are
        self.text_encoder.add_module_of(
            f"{PEFT_TYPE_TO_TUNER_MAPPING[self.peft_config[adapter_name].peft_type].prefix}{READOUT}",
            adapter_name,
            readout,
        )
        freeze_finished(self)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Keep an adapter's weights in float32, as PEFT does, and what lies beside them too: statistics, what it started as."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            return
        held = [encoder.module_of(adapter_name, kind) for encoder in self.encoders for kind in (LEARNER, READOUT)]
        for module in (part for each in held if each is not None for part in each.modules()):
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    module._buffers[name] = buffer.to(full_precision(buffer.dtype))

    # ---- adapters ---------------------------------------------------------------------------------------------

    def set_adapter(self, *args, **kwargs) -> None:
        """Make an adapter the active one; what it learned in an earlier stage stays frozen."""
        super().set_adapter(*args, **kwargs)
        freeze_finished(self)

    def set_requires_grad(self, *args, **kwargs) -> None:
        """Let adapters learn or not; what they learned in an earlier stage stays frozen."""
        super().set_requires_grad(*args, **kwargs)
        freeze_finished(self)

    @property
    def vision_encoder(self) -> PromptedVisionEncoder:
        """The tuner layer on the image encoder."""
        return self.model.get_submodule(self.backbone.vision)

    @property
    def text_encoder(self) -> PromptedTextEncoder | None:
        """The tuner layer on the text encoder, None without one."""
        return None if self.backbone.text is None else self.model.get_submodule(self.backbone.text)

    @property
    def encoders(self) -> list[PromptedEncoder]:
        """The tuner layers."""
        return [encoder for encoder in (self.vision_encoder, self.text_encoder) if encoder is not None]

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter; if it was the active one, the first that is left becomes active, or none.

        Raises:
            ValueError: there is no such adapter.
        """
        if adapter_name not in self.peft_config:
            raise ValueError(f"Adapter {adapter_name!r} not found. This model has {list(self.peft_config)}.")
        del self.peft_config[adapter_name]
        self._forget(adapter_name)
        self.active_adapter = list(self.vision_encoder.active_adapters)
        freeze_finished(self)

    def enable_adapter_layers(self) -> None:
        """Switch the prompts on. A LoRA inside the base model is part of the base model and stays as it is."""
        for layer in adapter_layers(self):
            layer.enable_adapters(True)
        freeze_finished(self)

    def disable_adapter_layers(self) -> None:
        """Switch the prompts off."""
        for layer in adapter_layers(self):
            layer.enable_adapters(False)

    def merge_adapter(self, *args, **kwargs) -> None:
        """Refuse: there are no weights to merge prompts into, and copies of modules stand beside the originals.

        Raises:
            ValueError: always.
        """
        if all(is_copies(self, name) for name in self.active_adapters):
            raise ValueError(
                "Trained copies of modules cannot be merged while the adapter stays. Use merge_and_unload() for the base "
                "model with the copies in their places, or unload() for it without them."
            )
        raise ValueError(
            "Prompts are extra tokens and cannot be merged into the weights of the base model. Use unload() for "
            "the base model without them, or keep the adapter and call save_pretrained()."
        )

    def _unload_and_optionally_merge(self, merge=True, progressbar=False, safe_merge=False, adapter_names=None):
        """Return the base model: as it was, or with the copies of modules that the active adapter has learned."""
        merged = (adapter_names or self.active_adapters)[:1] if merge else []
        if merge and not (merged and is_copies(self, merged[0])):
            self.merge_adapter()
        modules = list(self.model.named_modules())
        for name, module in modules:
            if isinstance(module, AuxiliaryTrainingWrapper):
                copies = [module.modules_to_save[adapter] for adapter in merged if adapter in module._adapters]
                for copied in copies:
                    take_dtypes(copied, module.original_module)
                if copies and safe_merge:
                    check_finite(copies[0], merged[0])
                self.model.set_submodule(name, copies[0] if copies else module.original_module)
        for name, module in modules:
            if isinstance(module, PromptedEncoder):
                if name == in_place.LAYER:
                    in_place.give_back(self.model, module.restore())
                else:
                    self.model.set_submodule(name, module.restore())
        restore_class(self.model)
        if getattr(self.model, "peft_config", None) is self.peft_config:
            del self.model.peft_config
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = self._was_trainable.get(name, parameter.requires_grad)
        return self.model

    # ---- weights ----------------------------------------------------------------------------------------------

    @classmethod
    def _get_adapter_state_dict(cls, model, config, adapter_name, state_dict, unwanted_adapter_names):
        """Keep this method's modules only: the base model may carry tuner layers of its own."""
        own = tuple(f".{cls.prefix}{kind}.{adapter_name}." for kind in (LEARNER, READOUT))
        return {key: value for key, value in state_dict.items() if any(part in key for part in own)}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """Return a key without the adapter's name, which stands in front of the names inside its module."""
        for kind in (LEARNER, READOUT):
            key = key.replace(f".{cls.prefix}{kind}.{adapter_name}.", f".{cls.prefix}{kind}.")
        return key


def copy_whole_modules(tuner: PromptTuner, model: nn.Module, config: PromptConfig, adapter_name: str) -> None:
    """Let PEFT train and save copies of the modules of `model` that `config.modules_to_save` names."""
    set_additional_trainable_modules(
        model=model,
        peft_config=config,
        model_config=tuner.get_model_config(tuner),
        adapter_name=adapter_name,
        activate_adapter=adapter_name in tuner.active_adapters,
    )
    for module in model.modules():
        if type(module) is ModulesToSaveWrapper:
            module.__class__ = CopyBeside


def freeze_finished(tuner: PromptTuner) -> None:
    """Freeze what adapters in their second stage learned in the first one, which PEFT's wrappers let learn again."""
    for name, config in tuner.peft_config.items():
        method = getattr(PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type], "method", None)
        if method is None or not method.in_second_stage(config):
            continue
        for layer in adapter_layers(tuner):
            if isinstance(layer, AuxiliaryTrainingWrapper) and name in layer._adapters:
                layer.set_requires_grad(name, False)


def is_copies(tuner: PromptTuner, adapter_name: str) -> bool:
    """Return whether copies of modules are all that an adapter has learned."""
    kinds = [encoder.module_of(adapter_name, kind) for encoder in tuner.encoders for kind in (LEARNER, READOUT)]
    copied = any(adapter_name in m._adapters for m in adapter_layers(tuner) if isinstance(m, AuxiliaryTrainingWrapper))
    return copied and not any(next(module.parameters(), None) is not None for module in kinds if module is not None)
