"""PromptSRC's checkpoints."""

from __future__ import annotations

from dataclasses import replace

from ..base.checkpoint_layout import Layout, State
from ..ivlp.checkpoint import read as read_independent
from .config import PromptSRCConfig


def read(state: State) -> Layout:
    """Read muzairkhattak/PromptSRC `trainers/promptsrc.py`: IVLP's tensors; the frozen models beside them are left."""
    return replace(read_independent(state, "promptsrc"), config_class=PromptSRCConfig)
