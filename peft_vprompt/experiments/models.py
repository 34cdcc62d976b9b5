"""From names to models: a method's name, a base model and class names become a PEFT model that is ready to train.

`METHODS` is the only table: a new method is a new row, and the command line, the demo and the tests know it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils import CONFIG_NAME
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    PreTrainedModel,
    set_seed,
)

from .. import (
    ClassHeadConfig,
    CoCoOpConfig,
    ContextOptConfig,
    MaPLeConfig,
    MRPOConfig,
    ReadOnlyPromptConfig,
    TextEncoderConfig,
    VisualPromptConfig,
)
from ..backbones.supported import is_dual_encoder
from ..demo import demo_model_path
from ..training.recipes import RECIPES, Recipe
from .transfer import TRANSFERS, Transfer, find_transfer


class Depth(NamedTuple):
    """Number of layers of the two towers; `text` is 0 for a classifier without a text tower."""

    text: int
    vision: int

    @property
    def both(self) -> int:
        """Layers that both towers have."""
        return min(self.text, self.vision)


@dataclass(frozen=True)
class Method:
    """A row of `METHODS`.

    Attributes:
        title: the name as papers write it.
        config: class of the PEFT config; None where `transfer` makes it.
        defaults: config values for a model of this depth; published depths are cut to the layers there are.
        recipe: the authors' training, None where nothing is trained.
        noisy_recipe: the same where labels are noisy or not read, None where it is no other.
        classifier_recipe: the same on a model with a classification head, None where that has no meaning.
        new_classes: whether what is learned on some classes can be used on others.
        transfer: how an image classifier is configured; such methods make one of a dual encoder's image encoder.
    """

    title: str
    config: type[PeftConfig] | None
    defaults: Callable[[Depth], dict]
    recipe: Recipe | None
    classifier_recipe: Recipe | None = None
    noisy_recipe: Recipe | None = None
    new_classes: bool = True
    transfer: Transfer | None = None


#: Every method by its name on the command line.
METHODS: dict[str, Method] = {
    "zero-shot": Method("Zero-shot", VisualPromptConfig, lambda depth: {}, recipe=None),
    "vpt": Method(
        "VPT (deep)",
        VisualPromptConfig,
        lambda depth: {"num_virtual_tokens": 8, "deep": True, "num_deep_layers": min(12, depth.vision)},
        recipe=RECIPES["vpt"],
        classifier_recipe=RECIPES["vpt-classifier"],
    ),
    "coop": Method("CoOp", ContextOptConfig, lambda depth: {}, recipe=RECIPES["coop"], noisy_recipe=RECIPES["ptnl"]),
    "maple": Method("MaPLe", MaPLeConfig, lambda depth: {"prompt_depth": min(9, depth.both)}, recipe=RECIPES["maple"]),
    "ivlp": Method(
        "IVLP",
        MaPLeConfig,
        lambda depth: {"coupling": "none", "prompt_depth": min(9, depth.both)},
        recipe=RECIPES["ivlp"],
    ),
    "cocoop": Method("CoCoOp", CoCoOpConfig, lambda depth: {}, recipe=RECIPES["cocoop"]),
    "rpo": Method("RPO", ReadOnlyPromptConfig, lambda depth: {}, recipe=RECIPES["rpo"]),
    "mrpo": Method("MRPO", MRPOConfig, lambda depth: {"prompt_depth": min(9, depth.both)}, recipe=RECIPES["mrpo"]),
    "classifier-r": Method(
        "Classifier-R", ClassHeadConfig, lambda depth: {}, recipe=RECIPES["ptnl"], new_classes=False
    ),
    "classifier-c": Method(
        "Classifier-C",
        ClassHeadConfig,
        lambda depth: {"head_init": "text"},
        recipe=RECIPES["ptnl"],
        new_classes=False,
    ),
    "tenc-ft": Method("TEnc-FT", TextEncoderConfig, lambda depth: {}, recipe=RECIPES["ptnl"]),
    "class-name": Method(
        "CLS-Tuning",
        ContextOptConfig,
        lambda depth: {"tune": "class_name"},
        recipe=RECIPES["ptnl"],
        new_classes=False,
    ),
    "full-prompt": Method(
        "Full-Prompt-Tuning",
        ContextOptConfig,
        lambda depth: {"tune": "full"},
        recipe=RECIPES["ptnl"],
        new_classes=False,
    ),
}


def _transfer_method(transfer: Transfer) -> Method:
    """The row of a way to transfer classifiers: every one has the same recipe."""
    return Method(
        transfer.title,
        None,
        lambda depth: {},
        recipe=None,
        classifier_recipe=RECIPES["vpt-classifier"],
        new_classes=False,
        transfer=transfer,
    )


METHODS |= {name: _transfer_method(transfer) for name, transfer in TRANSFERS.items()}


@dataclass
class ModelBundle:
    """A PEFT model with what is needed to feed it."""

    model: PeftModel
    image_processor: object
    recipe: Recipe | None

    @property
    def trainable_parameters(self) -> int:
        """Number of parameters that training changes."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def get_method(name: str) -> Method:
    """Look a method up in `METHODS`.

    Raises:
        ValueError: if there is none of that name; the message lists them.
    """
    if name in METHODS:
        return METHODS[name]
    if transfer := find_transfer(name):  # mlp-k and partial-k for another k
        return _transfer_method(transfer)
    raise ValueError(f"No method {name!r}. Choose one of: {', '.join(METHODS)}.")


