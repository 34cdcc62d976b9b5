"""`PromptTuner`: what all methods share between PEFT and the towers.

A method is a subclass that says which prompts it puts on which tower and how it writes a class prompt; injection
and adapters are here, class names, features and logits in `classifier`. Adapters of several methods may live on one tuner:
what concerns one adapter is asked of the subclass that its config belongs to.
"""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

from accelerate import init_empty_weights
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import AuxiliaryTrainingWrapper, set_additional_trainable_modules
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...backbones.supported import DUAL_ENCODERS, Backbone, TextView, VisionView, class_name, find_backbone
from ...core.tokenization import TokenSequence, template_sequences
from ...errors import UnsupportedModelError
from ...prompts.base import PromptModule
from . import registry
from .class_features import ClassList, average
from .classifier import ClassNameClassifier
from .config import PromptConfig
from .feature_cache import FeatureCache
from .prompted_encoder import PromptedEncoder
from .prompted_text_encoder import PromptedTextEncoder
from .prompted_vision_encoder import PromptedVisionEncoder
from .trainer_contract import ask_for_feature, declare_mean_loss, restore_class, take_labels


class PromptTuner(ClassNameClassifier, BaseTuner):
    """Core of the prompt-learning tuners."""

    tuner_layer_cls = PromptedEncoder
    target_module_mapping: dict = {}
    #: Whether the method needs a text tower.
    needs_text: bool = True
    #: Whether class features depend on the image.
    conditional: bool = False
    #: Whether the text tower is trained whole.
    trains_text: bool = False
    #: Whether prompts read both towers and are read by nobody.
    needs_read_only: bool = False

    def __init__(self, model: nn.Module, peft_config, adapter_name: str, **kwargs):
        foreign = getattr(model, "peft_config", None)  # of a LoRA, say, that the base model carries
        super().__init__(model, peft_config, adapter_name, **kwargs)
        if foreign is not None:
            model.peft_config = foreign

    def __getattr__(self, name: str):
        """Missing attributes are the model's, except its adapter configs: ours are not to be mixed with them."""
        if name == "peft_config":
            raise AttributeError(name)
        return super().__getattr__(name)

    # ---- what a method says of itself -------------------------------------------------------------------------

    @classmethod
    def check(cls, config: PromptConfig, vision: VisionView, text: TextView | None) -> None:
        """Raise a ValueError where the config does not fit the towers."""

    @classmethod
    def text_prompts(
        cls, config: PromptConfig, tower: TextView, tokenizer: PreTrainedTokenizerBase | None, feature_dim: int
    ) -> PromptModule | None:
        """Prompts for the text tower.

        `tokenizer` is None where words need not be read; `feature_dim` is the size of the space that
        images and texts share.
        """
        return None

    @classmethod
    def vision_prompts(cls, config: PromptConfig, tower: VisionView, text: TextView | None) -> PromptModule | None:
        """Prompts for the vision tower."""
        return None

    @classmethod
    def class_sequences(
        cls, config: PromptConfig, names: list[str], tokenizer: PreTrainedTokenizerBase
    ) -> list[list[TokenSequence]]:
        """The token sequences of all classes, one list per template."""
        return [template_sequences(tokenizer, names, template) for template in config.templates]

    @classmethod
    def combine(cls, features: list[Tensor]) -> Tensor:
        """One feature per class from those of each list of token sequences: templates are an ensemble."""
        return average(features)

    @classmethod
    def needs_tokenizer(cls, config: PromptConfig) -> bool:
        """Whether making the prompts takes a tokenizer; not where weights follow and the words do not set a size."""
        return getattr(config, "words", None) is not None and not config.inference_mode

    def start(self, adapter_name: str) -> None:
        """Set first values that take the model to compute."""

    @classmethod
    def check_new_classes(cls, config: PromptConfig, names: list[str]) -> None:
        """Raise a ClassNamesError where learned prompts do not move to other classes."""

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
        """
        config = self.peft_config[adapter_name]
        method = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
        backbone = find_backbone(model)
        base = class_name(model.get_submodule(backbone.dual)) if backbone.dual is not None else class_name(model)
        if (reason := registry.unsupported(config.peft_type.value.lower(), base)) is not None:
            raise UnsupportedModelError(reason)
        vision, text = self._towers(model, backbone)
        method.check(config, vision.tower, text and text.tower)
        check_modules_to_save(config, model, backbone)
        tokenizer = self.tokenizer_for(config) if method.needs_tokenizer(config) else None
        with init_empty_weights() if low_cpu_mem_usage else nullcontext():
            text_holder = text and method.text_prompts(config, text.tower, tokenizer, feature_dim(model, backbone))
            vision_holder = method.vision_prompts(config, vision.tower, text and text.tower)
        if backbone.head is not None:
            head = backbone.head.rpartition(".")[2]
            config.modules_to_save = list(dict.fromkeys([*(config.modules_to_save or []), head]))

        # A further adapter changes nothing of what is trained, as in PEFT; the first one freezes the base model.
        trained = {p: p.requires_grad for p in model.parameters()} if self.class_lists else {}
        self._install(model, backbone, vision, text)
        if text_holder is not None:
            text.add_prompts(method.prefix, adapter_name, text_holder)
        if vision_holder is not None:
            vision.add_prompts(method.prefix, adapter_name, vision_holder)
            knows_head = vision_holder.pooling != "original" or vision.tower.head_rows is not None
            if backbone.head is not None and knows_head:
                ask_for_feature(model.get_submodule(backbone.head.rpartition(".")[0]))
        for tower in (vision, text):
            if tower is not None:
                tower.patch_layers(not tower.disable_adapters)
        self.class_lists[adapter_name] = config.class_names and ClassList(list(config.class_names))
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        self._mark_only_adapters_as_trainable(self.model)
        self._wrap_whole_modules(self.model, config, adapter_name)
        if method.trains_text:
            parts = dataclasses.replace(config, modules_to_save=list(text.tower.parts))
            self._wrap_whole_modules(text.base_layer, parts, adapter_name)
        for parameter, wanted in trained.items():
            parameter.requires_grad = wanted
        method.start(self, adapter_name)

    def _wrap_whole_modules(self, model: nn.Module, config: PromptConfig, adapter_name: str) -> None:
        """Let PEFT train and save copies of the modules of `model` that `config.modules_to_save` names."""
        set_additional_trainable_modules(
            model=model,
            peft_config=config,
            model_config=self.get_model_config(self),
            adapter_name=adapter_name,
            activate_adapter=adapter_name in self.active_adapters,
        )

    def _pre_injection_hook(self, model: nn.Module, config: PromptConfig, adapter_name: str) -> None:
        if any(isinstance(module, PromptedEncoder) for module in model.modules()):
            raise ValueError(
                "This base model carries prompt adapters already. Call .unload() on the PEFT model that holds them, "
                "or add the new adapter to it with add_adapter / load_adapter."
            )
        if any(isinstance(module, AuxiliaryTrainingWrapper) for module in model.modules()):
            raise ValueError(
                "This base model carries another adapter's trained copies of whole modules (its modules_to_save), which "
                "would be mixed with those of the new adapter. Call .merge_and_unload() on the PEFT model that holds "
                "them, and put the new adapter on the result."
            )
        self.class_lists: dict[str, ClassList | None] = {}
        self.feature_cache = FeatureCache()
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.found_tokenizers: dict[str | None, PreTrainedTokenizerBase] = {}
        self._was_trainable = {name: p.requires_grad for name, p in model.named_parameters()}

    @staticmethod
    def _towers(model: nn.Module, backbone: Backbone) -> tuple[PromptedVisionEncoder, PromptedTextEncoder | None]:
        """The tuner layers of the model, or new ones around its towers (not put in place yet)."""

        def prompted(name, layer_class):
            module = model.get_submodule(name)
            return module if isinstance(module, PromptedEncoder) else layer_class(module)

        text = None if backbone.text is None else prompted(backbone.text, PromptedTextEncoder)
        return prompted(backbone.vision, PromptedVisionEncoder), text

    def _install(self, model: nn.Module, backbone: Backbone, vision: PromptedVisionEncoder, text) -> None:
        """Put the tuner layers in the towers' places. A bare encoder is its own tower, so it is wrapped whole."""
        if backbone.vision == "":
            self.model = vision
        else:
            model.set_submodule(backbone.vision, vision)
        if text is not None:
            model.set_submodule(backbone.text, text)
            take_labels(model.get_submodule(backbone.dual))
        if backbone.head is not None:
            declare_mean_loss(model.get_submodule(backbone.head.rpartition(".")[0]))
        self.link_towers()

    def link_towers(self) -> None:
        """Tell the vision tower whose text prompts to map (again for each replica of a data-parallel model)."""
        text = self.text_tower
        self.vision_tower.text_partner = () if text is None else (text,)

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        """Freeze whatever is neither a prompt nor managed by a modules-to-save wrapper."""
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

    # ---- adapters ---------------------------------------------------------------------------------------------

    @property
    def vision_tower(self) -> PromptedVisionEncoder:
        """The tuner layer on the image encoder."""
        return next(m for m in self.model.modules() if isinstance(m, PromptedVisionEncoder))

    @property
    def text_tower(self) -> PromptedTextEncoder | None:
        """The tuner layer on the text encoder, None without one."""
        return next((m for m in self.model.modules() if isinstance(m, PromptedTextEncoder)), None)

    @property
    def method(self) -> type[PromptTuner]:
        """The subclass that the active adapter belongs to."""
        return PEFT_TYPE_TO_TUNER_MAPPING[self.active_config.peft_type]

    @property
    def active_config(self) -> PromptConfig:
        """Config of the active adapter."""
        return self.peft_config[self.active_adapters[0]]

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Make one adapter the active one; its class list comes with it."""
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter; if it was the active one, the first that is left becomes active.

        Raises:
            ValueError: there is no such adapter, or no other.
        """
        if adapter_name not in self.peft_config:
            raise ValueError(f"Adapter {adapter_name!r} not found. This model has {list(self.peft_config)}.")
        if len(self.peft_config) == 1:
            raise ValueError(
                f"{adapter_name!r} is the only adapter of this model. Use unload() for the base model without it."
            )
        del self.peft_config[adapter_name]
        self.class_lists.pop(adapter_name, None)
        left = next(iter(self.peft_config))
        active = left if adapter_name in self.active_adapters else self.active_adapters[0]
        for module in self.model.modules():
            if isinstance(module, PromptedEncoder):
                module.delete_adapter(adapter_name)
            elif isinstance(module, AuxiliaryTrainingWrapper):
                module.delete_adapter(adapter_name, new_active_adapters=[active])
        if active not in self.active_adapters:
            self.set_adapter(active, inference_mode=self.peft_config[active].inference_mode)

    def enable_adapter_layers(self) -> None:
        """Switch the prompts on. A LoRA inside the base model is part of the base model and stays as it is."""
        self._switch(True)

    def disable_adapter_layers(self) -> None:
        """Switch the prompts off."""
        self._switch(False)

    def _switch(self, enabled: bool) -> None:
        for module in self.model.modules():
            if isinstance(module, (PromptedEncoder, AuxiliaryTrainingWrapper)):
                module.enable_adapters(enabled)

    def merge_adapter(self, *args, **kwargs) -> None:
        """Refuse: there are no weights to merge prompts into.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "Prompts are extra tokens and cannot be merged into the weights of the base model. Use unload() for "
            "the base model without them, or keep the adapter and call save_pretrained()."
        )

    def _unload_and_optionally_merge(self, merge=True, progressbar=False, safe_merge=False, adapter_names=None):
        if merge:
            self.merge_adapter()
        modules = list(self.model.named_modules())
        for name, module in modules:
            if isinstance(module, AuxiliaryTrainingWrapper):
                self.model.set_submodule(name, module.original_module)
        for name, module in modules:
            if isinstance(module, PromptedEncoder):
                if name:
                    self.model.set_submodule(name, module.restore())
                else:
                    self.model = module.restore()
        restore_class(self.model)
        if getattr(self.model, "peft_config", None) is self.peft_config:
            del self.model.peft_config
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = self._was_trainable.get(name, parameter.requires_grad)
        return self.model

    # ---- weights ----------------------------------------------------------------------------------------------

    @classmethod
    def _get_adapter_state_dict(cls, model, config, adapter_name, state_dict, unwanted_adapter_names):
        """Keep this method's prompts only: the base model may carry tuner layers of its own."""
        return {key: value for key, value in state_dict.items() if f".{cls.prefix}learner.{adapter_name}." in key}


def check_modules_to_save(config: PromptConfig, model: nn.Module, backbone: Backbone) -> None:
    """Refuse modules that are not there, and modules of the encoders, of which PEFT cannot keep copies beside prompts.

    Raises:
        ValueError: names the module.
    """
    towers = [name for name in (backbone.vision, backbone.text) if name is not None]
    modules = [name for name, _ in model.named_modules() if name]
    inside = {name for name in modules for tower in towers if f"{name}.".startswith(tower and f"{tower}.")}
    for wanted in config.modules_to_save or []:
        found = {name for name in modules if name.endswith(wanted)}
        if not found or found & inside:
            raise ValueError(
                "Expected modules_to_save to name modules outside the encoders, such as a projection or a head. "
                f"Received: {wanted!r}, which is {'inside an encoder' if found else 'no module of this model'}."
            )


def feature_dim(model: nn.Module, backbone: Backbone) -> int:
    """Size of the space that images and texts share."""
    module = model.get_submodule(backbone.dual)
    return DUAL_ENCODERS[class_name(module)](module).feature_dim
