"""CLIP-LoRA: PEFT's LoRA of both towers, trained on class names."""

from ..base.recipe import Recipe
from ..base.registry import register
from ..base.spec import MethodSpec, Paper
from .config import CLIPLoraConfig
from .method import CLIPLora, CLIPLoraModel


__all__ = ["CLIPLora", "CLIPLoraConfig", "CLIPLoraModel"]

register(
    MethodSpec(
        name="clip-lora",
        title="CLIP-LoRA",
        paper=Paper(
            "Zanella and Ben Ayed, Low-Rank Few-Shot Adaptation of Vision-Language Models, CVPR 2024 Workshops",
            "https://arxiv.org/abs/2405.18541",
        ),
        learns="low-rank changes of queries, keys and values in both encoders",
        config_class=CLIPLoraConfig,
        tuner_class=CLIPLoraModel,
        text=lambda template: {},  # the config's, whatever the data are
        recipe=Recipe(
            learning_rate=2e-4,
            batch_size=32,
            epochs=None,
            steps_per_shot=500,
            optimizer="adamw",
            weight_decay=1e-2,
            schedule="cosine_per_step",
            min_learning_rate=1e-6,
            warmup_epochs=0,
            source="MaxZanella/CLIP-LoRA run_utils.py and lora.py",
        ),
        demo={"learning_rate": 2e-3, "batch_size": 32, "epochs": 15},
    )
)
