"""Visual prompt tuning (VPT)."""

from ..base.recipe import Recipe
from ..base.registry import register
from ..base.shared_recipes import CLASSIFIER, DASSL, DEMO
from ..base.spec import MethodSpec, Paper
from .checkpoint import read, read_clip
from .config import VisualPromptConfig, VPTConfig
from .method import VPT, VisualPromptModel


__all__ = ["VPT", "VPTConfig", "VisualPromptConfig", "VisualPromptModel"]

PAPER = Paper("Jia et al., Visual Prompt Tuning, ECCV 2022", "https://arxiv.org/abs/2203.12119")

register(
    MethodSpec(
        name="vpt",
        title="VPT",
        paper=PAPER,
        learns="tokens or pixels at the image encoder (and the head)",
        config_class=VisualPromptConfig,
        tuner_class=VisualPromptModel,
        text=lambda template: {},  # the config's, whatever the data are
        defaults=lambda depth: (
            {"num_virtual_tokens": 8}
            | ({"deep": True, "num_deep_layers": min(12, depth.vision)} if depth.vision else {})
        ),
        recipe=Recipe(
            learning_rate=0.0025,
            batch_size=4,
            epochs=5,
            source=DASSL
            + "muzairkhattak/multimodal-prompt-learning configs/trainers/VPT/vit_b16_c2_ep5_batch4_4.yaml",
        ),
        classifier_recipe=CLASSIFIER,
        checkpoints={"vpt-clip": read_clip, "vpt": read},
        demo=DEMO,
    )
)
for name, title, deep in (("vpt-shallow", "VPT-shallow", False), ("vpt-deep", "VPT-deep", True)):
    register(
        MethodSpec(
            name=name,
            title=title,
            paper=PAPER,
            learns="tokens at the image encoder and the head",
            config_class=VisualPromptConfig,
            marks={"deep": deep},
            defaults=lambda depth: {"num_virtual_tokens": 10},
            classifier_recipe=CLASSIFIER,
            new_classes=False,
            is_baseline=True,
        )
    )