def build_model(
    model_name_or_path: str | None, method: str, class_names: Sequence[str], seed: int = 1, **options
) -> ModelBundle:
    """Load a base model and put an untrained adapter on it.

    Args:
        model_name_or_path: folder or Hub id of a dual encoder (CLIP) or an image classifier (ViT); None for the
            embedded tiny CLIP.
        method: a name in `METHODS`.
        class_names: names of the classes, in label order.
        seed: seed of the prompts' and of a new head's first values.
        **options: fields of the method's config that replace its defaults.

    Raises:
        ValueError: if the method does not exist or does not fit the model, or an option is unknown.
    """
    row = get_method(method)
    set_seed(seed)
    if row.transfer is not None:
        base = load_base(model_name_or_path, class_names, classifier=True)
        peft_model = get_peft_model(base, row.transfer.config(base, **options))
        return ModelBundle(peft_model, _image_processor(base), row.classifier_recipe)
    _check_options(row, options)
    base = load_base(model_name_or_path, class_names)
    dual = is_dual_encoder(base.config)
    if not dual and row.classifier_recipe is None:
        possible = [name for name, other in METHODS.items() if other.classifier_recipe]
        raise ValueError(
            f"{row.title} needs a model with a text tower, such as CLIP; {base.config.model_type} has none. "
            f"Possible on this model: {', '.join(possible)}."
        )
    values = row.defaults(_depth(base.config)) | options
    if dual:
        values |= {"class_names": list(class_names)}
    config = row.config(**values)
    return ModelBundle(
        get_peft_model(base, config), _image_processor(base), row.recipe if dual else row.classifier_recipe
    )


def load_adapter(
    adapter: str | Path,
    model_name_or_path: str | None = None,
    class_names: Sequence[str] | None = None,
    embedded: bool = False,
) -> ModelBundle:
    """Load a trained adapter on its base model, for evaluation.

    Args:
        adapter: folder or Hub id of the adapter.
        model_name_or_path: base model; default: the one the adapter names.
        class_names: classes of the head, for a base model with a classification head.
        embedded: the adapter was trained on the embedded model, wherever that is installed now.

    Raises:
        OSError: there is no such adapter.
    """
    config = adapter_config(adapter)
    if model_name_or_path is None and not embedded:
        model_name_or_path = config.base_model_name_or_path
    classifier = (config.auto_mapping or {}).get("base_model_class", "").endswith("ForImageClassification")
    base = load_base(model_name_or_path, class_names, classifier)
    return ModelBundle(PeftModel.from_pretrained(base, str(adapter)).eval(), _image_processor(base), None)


def adapter_config(adapter: str | Path) -> PeftConfig:
    """The config of a saved adapter.

    Args:
        adapter: its folder or Hub id.

    Raises:
        OSError: there is no such folder and no such repository on the Hub, or no adapter in it, or the Hub is out of
            reach.
    """
    folder = Path(adapter)
    if folder.is_dir() and not (folder / CONFIG_NAME).is_file():
        raise OSError(f"Expected the folder of an adapter, with {CONFIG_NAME}. Received: {str(adapter)!r} without it.")
    try:
        return PeftConfig.from_pretrained(str(adapter))
    except ValueError as error:
        if folder.is_dir():
            raise
        raise OSError(
            f"Expected the folder or the Hub id of an adapter. Received: {str(adapter)!r}. There is no such folder, and "
            f"no {CONFIG_NAME} of that id on the Hub or among the files downloaded before "
            f"({type(error.__cause__ or error).__name__}). Check the spelling and the connection."
        ) from error


def load_base(
    model_name_or_path: str | None, class_names: Sequence[str] | None = None, classifier: bool = False
) -> PreTrainedModel:
    """Load a dual encoder as it is, any other model as an image classifier with one output per class.

    Args:
        model_name_or_path: folder or Hub id; None for the embedded model.
        class_names: classes of the head.
        classifier: make an image classifier of a dual encoder, too: its image encoder with a new head.

    Raises:
        OSError: if there is no such folder and no such model on the Hub, or the Hub is out of reach.
    """
    path = str(model_name_or_path or demo_model_path())
    try:
        config = AutoConfig.from_pretrained(path)
    except OSError as error:
        raise OSError(f"Cannot load the model {path!r}: {error}") from error
    if is_dual_encoder(config) and not classifier:
        return AutoModelForZeroShotImageClassification.from_pretrained(path, dtype=torch.float32)
    names = dict(enumerate(class_names)) if class_names else config.id2label
    return AutoModelForImageClassification.from_pretrained(
        path,
        dtype=torch.float32,
        id2label=names,
        label2id={name: label for label, name in names.items()},
        ignore_mismatched_sizes=True,
    )


def _image_processor(base: PreTrainedModel):
    return AutoImageProcessor.from_pretrained(base.name_or_path, backend="pil")


def _check_options(method: Method, options: dict) -> None:
    own = {field.name for field in fields(method.config)} - set(PeftConfig.__dataclass_fields__)
    own -= {"class_names", "class_names_digest"}
    if unknown := [name for name in options if name not in own]:
        raise ValueError(f"{method.title} has no option {', '.join(unknown)}. It has: {', '.join(sorted(own))}.")


def _depth(config) -> Depth:
    if is_dual_encoder(config):
        return Depth(config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers)
    return Depth(0, getattr(config, "vision_config", config).num_hidden_layers)
