"""Multi-modal representation learning (MMRL, MMRL++, AlignedNorm)."""

from ..base.recipe import Recipe
from ..base.registry import register
from ..base.shared_recipes import DEMO
from ..base.spec import Depth, MethodSpec, Paper, Variation
from .checkpoint import read, read_aligned, read_low_rank
from .config import MMRLConfig
from .method import MMRL, MMRLModel


__all__ = ["MMRL", "MMRLConfig", "MMRLModel"]

PAPER = Paper(
    "Guo and Gu, MMRL: Multi-Modal Representation Learning for Vision-Language Models, CVPR 2025",
    "https://arxiv.org/abs/2503.08497",
)
RECIPE = Recipe(
    learning_rate=1e-3,
    batch_size=4,
    epochs=10,
    optimizer="adamw",
    crop_scale=(0.5, 1.0),
    source="yunncheng/MMRL configs/trainers/MMRL/vit_b16.yaml; weight decay 5e-4 inherited from Dassl",
)
#: Weights of the two distances to the frozen features; the other data sets have the config's.
WEIGHTS = {
    7.0: ("stanford_cars",),
    6.0: ("fgvc_aircraft", "sun397", "dtd"),
    5.0: ("food101",),
    4.0: ("oxford_flowers",),
    3.0: ("ucf101",),
    0.5: ("imagenet", "caltech101"),
    0.2: ("oxford_pets",),
    0.01: ("eurosat",),
}
#: How both read out: new classes and other data by the class token alone.
DECOUPLED = Variation({"readout": "decoupled"})


def by_class_token(config: MMRLConfig) -> dict:
    """Return the readout of other data, of the trained classes too, where the authors' readout is asked for."""
    return {"readout": "class"} if config.readout == "decoupled" else {}


def late_layers(depth: Depth) -> dict:
    """Return the published layers, 6 to 12 of 12: the upper half of the layers that both towers have."""
    return {"representation_layers": list(range(max(2, depth.both // 2), depth.both + 1))}


register(
    MethodSpec(
        name="mmrl",
        title="MMRL",
        paper=PAPER,
        learns="tokens of one space in the late layers of both encoders",
        config_class=MMRLConfig,
        tuner_class=MMRLModel,
        defaults=late_layers,
        recipe=RECIPE,
        variations=(
            DECOUPLED,
            *(Variation({"consistency_weight": weight}, tasks) for weight, tasks in WEIGHTS.items()),
            Variation({"representation_dim": 2048}, tasks=("eurosat",)),
            Variation({"batch_size": 32, "epochs": 5}, tasks=("imagenet",)),
        ),
        elsewhere=by_class_token,
        checkpoints={"mmrl": read, "mmrlpp": read_low_rank, "alignednorm": read_aligned},
        demo=DEMO,
    )
)
register(
    MethodSpec(
        name="mmrlpp",
        title="MMRL++",
        paper=Paper(
            "Guo and Gu, MMRL++: Parameter-Efficient and Interaction-Aware Representation Learning, 2025",
            "https://arxiv.org/abs/2505.10088",
        ),
        learns="MMRL's tokens, with fewer parameters",
        config_class=MMRLConfig,
        defaults=late_layers,
        marks={"low_rank": 4},
        recipe=RECIPE,
        variations=(DECOUPLED, Variation({"epochs": 100}, protocols=("few-shot",))),
        elsewhere=by_class_token,
    )
)
register(
    MethodSpec(
        name="alignednorm",
        title="AlignedNorm",
        paper=Paper("AlignedNorm, QByteM/AlignedNorm", "https://github.com/QByteM/AlignedNorm"),
        learns="MMRL++'s tokens, with norms near the class token's",
        config_class=MMRLConfig,
        defaults=late_layers,
        marks={"low_rank": 4, "feature_norm_weight": 0.1, "sequence_norm_weight": 0.1},
        recipe=RECIPE,
    )
)
