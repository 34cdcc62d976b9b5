"""What of transformers' `Trainer` is changed for our PEFT models, and for no others, with the reason and the end of each.

* Contrastive evaluation. Reason: whether batches have labels is read off the model's class once, and a dual encoder is
  trained with class labels as well as with texts (`return_loss`), so that its evaluation would report no loss. Goes when
  the Trainer asks each batch.
* The best checkpoint of a named adapter. Reason: PEFT saves it in a folder of its name, where the Trainer does not look,
  so that the last values would be kept in the place of the best. Goes when the Trainer looks there.
* Publishing. Reason: the folder that is uploaded has the base model's local path in its config. Goes when the Trainer
  lets the model write what is uploaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME

from ..utils.late_imports import patch_functions
from .publishing import publish_configs
from .safe_saving import SavedPeftModel


def patch_trainer(module: ModuleType) -> None:
    """Patch the `Trainer` of `transformers.trainer`."""
    patches = {
        "prediction_step": contrastive_evaluation,
        "_load_best_model": best_of_named_adapter,
        "push_to_hub": published,
        "_push_from_checkpoint": published_checkpoint,
    }
    patch_functions(module.Trainer, patches)


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


def has_weights(folder: Path) -> bool:
    """Return whether an adapter's weights lie in a folder."""
    return any((folder / name).is_file() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME))


def published(push_to_hub: Callable) -> Callable:
    """Save what is uploaded without paths of this machine."""

    def push(self, *args, **kwargs):
        if not isinstance(self.model, SavedPeftModel):
            return push_to_hub(self, *args, **kwargs)
        with self.model.publishing():
            return push_to_hub(self, *args, **kwargs)

    return push


def published_checkpoint(push_from_checkpoint: Callable) -> Callable:
    """Take paths of this machine out of a checkpoint that is uploaded while training goes on."""

    def push(self, checkpoint_folder):
        if isinstance(self.model, SavedPeftModel) and self.is_world_process_zero():
            publish_configs(checkpoint_folder)
        return push_from_checkpoint(self, checkpoint_folder)

    return push
