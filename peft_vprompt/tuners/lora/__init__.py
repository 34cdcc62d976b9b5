"""LoRA, PEFT's own, as a fine-tuning baseline: not in the VPT paper."""

from peft import LoraConfig

from ..base.classifier_parts import ClassifierParts
from ..base.registry import register
from ..base.shared_recipes import CLASSIFIER
from ..base.spec import MethodSpec, Paper


def find_targets(model) -> dict:
    """Return the query and value projections, and the head that is trained beside them."""
    classifier = ClassifierParts(model)
    return {"target_modules": classifier.queries_and_values(), "modules_to_save": [classifier.head]}


register(
    MethodSpec(
        name="lora",
        title="LoRA",
        paper=Paper(
            "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022",
            "https://arxiv.org/abs/2106.09685",
        ),
        learns="low-rank changes of query and value projections, and the head",
        config_class=LoraConfig,
        defaults=lambda depth: {"r": 8},
        classifier_recipe=CLASSIFIER,
        new_classes=False,
        is_baseline=True,
        find_targets=find_targets,
    )
)
