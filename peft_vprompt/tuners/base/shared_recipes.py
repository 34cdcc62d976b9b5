"""Recipes that several methods share."""

from __future__ import annotations

from typing import Any

from .recipe import Recipe


#: Where the trainers of CoOp and its successors have their optimiser from.
DASSL = "SGD momentum 0.9 and weight decay 5e-4 inherited from Dassl; "

#: What `vprompt demo` changes in the recipe of most methods: its tiny model learns in a few epochs.
DEMO: dict[str, Any] = {"learning_rate": 0.02, "batch_size": 32, "epochs": 15}

#: Protocols that train on ImageNet and test on other data.
TRANSFERS = ("cross-dataset", "domain-generalization")

PTNL = Recipe(
    learning_rate=0.002,
    batch_size=32,
    epochs=50,
    source=DASSL + "Wu et al., Why Is Prompt Tuning for Vision-Language Models Robust to Noisy Labels?, 4.1",
)

#: On a classifier VPT's authors search the base rate in {50 ... 0.05} and the weight decay in {.01 ... 0} for every data
#: set and set lr = base rate * batch / 256; this is the middle of that range and the batch of their config.
CLASSIFIER = Recipe(
    learning_rate=0.5,
    batch_size=128,
    epochs=100,
    warmup="linear",
    warmup_epochs=10,
    weight_decay=1e-4,
    crop="random_crop",
    source="KMnP/vpt configs/base-prompt.yaml and src/solver/lr_scheduler.py; base rate 1.0 of their search range",
)
