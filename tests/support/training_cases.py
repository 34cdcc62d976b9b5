"""Every registered method on the models of `BACKBONES` that it trains, with a labelled data set: for training tests.

A method cannot be left out: the cases are read from the registry, and one without an entry in `CONFIGS` is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from peft_vprompt.backbones.supported import DUAL_ENCODERS, HEADS
from peft_vprompt.tuners.base.registry import PROMPT_METHODS
from tests.support.models import BACKBONES, CLASS_NAMES, CONFIGS, images, labels, often
from tests.support.peft_behaviours import ROWS, made


@dataclass(frozen=True)
class Case:
    """One configuration of one method on one model."""

    backbone: str
    method: str
    variant: str

    def __str__(self) -> str:
        return f"{self.backbone}-{self.method}-{self.variant}"

    def config(self, tokenizer_path: str, **config):
        """The adapter's configuration; only dual encoders are told class names."""
        if self.backbone in DUAL_ENCODERS:
            config = {"class_names": CLASS_NAMES, "tokenizer_name_or_path": tokenizer_path} | config
        return CONFIGS[self.method][self.variant](**config)

    def build(self, tokenizer_path: str, seed: int = 1, dtype: torch.dtype = torch.float32, **config) -> PeftModel:
        """The PEFT model. `seed` decides the prompts' first values and nothing else.

        With seed 1 the tiny Meta-Nets, of one hidden unit, are alive: every gradient differs from zero.
        """
        base = BACKBONES[self.backbone]().to(dtype)
        torch.manual_seed(seed)
        return get_peft_model(base, self.config(tokenizer_path, **config))


def _backbones(method: str) -> list[str]:
    """The models with logits of their own that a method can be put on."""
    names = DUAL_ENCODERS if PROMPT_METHODS[method].tuner_class.method.needs_text else {**DUAL_ENCODERS, **HEADS}
    return [name for name in names if name in BACKBONES]


#: Every configuration of every method on each of these models that it trains.
CASES = [
    Case(backbone, method, variant)
    for method in PROMPT_METHODS
    for backbone in _backbones(method)
    for variant in CONFIGS[method]
]
#: The first configuration of every method on each of them: what is tested in every run.
FIRST_CASES = [case for case in CASES if case.variant == next(iter(CONFIGS[case.method]))]

#: Methods with vectors of their own for the classes, for which no text encoder runs.
OWN_FEATURES = ("class_head", "clap", "promptkd")
#: Methods of which no gradient leads through a layer of an encoder.
ON_FEATURES = ("class_head", "clap", "tip_adapter")

#: Methods that differ from the named one in the forward pass alone: what trainers make of them is tested nightly.
TRAINS_AS = {
    "context_opt": "maple",
    "kgcoop": "maple",
    "tcp": "maple",
    "mmrl": "maple",
    "read_only_prompt": "maple",
    "mrpo": "maple",
    "class_head": "two_stage",
    "clap": "tip_adapter",
    "text_encoder": "two_stage",
    "norm_tuning": "two_stage",
}
#: What trains in every run: one model for each of the other methods.
TRAINED_CASES = [
    case
    for case in FIRST_CASES
    if case.method not in TRAINS_AS and (case.method != "visual_prompt" or case.backbone.startswith("ViT"))
]

#: What compilers and exporters are tried on: every row of the method table that has logits, and the models of no row.
SUBJECTS: list[str | Case] = [
    *(row for row, model in ROWS.items() if model != "ViTModel"),
    *(case for case in FIRST_CASES if case.backbone not in ROWS.values()),
]


def built(subject: str | Case, tokenizer_path: str) -> PeftModel:
    """Return one of `SUBJECTS`, without dropout: what is drawn differs from compiler to compiler."""
    model = made(subject, tokenizer_path) if isinstance(subject, str) else subject.build(tokenizer_path)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


every_subject = pytest.mark.parametrize("subject", SUBJECTS, ids=str)
every_case = pytest.mark.parametrize("case", often(CASES, TRAINED_CASES), ids=str)
first_cases = pytest.mark.parametrize("case", often(FIRST_CASES, TRAINED_CASES), ids=str)


#: Methods of which several passes are not one pass over all their images, and why.
PASS_BY_PASS = {
    "prograd": "each pass changes its own gradients, before they are added up",
    "promptkd": "each pass normalises features by the statistics of its own images",
}


def dataset(count: int = 8, seed: int = 0) -> Dataset:
    """Labelled images, with a column that no model takes."""
    columns = {
        "pixel_values": images(count, seed).numpy(),
        "labels": labels(count, seed).numpy(),
        "photographer": list(range(count)),
    }
    return Dataset.from_dict(columns).with_format("torch")


def trained(model: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters that training changes."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of the gradients of all parameters that training changes; every one must have one."""
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    missing = [name for name, grad in grads.items() if grad is None]
    assert not missing, f"no gradient reached {missing}"
    return {name: grad.clone() for name, grad in grads.items()}


def make_trainer(
    model: torch.nn.Module,
    output: Path,
    train: Dataset | None = None,
    evaluate: Dataset | None = None,
    callbacks: list[TrainerCallback] | None = None,
    compute_metrics: Callable | None = None,
    compute_loss_func: Callable | None = None,
    **arguments,
) -> Trainer:
    """A stock Trainer on the CPU with SGD and momentum; nothing about labels is told to it."""
    defaults = {
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    arguments = TrainingArguments(output_dir=str(output), **defaults | arguments)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=evaluate,
        compute_metrics=compute_metrics,
        compute_loss_func=compute_loss_func,
        callbacks=callbacks,
        optimizers=(torch.optim.SGD(parameters, lr=arguments.learning_rate, momentum=0.9), None),
    )
