"""What of transformers' `Trainer` is changed for our PEFT models, and for no others, with the reason and the end of each.

* Contrastive evaluation. Reason: whether batches have labels is read off the model's class once, and a dual encoder is
  trained with class labels as well as with texts (`return_loss`), so that its evaluation would report no loss. Goes when
  the Trainer asks each batch.
* Smoothed labels (`label_smoothing_factor`). Reason: the loss is then taken of the logits alone, so that a method's further
  terms would be left out. Goes when the Trainer adds an output's `aux_loss`.
* The best checkpoint of a named adapter. Reason: PEFT saves it in a folder of its name, where the Trainer does not look,
  so that the last values would be kept in the place of the best. Goes when the Trainer looks there.
* Resuming adapters whose names have a slash ("me/mine"). Reason: PEFT saves them two folders deep, where the Trainer does
  not look, and gives one beside "default" the values of that. Goes when the Trainer looks there.
* Publishing. Reason: the folder that is uploaded has the base model's local path in its config. Goes when the Trainer
  lets the model write what is uploaded.
* The arguments that are published. Reason: `training_args.bin` is a pickle of all of them, the token of the Hub and the
  folder of the output included. Goes when transformers leaves these out.
* The state that is published. Reason: it names the best checkpoint by its path on this machine. It names the folder alone
  then, which is found beside the others when training goes on. Goes when the Trainer names it like this.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME

from ..losses.classification import CrossEntropy
from ..tuners.base.method import PromptMethod
from ..utils.io import atomic_path
from ..utils.late_imports import patch_functions
from .publishing import publish_configs
from .safe_saving import SavedPeftModel


#: Name of the file in which the Trainer keeps its arguments.
ARGUMENTS = "training_args.bin"

#: Name of the file of a checkpoint in which the Trainer keeps its state.
STATE = "trainer_state.json"

#: Whether what is pickled goes to others.
_publishes: ContextVar[bool] = ContextVar("publishes", default=False)


def patch_trainer(module: ModuleType) -> None:
    """Patch the `Trainer` of `transformers.trainer`."""
    patches = {
        "prediction_step": contrastive_evaluation,
        "compute_loss": smoothed,
        "_load_best_model": best_of_named_adapter,
        "_load_from_checkpoint": resumed,
        "push_to_hub": published,
        "_push_from_checkpoint": published_checkpoint,
    }
    patch_functions(module.Trainer, patches)
    patch_functions(module.TrainingArguments, {"__getstate__": published_arguments})
    patch_functions(module.TrainerState, {"load_from_json": state_with_place})


def contrastive_evaluation(prediction_step: Callable) -> Callable:
    """Let a batch with `return_loss` and without labels have a loss."""

    def step(self, model, inputs, *args, **kwargs):
        names = self.label_names
        of_class = names == ["labels"] and self.args.label_names is None and isinstance(self.model, SavedPeftModel)
        if not of_class or inputs.get("labels") is not None or not inputs.get("return_loss"):
            return prediction_step(self, model, inputs, *args, **kwargs)
        self.label_names = []
        try:
            return prediction_step(self, model, inputs, *args, **kwargs)
        finally:
            self.label_names = names

    return step


def smoothed(compute_loss: Callable) -> Callable:
    """Smooth labels by our own cross-entropy, which adds a method's further terms."""

    def loss(self, *args, **kwargs):
        smoother = self.label_smoother
        if smoother is None or self.compute_loss_func is not None or not isinstance(self.model, SavedPeftModel):
            return compute_loss(self, *args, **kwargs)
        require_plain_loss(self.model, smoother.epsilon)
        self.label_smoother = CrossEntropy(label_smoothing=smoother.epsilon)
        try:
            return compute_loss(self, *args, **kwargs)
        finally:
            self.label_smoother = smoother

    return loss


def require_plain_loss(model: SavedPeftModel, smoothing: float) -> None:
    """Refuse smoothed labels where the active adapter's method has another loss than the cross-entropy.

    Raises:
        ValueError: names the method and the remedy.
    """
    classifier: Any = getattr(model, "class_name_classifier", None)
    if classifier is None or not model.active_adapters:
        return
    method = type(classifier.adapted.method)
    if method.loss is not PromptMethod.loss or method.predictions is not PromptMethod.predictions:
        raise ValueError(
            f"Expected label_smoothing_factor=0 for {type(classifier.adapted.config).__name__}, whose loss is more than the "
            f"cross-entropy of its logits. Received: label_smoothing_factor={smoothing}. Leave it out; or, to train on that "
            f"cross-entropy all the same, give the Trainer compute_loss_func=CrossEntropy(label_smoothing={smoothing}) of "
            "peft_vprompt.losses."
        )


