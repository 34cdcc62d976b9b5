"""The frozen model with a template around each name: what everything else is compared with."""

from ..base.registry import register
from ..base.spec import MethodSpec, Paper
from ..coop.config import ContextOptConfig


register(
    MethodSpec(
        name="zero-shot",
        title="Zero-shot",
        paper=Paper(
            "Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021",
            "https://arxiv.org/abs/2103.00020",
        ),
        learns="nothing",
        config_class=ContextOptConfig,  # works on every dual encoder; its context is never asked
        defaults=lambda depth: {"num_virtual_tokens": 1},
        demo={},
    ),
    first=True,
)
