"""Tuners of the other ways to transfer: which modules of a classifier get which part. Injection and adapters are PEFT's."""

from __future__ import annotations

from abc import abstractmethod

from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ...backbones.supported import ENCODER_VIEWS, class_name, view
from ...errors import UnsupportedModelError
from ..base.trainer_contract import declare_mean_loss, restore_class
from .classifier_parts import ClassifierParts
from .config import FineTuningConfig, TransferConfig
from .layer import TransferLayer
from .modules import Bias, Bottleneck, Copy, MLPHead, Part, SideNetwork


class TransferModel(BaseTuner):
    """Core of these tuners. A method says which part it puts beside which modules.

    Attributes:
        part_class: the part.
        part_options: fields of the config that the part takes.
        trains_head: whether the model's own head is trained beside the parts.
    """

    tuner_layer_cls = TransferLayer
    target_module_mapping: dict = {}
    part_class: type[Part]
    part_options: tuple[str, ...] = ()
    trains_head: bool = True

    @classmethod
    @abstractmethod
    def targets(cls, config: TransferConfig, parts: ClassifierParts) -> list[str]:
        """Names of the modules that get a part."""

    @classmethod
    def make_part(cls, config: TransferConfig, base_layer: nn.Module) -> Part:
        """The part for one module."""
        return cls.part_class(base_layer, **{name: getattr(config, name) for name in cls.part_options})

    def _prepare_adapter_config(self, peft_config: TransferConfig, model_config: dict) -> TransferConfig:
        return peft_config  # targets depend on the modules, not on the model's config: see `_prepare_model`

    def _prepare_model(self, peft_config: TransferConfig, model: nn.Module) -> None:
        parts = ClassifierParts(model)
        if peft_config.target_modules is None:
            peft_config.target_modules = self.targets(peft_config, parts)
        taken = [name for name, module in parts.own_modules.items() if isinstance(module, TransferLayer)]
        for target in peft_config.target_modules:
            if any(name.startswith(f"{target}.") for name in taken):
                raise UnsupportedModelError(
                    f"Expected modules that can be replaced whole. Received: {target!r}, of which another adapter replaces "
                    "single modules. Put the adapters on models of their own."
                )
        if self.trains_head:
            peft_config.modules_to_save = list(dict.fromkeys([*(peft_config.modules_to_save or []), parts.head]))
        declare_mean_loss(model)
        if not hasattr(self, "_was_trainable"):
            self._was_trainable = {name: p.requires_grad for name, p in model.named_parameters()}

    def _create_and_replace(
        self,
        peft_config: TransferConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        known = isinstance(target, TransferLayer)
        layer = target if known else TransferLayer(target, self.prefix)
        layer.add_part(adapter_name, self.make_part(peft_config, layer.base_layer))
        if not known:
            self._replace_module(parent, target_name, layer, target)

    def _unload_and_optionally_merge(self, merge=True, progressbar=False, safe_merge=False, adapter_names=None):
        """The base model: as it was, or with the adapter's values. PEFT's own would keep the trained head in both."""
        active = (adapter_names or self.active_adapters)[0]
        for name, module in ClassifierParts(self.model).own_modules.items():
            if isinstance(module, TransferLayer):
                if merge:
                    module.merge(safe_merge, adapter_names)
                self.model.set_submodule(name, module.base_layer)
            elif isinstance(module, AuxiliaryTrainingWrapper):
                self.model.set_submodule(name, module.modules_to_save[active] if merge else module.original_module)
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        restore_class(self.model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = self._was_trainable.get(name, True)
        return self.model


class FineTuningModel(TransferModel):
    """Copies of whole modules are trained."""

    prefix = "fine_tuning_"
    part_class = Copy
    trains_head = False  # it is one of the modules

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Copies keep the model's precision, as PEFT's `modules_to_save`: they meet its other modules' results."""

    @classmethod
    def targets(cls, config: FineTuningConfig, parts: ClassifierParts) -> list[str]:
        """The encoder, or its last layers and final norm; and the head.

        Raises:
            ValueError: more layers than there are.
        """
        if config.num_layers is None:
            return [parts.encoder, parts.head]
        if config.num_layers == 0:
            return [parts.head]
        if config.num_layers > len(parts.layers):
            raise ValueError(
                f"Expected num_layers <= {len(parts.layers)}, the layers of the encoder. "
                f"Received: num_layers={config.num_layers}."
            )
        return [*parts.layers[-config.num_layers :], *parts.final_norms, parts.head]


class BiasTuningModel(TransferModel):
    """A trained bias for every module of the encoder that has one. Source: KMnP/vpt `src/models/vit_models.py`."""

    prefix = "bias_tuning_"
    part_class = Bias

    @classmethod
    def targets(cls, config: TransferConfig, parts: ClassifierParts) -> list[str]:
        """Every module with a bias of its own, the head aside."""
        return [
            name
            for name, module in parts.own_modules.items()
            if isinstance(getattr(module, "bias", None), nn.Parameter) and name != parts.head
        ]


class BottleneckAdapterModel(TransferModel):
    """A Pfeiffer adapter after the feed-forward part of every layer, before its residual connection."""

    prefix = "bottleneck_adapter_"
    part_class, part_options = Bottleneck, ("reduction_factor", "init_weights")

    @classmethod
    def targets(cls, config: TransferConfig, parts: ClassifierParts) -> list[str]:
        """The last linear layer of every layer."""
        return [parts.last_linear(layer) for layer in parts.layers]


class MLPHeadModel(TransferModel):
    """A perceptron in the place of the head."""

    prefix = "mlp_head_"
    part_class, part_options = MLPHead, ("num_layers", "dropout")
    trains_head = False

    @classmethod
    def targets(cls, config: TransferConfig, parts: ClassifierParts) -> list[str]:
        """The head."""
        return [parts.head]


class SideTuningModel(TransferModel):
    """A convolutional network beside the encoder."""

    prefix = "side_tuning_"
    part_class, part_options = SideNetwork, ("side_widths",)

    @classmethod
    def targets(cls, config: TransferConfig, parts: ClassifierParts) -> list[str]:
        """The encoder."""
        return [parts.encoder]

    @classmethod
    def make_part(cls, config: TransferConfig, base_layer: nn.Module) -> Part:
        """A side network.

        Raises:
            UnsupportedModelError: the encoder takes patches, of which no image can be made.
        """
        if class_name(base_layer) in ENCODER_VIEWS and view(base_layer).num_tokens is None:
            raise UnsupportedModelError(
                f"Expected an encoder that takes images, which the side network reads too. Received: "
                f"{class_name(base_layer)}, which takes padded rows of patches. Choose another method."
            )
        return super().make_part(config, base_layer)
