"""How samples with right and with wrong labels pull at the prompts while a run goes on (PTNL, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import TrainerCallback, default_data_collator

from ..losses.classification import CrossEntropy
from ..utils.arguments import typed
from ..utils.devices import device_of
from ..utils.eval_mode import eval_mode


class GradientProbe(TrainerCallback):
    """Measure, before the first and after every epoch, the gradients of the clean and of the noisy samples' mean losses.

    The losses include the method's regularisers. Nothing in the run changes: gradients are computed beside those of
    the training, on samples fixed at the start.

    Args:
        rows: the training rows, as the model takes them.
        wrong: positions of the rows with wrong labels.
        loss: the loss of the run; None for cross-entropy.

    Attributes:
        history: one entry per epoch with `epoch`, `clean_norm`, `noisy_norm` and the `cosine` of the two gradients.

    Raises:
        ValueError: no row has a wrong label, or all have.
    """

    @typed
    def __init__(self, rows: Sequence[dict], wrong: Sequence[int], loss: Callable | None = None):
        right = sorted(set(range(len(rows))) - set(wrong))
        if not right or not wrong:
            raise ValueError(
                f"Gradients are compared on noisy data. Received: {len(wrong)} wrong of {len(rows)} labels."
            )
        self.batches = [default_data_collator([rows[i] for i in part]) for part in (right, sorted(wrong))]
        self.loss = loss or CrossEntropy()
        self.history: list[dict[str, float]] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Measure before the first epoch; a run that was resumed has done so."""
        if not self.history:
            self._measure(model, 0.0)

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        """Measure after every epoch."""
        self._measure(model, float(state.epoch))

    def _measure(self, model, epoch: float) -> None:
        clean, noisy = (self._gradient(model, batch) for batch in self.batches)
        cosine = torch.nn.functional.cosine_similarity(clean, noisy, dim=0)
        norms = {"clean_norm": clean.norm().item(), "noisy_norm": noisy.norm().item()}
        self.history.append({"epoch": epoch, **norms, "cosine": cosine.item()})

    def _gradient(self, model, batch: dict) -> Tensor:
        """Return the gradient of the mean loss of a batch by everything that is trained, in one vector."""
        device = device_of(model)
        inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
        if getattr(model, "class_name_classifier", None) is not None:
            inputs["output_aux_loss"] = True  # evaluation leaves the regularisers out, which training minimises too
        with eval_mode(model):  # dropout would draw from the run's random numbers
            loss = self.loss(model(**inputs), batch["labels"].to(device))
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
