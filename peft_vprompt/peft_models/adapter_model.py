"""`AdapterModel`: the PEFT model below saving: calls with an adapter for each image, switching, labels, averages."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from peft import PeftConfig, PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from ..losses.label_checks import MULTI_LABEL
from ..tuners.base.adapted_model import CLASSES
from ..tuners.base.adapter_names import check_adapter_name, check_names
from ..tuners.base.switching import adapter_layers
from ..utils.fields import MAX_INTEGER, shown
from ..utils.validation import is_number
from ..utils.warning import warn_caller
from .adapter_files import other_fields
from .labels import give_config_back, is_named, show_labels
from .mixed_batches import call_with_adapters


class AdapterModel(PeftModel):
    """A base model with adapters of ours.

    Raises:
        ValueError: a name that no adapter can have.
    """

    def __init__(self, model: nn.Module, peft_config: PeftConfig, adapter_name: str = "default", **kwargs):
        check_adapter_name(adapter_name)
        # A copy, as class names are noted in it: the caller's object stays as it is, and may serve another model.
        super().__init__(model, copy.copy(peft_config), adapter_name, **kwargs)

    def forward(self, *args, adapter_names: Sequence[str] | None = None, **kwargs):
        """Make the base model's own call; `adapter_names` has an adapter for each image, see `mixed_batches`."""
        if adapter_names is None:
            return super().forward(*args, **kwargs)
        return call_with_adapters(self, super().forward, adapter_names, args, kwargs)

    def get_base_model(self) -> nn.Module:
        """Return the base model, also where the last adapter was deleted."""
        return self.base_model.model

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Let the base model answer without adapters until the block ends, or that around it; see PEFT.

        PEFT would look at a LoRA of the base model too, which stays on, and switch the adapters on at the end of an inner block.
        """
        is_off = all(layer.disable_adapters for layer in adapter_layers(self.base_model))
        with nullcontext() if is_off else super().disable_adapter():
            yield

    def add_adapter(self, adapter_name: str, peft_config: PeftConfig, *args, **kwargs) -> None:
        """Add an adapter; it is active only where no other is.

        Raises:
            ValueError: a name that no adapter can have, or what the config is refused for.
        """
        check_adapter_name(adapter_name)
        super().add_adapter(adapter_name, copy.copy(peft_config), *args, **kwargs)
        if self.active_adapter not in self.peft_config:
            self.set_adapter(adapter_name, inference_mode=self.peft_config[adapter_name].inference_mode)

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Make an adapter the active one, and let the base model's config name its classes.

        Raises:
            ValueError: there is no such adapter.
        """
        if not isinstance(adapter_name, str) or adapter_name not in self.peft_config:
            raise ValueError(f"Adapter {shown(adapter_name)} not found. This model has {list(self.peft_config)}.")
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        self._show_labels()

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter; if it was the active one, the next one is as if it had been set.

        It does not learn where it was loaded to be used.

        Raises:
            ValueError: there is no such adapter.
        """
        was_active = self.active_adapters == [adapter_name]
        super().delete_adapter(adapter_name)
        if was_active and self.active_adapters:  # PEFT leaves copies off of which the deleted adapter had none
            following = self.active_adapters[0]
            self.set_adapter(following, inference_mode=self.peft_config[following].inference_mode)
        elif self.active_adapters and self.active_adapter not in self.peft_config:  # the first one of several
            self.active_adapter = self.active_adapters[0]
        self._show_labels()

    def unload(self, *args, **kwargs) -> nn.Module:
        """Return the base model without adapters."""
        return self._given_back(self.base_model.unload(*args, **kwargs))

    def merge_and_unload(self, *args, **kwargs) -> nn.Module:
        """Return the base model with the adapter in its weights, where the method can."""
        return self._given_back(self.base_model.merge_and_unload(*args, **kwargs))

    def _given_back(self, model: nn.Module) -> nn.Module:
        give_config_back(model)
        return model

    def _shown_labels(self) -> Sequence[str] | Mapping[int, str] | None:
        """Return the names of the classes that the active adapter's logits stand for; None: the base model knows."""
        config: Any = self.peft_config.get(self.active_adapter)
        labels: Any = getattr(config, "id2label", None)
        base: Any = self.get_base_model()
        fits = is_named(labels) and len(labels) == getattr(base.config, "num_labels", None)
        return labels if fits else None

    def _show_labels(self) -> None:
        """Let the base model's config name the active adapter's classes, and say whether an image may be of several."""
        config: Any = self._active_config
        recorded = getattr(config, "auto_mapping", None) or {}
        said = (recorded.get("problem_type"), (recorded.get(CLASSES) or {}).get("problem_type"))
        several = getattr(config, "is_multi_label", False) or MULTI_LABEL in said
        show_labels(self.get_base_model(), self._shown_labels(), MULTI_LABEL if several else None)

    def name_labels(self, adapter_name: str, id2label: Mapping[int, str]) -> None:
        """Call the classes of an adapter's head otherwise than it was saved with."""
        config: Any = self.peft_config[adapter_name]
        if getattr(config, "id2label", None) is not None:
            config.id2label = dict(id2label)
            config.label2id = {name: index for index, name in id2label.items()}
            self._show_labels()

    @property
    def _active_config(self) -> PeftConfig | None:
        """Config of the active adapter, if there is one."""
        return self.peft_config.get(self.active_adapter) if self.active_adapters else None

    @property
    def _is_multi_label(self) -> bool:
        """Whether the active adapter is for images of several classes or none.

        Where its config has no field for it, the base model's says so.
        """
        config: Any = self._active_config
        says = config if hasattr(config, "problem_type") else getattr(self.get_base_model(), "config", None)
        return config is not None and getattr(says, "problem_type", None) == MULTI_LABEL

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float] | None = None,
        adapter_name: str = "weighted",
        combination_type: str = "linear",
        **kwargs,
    ) -> None:
        """Add an adapter whose values are the weighted sum of those of others of the same method and shape.

        Warns where the config of another one than the first computes otherwise: the sum goes by the first one's.

        Args:
            adapters: names of the others.
            weights: one number for each; default: their mean.
            adapter_name: name of the new adapter, which has the first one's config and classes.
            combination_type: "linear".
            kwargs: for one of PEFT's own tuners, whose method this then is.

        Raises:
            ValueError: names that this model does not have or has already, adapters that differ in method, classes or
                shape, another number of weights.
        """
        if not adapters:
            raise ValueError("Expected the names of the adapters to sum up. Received: none.")
        if adapter_name in self.peft_config:
            raise ValueError(
                f"Expected the name of a new adapter. Received: {shown(adapter_name)}, which this model has. Delete it first."
            )
        if hasattr(type(self.base_model), "add_weighted_adapter"):
            weights = [1 / len(adapters)] * len(adapters) if weights is None else weights
            self.base_model.add_weighted_adapter(adapters, weights, adapter_name, combination_type, **kwargs)
            return
        if combination_type != "linear" or kwargs:
            raise ValueError(
                "Expected combination_type='linear', the weighted sum, and no further arguments. Received: "
                f"combination_type={combination_type!r}{''.join(f', {name}' for name in kwargs)}."
            )
        states = [self.adapter_state(name) for name in check_names(adapters)]
        weights = [1 / len(states)] * len(states) if weights is None else weights
        self._check_alike(adapters, states, weights)
        self._tell_other_configs(adapters)
        total = {key: weighted_sum([state[key] for state in states], weights) for key in states[0]}
        self.add_like(adapter_name, adapters[0], total)

    def adapter_state(self, adapter_name: str, given: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return an adapter's tensors by the names that they are saved under: the model's, or those of a `given` state of it.

        Raises:
            ValueError: there is no such adapter.
        """
        if adapter_name not in self.peft_config:
            raise ValueError(f"Adapter {adapter_name!r} not found. This model has {list(self.peft_config)}.")
        return get_peft_model_state_dict(self, given, adapter_name=adapter_name, save_embedding_layers=False)

    def add_like(self, adapter_name: str, other: str, state: dict[str, Tensor]) -> None:
        """Add an adapter with another one's config and classes and values of its own.

        Args:
            adapter_name: name of the new adapter.
            other: name of the other one.
            state: values, as `adapter_state` returns them.
        """
        config = copy.deepcopy(self.peft_config[other])
        trained = config.inference_mode
        config.inference_mode = True  # the values are set below, so no words have to be read
        self.add_adapter(adapter_name, config)
        self.peft_config[adapter_name].inference_mode = trained
        set_peft_model_state_dict(self, state, adapter_name)

    def _tell_other_configs(self, adapters: Sequence[str]) -> None:
        """Warn of adapters whose configs compute otherwise than the first one's."""
        found = {name: other_fields(self.peft_config[name], self.peft_config[adapters[0]]) for name in adapters}
        if others := [f"{name!r} has {', '.join(other)}" for name, other in found.items() if other]:
            warn_caller(
                f"The sum has the config of {adapters[0]!r}, by which its values mean something else than those of adapters "
                f"that compute otherwise: {'; '.join(others)}. Sum up adapters of one config, or name the one first whose "
                "config the sum should have."
            )

    def _check_alike(self, adapters: Sequence[str], states: list[dict[str, Tensor]], weights: Sequence[float]) -> None:
        """Refuse adapters whose values cannot be added."""
        are_numbers = isinstance(weights, (list, tuple)) and all(
            is_number(w) and abs(w) <= MAX_INTEGER for w in weights
        )
        if not are_numbers or len(weights) != len(states):
            raise ValueError(
                f"Expected one weight for each adapter, finite and at most {MAX_INTEGER:,}. Received: {len(states)} adapters, "
                f"weights={shown(weights)}."
            )
        shapes = [{key: tuple(value.shape) for key, value in state.items()} for state in states]
        configs: list[Any] = [self.peft_config[name] for name in adapters]
        per_class = [getattr(c, "learned_classes", None) for c in configs]
        # Labels of cached images, whose rows mean nothing added to those of others; counts of batches may differ.
        labels = [{k: v.tolist() for k, v in state.items() if k.endswith(".labels")} for state in states]
        alike = zip(adapters, configs, shapes, per_class, labels, strict=True)
        for name, config, shape, classes, cached in alike:
            differs = shape != shapes[0] or classes != per_class[0] or cached != labels[0]
            if config.peft_type != configs[0].peft_type or differs:
                raise ValueError(
                    f"Expected adapters of one method, with tensors of the same shapes and, where each class has its own, "
                    f"the same classes (of a cache, the same labels in the same order). Received: {name!r}, which differs from {adapters[0]!r}."
                )


def weighted_sum(tensors: list[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted sum of tensors of one shape; of whole numbers (a count of batches), the first."""
    if not tensors[0].is_floating_point():
        return tensors[0].clone()
    total: Any = sum(weight * tensor.detach() for weight, tensor in zip(weights, tensors, strict=True))
    return total
