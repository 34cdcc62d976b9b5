"""`ModuleTuner`: the fine-tuning baselines of image classifiers, as PEFT tuners. Injection and adapters are PEFT's."""

from __future__ import annotations

import copy
from abc import abstractmethod

from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ...errors import UnsupportedModelError
from .adapter_names import check_adapter_name
from .bounded import bounded
from .classifier_parts import ClassifierParts
from .config import BaselineConfig
from .hf_patches import declare_mean_loss, restore_class
from .module_layer import ModuleTunerLayer, check_finite
from .patterns import targets_named
from .switching import forget_copies, switch_copies
from .tuned_module import TunedModule, require_floats


class ModuleTuner(BaseTuner):
    """Core of the fine-tuning baselines. A subclass says which modules it trains, and with what.

    Attributes:
        module_class: what is trained.
        module_options: fields of the config that it takes.
        trains_head: whether the model's own head is trained beside.
    """

    tuner_layer_cls = ModuleTunerLayer
    target_module_mapping: dict = {}
    module_class: type[TunedModule]
    module_options: tuple[str, ...] = ()
    trains_head: bool = True

    @classmethod
    @abstractmethod
    def targets(cls, config: BaselineConfig, classifier: ClassifierParts) -> list[str]:
        """Return the names of the modules that are trained."""

    @classmethod
    def make_module(cls, config: BaselineConfig, base_layer: nn.Module) -> TunedModule:
        """Return what is trained in the place of one module."""
        return cls.module_class(base_layer, **{name: getattr(config, name) for name in cls.module_options})

    def _prepare_adapter_config(self, peft_config: BaselineConfig, model_config: dict) -> BaselineConfig:
        return peft_config  # targets depend on the modules, not on the model's config: see `_prepare_model`

    def _prepare_model(self, peft_config: BaselineConfig, model: nn.Module) -> None:
        classifier = ClassifierParts(model)
        if peft_config.target_modules is None:
            peft_config.target_modules = self.targets(peft_config, classifier)
        taken = [name for name, module in classifier.own_modules.items() if isinstance(module, ModuleTunerLayer)]
        for target in peft_config.target_modules:
            if any(name.startswith(f"{target}.") for name in taken):
                raise UnsupportedModelError(
                    f"Expected modules that can be replaced whole. Received: {target!r}, of which another adapter replaces "
                    "single modules. Put the adapters on models of their own."
                )
        if self.trains_head:
            peft_config.modules_to_save = list(dict.fromkeys([*(peft_config.modules_to_save or []), classifier.head]))
        require_floats(model, peft_config.modules_to_save or ())
        declare_mean_loss(model)
        carried = [module for module in model.modules() if isinstance(module, ModuleTunerLayer)]
        if carried:
            self._was_trainable = carried[0].was_trainable
        elif not hasattr(self, "_was_trainable"):
            self._was_trainable = {name: p.requires_grad for name, p in model.named_parameters()}

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args, **kwargs) -> None:
        """Put one adapter's modules into the model: PEFT's entry point for every new adapter.

        One of the same name is replaced, as PEFT does when a model is wrapped again.

        Raises:
            ValueError: the config asks for modules many times as large as the model, or as the file it was saved with; or a
                name that no adapter can have.
        """
        check_adapter_name(adapter_name)
        self.active_adapter = self.active_adapter or [adapter_name]  # where the last one was deleted
        forget_copies(self, adapter_name, [])
        # A copy, in which the model's own is noted: the caller's object stays as it is, and may serve another model.
        config = self.peft_config[adapter_name] = copy.copy(self.peft_config[adapter_name])
        with bounded(config, model), targets_named(config):
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        switch_copies(self, adapter_name)

    def _create_and_replace(
        self,
        peft_config: BaselineConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        known = isinstance(target, ModuleTunerLayer)
        layer = target if known else ModuleTunerLayer(target, self.prefix)
        layer.add_trained(adapter_name, self.make_module(peft_config, layer.base_layer))
        layer.configs = self.peft_config
        layer.was_trainable = self._was_trainable
        if not known:
            # PEFT's `_replace_module` would move what is trained to the meta device where the base model is offloaded.
            setattr(parent, target_name, layer)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge the active adapter: the head that answers is not merged, and is the active one's.

        Raises:
            ValueError: another adapter; or one that cannot be merged.
        """
        if others := [name for name in adapter_names or () if name not in self.active_adapters]:
            raise ValueError(
                f"Expected the active adapter, whose head answers, to be merged. Received: {others}, while "
                f"{self.active_adapters} is active. Call set_adapter({others[0]!r}) first."
            )
        super().merge_adapter(adapter_names, safe_merge)

    def _unload_and_optionally_merge(self, merge=True, progressbar=False, safe_merge=False, adapter_names=None):
        """Return the base model: as it was, or with the adapter's values. PEFT's own would keep the trained head in both."""
        active = next(iter(adapter_names or self.active_adapters), "")  # none after the last one was deleted
        merge = merge and bool(active)
        for name, module in ClassifierParts(self.model).own_modules.items():
            if isinstance(module, ModuleTunerLayer):
                if merge:
                    module.merge(safe_merge, adapter_names)
                else:
                    module.unmerge()
                self.model.set_submodule(name, module.base_layer)
            elif isinstance(module, AuxiliaryTrainingWrapper):
                if merge and safe_merge:
                    check_finite(module.modules_to_save[active], active)
                self.model.set_submodule(name, module.modules_to_save[active] if merge else module.original_module)
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        restore_class(self.model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = self._was_trainable.get(name, True)
        return self.model

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """Return a key without the adapter's name, which stands in front of the names inside its module."""
        return key.replace(f".{cls.prefix}modules.{adapter_name}.", f".{cls.prefix}modules.")
