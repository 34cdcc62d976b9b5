"""What decides the outcome of a run, and how two runs are told apart by it."""

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Literal

from ..backbones.image_size import MAX_IMAGE_SIZE
from ..core.class_descriptions import read_descriptions
from ..losses.classification import ClassificationLoss, make_loss
from ..training.cached_features import MAX_VIEWS
from ..tuners.base.recipe import Recipe
from ..utils.fields import check_fields
from ..utils.precision import Precision
from ..utils.validation import MAX_SEED, parse_fields
from .supervision import Supervision


#: Bounds of what torch and NumPy take as a seed.
SEED = {"min": 0, "max": MAX_SEED}

#: Most characters of a method in the name of a folder.
_LONGEST = 80

#: Fields of `Settings` that change the authors' recipe.
RECIPE_CHANGES = ("epochs", "learning_rate", "batch_size", "weight_decay")


@dataclass(frozen=True)
class Settings:
    """What decides the outcome of a run, beside the images.

    Attributes:
        method: a name in `registry.METHODS`.
        model: folder or Hub id of the base model; None for the embedded one.
        shots: training images per class; None for all.
        seed: seed of the shots, of the prompts' first values and of the order of images.
        base_novel: train on the base classes and test on base and novel; else train and test on all.
        epochs, learning_rate, batch_size, weight_decay: changes to the authors' recipe; None keeps it. CoOp's is PTNL's
            where labels are noisy or not read.
        config: changes to the method's default config, by field. A file of class descriptions is read, so that a run is
            known by what it says.
        precision: what the frozen weights are held in: float32, bf16 or fp16; what is trained stays in float32.
        cache_features: train and test on image features that are computed once and kept on the disk, which methods
            without visual prompts can. The augmentation is then fixed.
        views: cached augmentations of every training image, one of which is drawn in each epoch; of images to distil
            on, those that the teacher sees. None for the method's own number where it learns from several, else one.
        loss: a name in `losses.LOSSES`; None for the model's own cross-entropy.
        loss_options: parameters of the loss.
        supervision: whose labels to train on.
        ensemble: number of contexts to train from as many seeds and to average (CoOp's kind of context only).
        draft_jpeg: decode JPEGs to train on at a half, a quarter or an eighth of their size where that is still twice the size
            the model takes: quicker, and a little other pixels. Those to test on are read whole.
        image_size: edge in pixels of the images that the model takes, with interpolated positions; None for its own.
        teacher: folder or Hub id of the adapter, or of the base model as it is, whose predictions are distilled; labels are
            not read then.
        teacher_model: base model of a teacher's adapter; None for the one that it names.
        protocol: the protocol, as `vprompt bench` has it, whose variations of the authors are followed on published data;
            None for base-to-novel or few-shot, as `base_novel` says.

    Raises:
        ValueError: a value of another type, or out of range; names the field.
    """

    method: str
    model: str | None = None
    shots: int | None = field(default=16, metadata={"min": 1})
    seed: int = field(default=1, metadata=SEED)
    base_novel: bool = True
    epochs: int | None = None
    learning_rate: float | None = field(default=None, metadata={"max": 1e30})  # near a float32's last, Adam overflows
    batch_size: int | None = None
    weight_decay: float | None = None
    config: dict = field(default_factory=dict)
    precision: Precision = "float32"
    cache_features: bool = False
    views: int | None = field(default=None, metadata={"min": 1, "max": MAX_VIEWS})
    loss: str | None = None
    loss_options: dict = field(default_factory=dict)
    supervision: Supervision = Supervision()
    ensemble: int = field(default=1, metadata={"max": 1000})
    draft_jpeg: bool = False
    image_size: int | None = field(default=None, metadata={"min": 1, "max": MAX_IMAGE_SIZE})
    teacher: str | None = None
    teacher_model: str | None = None
    protocol: Literal["base-to-novel", "few-shot", "cross-dataset", "domain-generalization"] | None = None

    def __post_init__(self):
        check_fields(self)
        if isinstance(file := self.config.get("class_descriptions"), str):
            object.__setattr__(self, "config", self.config | {"class_descriptions": read_descriptions(file)})

    @property
    def reads_labels(self) -> bool:
        """Whether labels of the training images are read."""
        return self.supervision.uses_labels and self.teacher is None


def changed_recipe(recipe: Recipe, settings: Settings) -> Recipe:
    """Return a recipe with the changes of the settings."""
    return recipe.override(**{name: getattr(settings, name) for name in RECIPE_CHANGES})


def safe_name(method: str) -> str:
    """Return a method as part of a path: without what may not stand in one, and cut to a length that any disk takes."""
    return re.sub(r"[^\w.,=+-]+", "_", method)[:_LONGEST]


def parse_method(method: str) -> tuple[str, dict]:
    """Return a method's name and the changes that follow it, from a text such as `coop:num_virtual_tokens=4`.

    Raises:
        ValueError: what follows a colon is not NAME=VALUE.
    """
    name, *changes = method.split(":")
    return name, parse_fields(changes, f"What follows a colon in {method!r}")


def loss_of(settings: Settings) -> ClassificationLoss | None:
    """Return the loss that the settings name; None for the model's own."""
    return make_loss(settings.loss, **settings.loss_options) if settings.loss else None


def changed_settings(settings: dict) -> dict:
    """Return the settings that are not the defaults, as JSON has them: a setting added later changes no earlier run."""
    defaults = as_json(asdict(Settings(method="")))
    return {
        name: value for name, value in as_json(settings).items() if name not in defaults or value != defaults[name]
    }


def as_json(value):
    """Return a value as it is read back from JSON: tuples become lists."""
    return json.loads(json.dumps(value))
