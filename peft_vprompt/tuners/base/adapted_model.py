"""`AdaptedModel`: a PEFT model's towers and its active adapter, whatever the tuner is."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ...backbones.supported import DUAL_ENCODERS, Backbone, class_name, find_backbone
from ...core.class_descriptions import read_descriptions
from ...errors import UnsupportedModelError
from ...losses.label_checks import MULTI_LABEL
from ...readouts import CosineReadout
from ...utils.validation import shorten
from .class_name_checks import check_templates
from .config import PromptConfig
from .hf_patches import restore_class, take_labels
from .method import PromptMethod
from .prompted_encoder import READOUT, PromptedEncoder
from .prompted_text_encoder import PromptedTextEncoder
from .prompted_vision_encoder import PromptedVisionEncoder
from .switch_lock import SwitchLock
from .switching import adapter_layers
from .tokenizers import Tokenizers


if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from peft.tuners.tuners_utils import BaseTuner

    from ...backbones.dual_encoder import DualEncoderView


#: Where the classes of one of PEFT's own adapters are in its config's `auto_mapping`.
CLASSES = "peft_vprompt"


class AdaptedModel:
    """What is asked of a PEFT model.

    With our tuner the towers are its layers; with one of PEFT's they are layers around the model's towers that are no part
    of the model.

    Args:
        model: the PEFT model.
    """

    def __init__(self, model: PeftModel):
        self.model = model
        self.lock = SwitchLock()
        self._plain_configs: dict[str, PromptConfig] = {}
        self._plain_encoders: tuple[PromptedVisionEncoder, PromptedTextEncoder | None] | None = None
        self._plain_tokenizers: Tokenizers | None = None

    # ---- the active adapter -----------------------------------------------------------------------------------

    @property
    def tuner(self) -> BaseTuner:
        """The tuner, ours or PEFT's."""
        return self.model.base_model

    @property
    def adapter_name(self) -> str:
        """Name of the active adapter.

        Raises:
            ValueError: there is none.
        """
        if not self.tuner.active_adapters:
            raise ValueError(
                "This model has no active adapter, so it has no classes. Add one with add_adapter or load_adapter and "
                "call set_adapter, or take the base model with unload()."
            )
        return self.tuner.active_adapters[0]

    @property
    def config(self) -> PromptConfig:
        """Config of the active adapter."""
        return self.config_of(self.adapter_name)

    def config_of(self, adapter_name: str) -> PromptConfig:
        """Return the config of an adapter; of one of PEFT's own, what stands for the fields that it lacks."""
        config: PeftConfig = self.model.peft_config[adapter_name]
        if isinstance(config, PromptConfig):
            return config
        if adapter_name not in self._plain_configs:
            problem_type = getattr(self.tuner.model.config, "problem_type", None)  # transformers' own way to say it
            several = {"problem_type": MULTI_LABEL} if problem_type == MULTI_LABEL else {}
            recorded = several | (config.auto_mapping or {}).get(CLASSES, {})
            self._plain_configs[adapter_name] = PromptConfig(**recorded)
        return self._plain_configs[adapter_name]

    def set_template(self, template: str | Sequence[str]) -> None:
        """Set the text around the class names under one of PEFT's own tuners.

        Raises:
            ValueError: the active adapter's config has a template of its own, or this is none.
        """
        if self.config is self.model.peft_config[self.adapter_name]:
            raise ValueError(
                f"Expected no template: the config of adapter {self.adapter_name!r} has one, with which it was trained. "
                f"Received: template={template!r}. Make a config with that template."
            )
        check_templates("template", template)
        self.config.template = template if isinstance(template, str) else list(template)

    def describe_classes(self, descriptions: Mapping[str, Sequence[str]] | str | os.PathLike) -> None:
        """Add descriptions of classes to those of the active adapter's config.

        Raises:
            ValueError: the adapter is one of PEFT's own, whose config has no place for them, or they are none.
        """
        self.dual  # noqa: B018 - raises where classes have no meaning
        if self.config is not self.model.peft_config[self.adapter_name]:
            raise ValueError(
                "Expected an adapter of this package, whose config has class_descriptions. Received descriptions under one "
                "of PEFT's own tuners, which reads the template: call set_class_names(names, template=[...])."
            )
        self.config.describe_classes({**(self.config.class_descriptions or {}), **read_descriptions(descriptions)})

    def record_classes(self, adapter_name: str) -> None:
        """Write what a config of PEFT's own has no fields for into its `auto_mapping`, which PEFT saves and loads."""
        config: Any = self.model.peft_config[adapter_name]
        if not isinstance(config, PromptConfig):
            stand_in = self.config_of(adapter_name)
            names = (
                "class_names",
                "template",
                "tokenizer_name_or_path",
                *(["problem_type"] * stand_in.is_multi_label),
            )
            recorded = {name: getattr(stand_in, name) for name in names}
            config.auto_mapping = (config.auto_mapping or {}) | {CLASSES: recorded}

    def take_fields(self, adapter_name: str, other: str) -> None:
        """Give an adapter of one of PEFT's own tuners what stands for the fields that it lacks of another one."""
        if other in self._plain_configs:
            self._plain_configs[adapter_name] = copy.deepcopy(self._plain_configs[other])

    def forget(self, adapter_name: str) -> None:
        """Forget an adapter that was deleted."""
        self._plain_configs.pop(adapter_name, None)

    @property
    def method(self) -> PromptMethod:
        """Method of the active adapter; the plain one of PEFT's own tuners reads the template."""
        return self.method_of(self.adapter_name)

    def method_of(self, adapter_name: str) -> PromptMethod:
        """Return the method of an adapter."""
        tuner_class = PEFT_TYPE_TO_TUNER_MAPPING[self.model.peft_config[adapter_name].peft_type]
        return getattr(tuner_class, "method", None) or PromptMethod()

    @property
    def multi_label(self) -> bool:
        """Whether images have several classes or none, by the active adapter."""
        return self.config.is_multi_label

    @property
    def readout(self) -> nn.Module:
        """What makes logits of features: the active adapter's, or cosines where it is disabled."""
        # pyrefly: ignore[missing-attribute]  # classes have no meaning on models without a text tower
        readout = None if self.text.disable_adapters else self.text.module_of(self.adapter_name, READOUT)
        return CosineReadout() if readout is None else readout

    @property
    def tokenizers(self) -> Tokenizers:
        """Where tokenizers are found."""
        tokenizers = getattr(self.tuner, "tokenizers", None)
        if tokenizers is None:
            name = getattr(self.tuner.model.config, "_name_or_path", None)
            self._plain_tokenizers = tokenizers = self._plain_tokenizers or Tokenizers(name)
        return tokenizers

    # ---- the towers -------------------------------------------------------------------------------------------

    @functools.cached_property
    def backbone(self) -> Backbone:
        """Where the base model keeps its towers."""
        return getattr(self.tuner, "backbone", None) or find_backbone(self.tuner.model)

    @property
    def dual(self) -> DualEncoderView:
        """The view of the module that joins both towers.

        Raises:
            UnsupportedModelError: the base model has no text tower.
        """
        if self.backbone.dual is None:
            raise UnsupportedModelError(
                f"Class names are compared with images by models with a text tower ({', '.join(DUAL_ENCODERS)}); "
                f"{class_name(self.vision.base_layer)} has none."
            )
        module = self.tuner.model.get_submodule(self.backbone.dual)
        return DUAL_ENCODERS[class_name(module)](module)

    @property
    def vision(self) -> PromptedVisionEncoder:
        """The image tower; with another tuner than ours a layer around it that is no part of the model."""
        return self._encoders()[0]

    @property
    def text(self) -> PromptedTextEncoder | None:
        """The text tower, likewise; None without one."""
        return self._encoders()[1]

    def _encoders(self) -> tuple[PromptedVisionEncoder, PromptedTextEncoder | None]:
        model = self.tuner.model
        backbone = self.backbone
        vision = model.get_submodule(backbone.vision)
        text = None if backbone.text is None else model.get_submodule(backbone.text)
        if isinstance(vision, PromptedVisionEncoder):
            return vision, text
        if self._plain_encoders is not None and not self._plain_encoders_are_of(vision, text):  # one was exchanged
            self._forget_plain_encoders()
        if self._plain_encoders is None:
            if isinstance(text, AuxiliaryTrainingWrapper):
                raise UnsupportedModelError(
                    f"Expected modules_to_save to name parts of the text encoder. Received: the whole of it, {backbone.text!r}, "
                    f"which class names have to be put through layer by layer. Name its parts: "
                    f"{shorten([f'{backbone.text}.{name}' for name, _ in text.original_module.named_children()])}."
                )
            text = None if text is None else PromptedTextEncoder(text)
            self._plain_encoders = PromptedVisionEncoder(vision, text), text
            for encoder in filter(None, self._plain_encoders):
                encoder.patch_layers(True)
        return self._plain_encoders

    def _plain_encoders_are_of(self, vision: nn.Module, text: nn.Module | None) -> bool:
        layers: Any = self._plain_encoders
        return layers[0].base_layer is vision and (layers[1] is None or layers[1].base_layer is text)

    def _forget_plain_encoders(self) -> None:
        for encoder in filter(None, self._plain_encoders or ()):
            encoder.restore()
        self._plain_encoders = None

    def take_labels(self) -> None:
        """Let the `Trainer` see the inputs of the classification call, whatever the tuner is."""
        if self.backbone.dual is not None:
            take_labels(self.dual.module)

    def release(self) -> None:
        """Give the base model under another tuner than ours back as it was."""
        self._forget_plain_encoders()
        restore_class(self.tuner.model)

    @property
    def disabled(self) -> bool:
        """Whether the adapters are switched off."""
        if self.vision is self.tuner.model.get_submodule(self.backbone.vision):
            return self.vision.disable_adapters
        return any(layer.disable_adapters for layer in adapter_layers(self.tuner))

    @property
    def changes_images(self) -> bool:
        """Whether the adapters, as they are switched now, change the image features."""
        return self.vision.active_prompts is not None or bool(self.image_layers())

    def image_layers(self) -> list[BaseTunerLayer | AuxiliaryTrainingWrapper]:
        """Return PEFT's own layers and copies that are on and can change the image features."""
        return self._layers_that_are_on(of_text=False)

    @property
    def changes_texts(self) -> bool:
        """Whether the adapters that are on change the features of texts."""
        prompts = self.text is not None and self.text.active_prompts is not None
        return prompts or bool(self._layers_that_are_on(of_text=True))

    def _layers_that_are_on(self, of_text: bool) -> list[BaseTunerLayer | AuxiliaryTrainingWrapper]:
        """Return PEFT's own layers and copies that are on, on the side of the texts or outside of it."""
        parts = [part for part in (self.text, self.dual.text_projection) if part is not None]
        text_side = {id(module) for part in parts for module in part.modules()}
        return [
            layer
            for layer in adapter_layers(self.tuner)
            if not isinstance(layer, PromptedEncoder)
            and (id(layer) in text_side) == of_text
            and layer.active_adapters
            and not layer.disable_adapters
        ]

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Let the model answer without its adapters until the block ends; what is trained stays as it is.

        A LoRA that the base model of our tuner carries is part of the base model and stays on. Calls by other threads
        wait until then.
        """
        layers = adapter_layers(self.tuner)
        with self.lock.change():
            before = [layer._disable_adapters for layer in layers]
            try:
                for layer in layers:
                    layer._disable_adapters = True
                yield
            finally:
                for layer, disabled in zip(layers, before, strict=True):
                    layer._disable_adapters = disabled
