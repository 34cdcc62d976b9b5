"""The stock `Trainer`, whose steps, losses and evaluations are those of one process however many there are."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, default_data_collator
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, seed_worker

from ..data.epoch_batches import EpochBatches
from ..losses.label_checks import IGNORED
from .evaluation import batches_of, compute_metrics


class RecipeTrainer(Trainer):
    """Train on given batches, and evaluate on every image.

    The stock Trainer would apply `dataloader_drop_last` to evaluation as well, and of several processes give some an image
    twice. Evaluation takes no random number from the training, whose dropout goes on as if there had been none.

    Args:
        batches: the batches of an epoch, shared out to the processes.
        **options: those of the stock Trainer, whose metric is by default the accuracy.
    """

    def __init__(self, batches: EpochBatches, **options):
        defaults: dict[str, Any] = {"data_collator": default_data_collator, "compute_metrics": compute_metrics}
        super().__init__(**defaults | options)
        self.remove_callback(PrinterCallback)
        self.batches = batches
        self.processes = batches.processes

    def get_train_dataloader(self) -> DataLoader:
        """Return this process's share of the batches."""
        seed = partial(seed_worker, num_workers=self.args.dataloader_num_workers, rank=self.args.process_index)
        return DataLoader(
            self.train_dataset,  # pyrefly: ignore[bad-argument-type]  # there is one
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            worker_init_fn=seed,
        )

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None) -> Any:
        """Return the loss as the stock Trainer does, such that its mean over the processes is that of the whole batch.

        The stock Trainer does so for a loss of its own (`compute_loss_func`), which it tells how many labels count in all.

        Raises:
            ValueError: the rows have no labels.
        """
        labels = inputs.get("labels")
        if labels is None:
            raise ValueError(
                f"Expected rows with `labels`. Received: rows of {', '.join(inputs) or 'nothing'}. Add the number of the class "
                "to each row."
            )
        found: Any = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss, outputs = found
        if self.processes.count > 1 and model.training and self.compute_loss_func is None:
            loss = self._of_whole_batch(loss, outputs.get("aux_loss"), labels)
        return (loss, outputs) if return_outputs else loss

    def _of_whole_batch(self, loss: Tensor, aux_loss: Tensor | None, labels: Tensor) -> Tensor:
        """Weigh this process's mean: the loss of labels by how many count, the regularisers by the number of images."""
        counted = labels.ne(IGNORED).sum().reshape(1)
        everywhere: Any = self.accelerator.gather(counted)
        share = counted / everywhere.sum().clamp(min=1)
        regularisers = torch.zeros_like(loss) if aux_loss is None else aux_loss
        own = self.batches.own_size / self.batches.batch_size
        weighted = (loss - regularisers) * share.squeeze() + regularisers * own
        return self.processes.count * weighted

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Evaluate as the stock Trainer does."""
        with torch.random.fork_rng(devices=[]):  # the loader draws a seed for its workers; the model draws nothing
            return super().evaluate(*args, **kwargs)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """Return batches of all rows of `eval_dataset` (default: the Trainer's own) in their order, the last one short.

        Of several processes each has its share of them.
        """
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        size = self.args.eval_batch_size
        options: Any = {
            "collate_fn": self.data_collator,
            "num_workers": self.args.dataloader_num_workers,
            "pin_memory": self.args.dataloader_pin_memory,
        }
        if self.processes.count == 1:
            return self.accelerator.prepare(DataLoader(rows, batch_size=size, **options))
        return DataLoader(rows, batch_sampler=self.processes.share(batches_of(len(rows), size)), **options)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Evaluate as the stock Trainer does; of several processes each on its share, without an image twice."""
        if self.processes.count == 1:
            return super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        model: Any = self.model
        model.eval()
        found = []
        for inputs in dataloader:
            parts: Any = self.prediction_step(model, inputs, False, ignore_keys=ignore_keys)  # loss, logits, labels
            found.append([part.cpu() for part in parts])
        losses, logits, labels = zip(*self.processes.gather(found), strict=True)
        sizes = [len(part) for part in labels]
        predictions, label_ids = (torch.cat(parts).numpy() for parts in (logits, labels))
        metrics = {"loss": float(np.average([float(loss) for loss in losses], weights=sizes))}
        if self.compute_metrics is not None:
            metrics |= self.compute_metrics(EvalPrediction(predictions, label_ids))
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions, label_ids, named, len(label_ids))