def best_of_named_adapter(load_best_model: Callable) -> Callable:
    """Load the best checkpoint of an adapter that is not called "default"."""

    def load(self):
        checkpoint = self.state.best_model_checkpoint
        if isinstance(self.model, SavedPeftModel) and checkpoint is not None and self.model.active_adapters:
            name = self.model.active_adapters[0]
            if has_weights(Path(checkpoint, name)):  # beside the one called "default", perhaps
                self.model.load_adapter(str(Path(checkpoint, name)), name, is_trainable=True)
                self.model.eval()
                return None
        return load_best_model(self)

    return load


def resumed(load_from_checkpoint: Callable) -> Callable:
    """Load each adapter from its own folder of a checkpoint where the Trainer would not look for all of them."""

    def load(self, resume_from_checkpoint, *args, **kwargs):
        ours = self.model
        if not isinstance(ours, SavedPeftModel) or not any("/" in name for name in ours.peft_config):
            return load_from_checkpoint(self, resume_from_checkpoint, *args, **kwargs)
        active = ours.active_adapters[0]
        for name in ours.peft_config:
            folder = Path(resume_from_checkpoint, "" if name == "default" else name)
            ours.load_adapter(str(folder), name, is_trainable=name == active)
        ours.set_adapter(active)
        return None

    return load


def has_weights(folder: Path) -> bool:
    """Return whether an adapter's weights lie in a folder."""
    return any((folder / name).is_file() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME))


def published(push_to_hub: Callable) -> Callable:
    """Save what is uploaded without paths of this machine."""

    def push(self, *args, **kwargs):
        if not isinstance(self.model, SavedPeftModel):
            return push_to_hub(self, *args, **kwargs)
        # What the Trainer falls back to is known only when it has made the repository.
        repo_id = self.hub_model_id or self.args.hub_model_id
        with self.model.publishing(repo_id), publishing_arguments():
            return push_to_hub(self, *args, **kwargs)

    return push


def published_checkpoint(push_from_checkpoint: Callable) -> Callable:
    """Take paths of this machine out of a checkpoint that is uploaded while training goes on."""

    def push(self, checkpoint_folder):
        if not isinstance(self.model, SavedPeftModel):
            return push_from_checkpoint(self, checkpoint_folder)
        with publishing_arguments():
            if self.is_world_process_zero():
                publish_configs(checkpoint_folder)
                publish_state(Path(checkpoint_folder, STATE))
                if (saved := Path(checkpoint_folder, ARGUMENTS)).is_file():
                    torch.save(self.args, saved)
            return push_from_checkpoint(self, checkpoint_folder)

    return push


def publish_state(path: Path) -> None:
    """Name the best checkpoint by its folder alone in the file of a Trainer's state."""
    if path.is_file():
        state = json.loads(path.read_text(encoding="utf-8"))
        if best := state.get("best_model_checkpoint"):
            state["best_model_checkpoint"] = Path(best).name
            with atomic_path(path) as partial:
                partial.write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def state_with_place(load_from_json: Callable) -> Callable:
    """Find the best checkpoint, where a state names its folder alone, beside the checkpoint that the state is of."""

    def load(json_path):
        state = load_from_json(json_path)
        best = state.best_model_checkpoint
        if best and Path(best).name == best and (place := Path(json_path).parent.with_name(best)).is_dir():
            state.best_model_checkpoint = str(place)
        return state

    return load


@contextmanager
def publishing_arguments() -> Iterator[None]:
    """Pickle training arguments without what is nobody else's until the block ends."""
    before = _publishes.set(True)
    try:
        yield
    finally:
        _publishes.reset(before)


def published_arguments(getstate: Callable) -> Callable:
    """Pickle `TrainingArguments` without tokens and paths of this machine where they are published."""

    def state(self):
        values = getstate(self)
        return {name: _publishable(name, value) for name, value in values.items()} if _publishes.get() else values

    return state


def _publishable(name: str, value: Any) -> Any:
    """Return a value of the training arguments as others may see it."""
    if name == "output_dir":
        return "output"
    if isinstance(value, dict):
        return {key: _publishable(str(key), item) for key, item in value.items()}
    is_path = isinstance(value, str) and (os.path.isabs(value) or os.sep in value and os.path.exists(value))
    return None if is_path or name.endswith("_token") else value
