"""From names to models: a method's name, a base model and class names become a PEFT model that is ready to train."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils import CONFIG_NAME
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    PreTrainedModel,
    set_seed,
)

from ..backbones.image_size import set_image_size
from ..backbones.supported import find_backbone, is_dual_encoder
from ..data import find_task, image_size
from ..data.transforms import ImageProcessor, takes_any_shape
from ..demo import demo_model_path
from ..errors import AdapterMismatchError, UnsupportedModelError
from ..models.open_clip import is_open_clip, load_open_clip, open_clip_image_processor
from ..peft_models.auto import check_head, read_config
from ..peft_models.peft_model import PeftModelForImageClassification
from ..tuners.base.recipe import Recipe
from ..tuners.base.registry import METHODS, get_method
from ..tuners.base.spec import MethodSpec
from ..utils.arguments import typed
from ..utils.digests import MODEL_PROVENANCE, digest_json, digest_tensors, without
from ..utils.hub import split_revision
from ..utils.io import finish_saving
from ..utils.precision import Precision, autocast, hold
from ..utils.validation import first_line
from .templates import published_template


#: What `vprompt demo` changes of each method that it shows, as fields of `Settings`.
DEMO_CHANGES: dict[str, dict] = {name: dict(spec.demo) for name, spec in METHODS.items() if spec.demo is not None}


@dataclass
class ModelBundle:
    """A PEFT model with what is needed to feed it.

    Attributes:
        model: the model.
        image_processor: what makes its inputs of images.
        recipe: how the method is trained on it; None where nothing is trained.
        content: digests of what the base model is, see `base_content`; none of a loaded adapter.
    """

    model: PeftModel
    image_processor: ImageProcessor
    recipe: Recipe | None
    content: dict[str, str | None] = field(default_factory=dict)

    @property
    def trainable_parameters(self) -> int:
        """Number of parameters that training changes."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


@typed
def build_model(
    model_name_or_path: str | None,
    method: str,
    class_names: Sequence[str],
    seed: int = 1,
    *,
    image_size: int | None = None,
    device: str | torch.device | None = None,
    precision: Precision = "float32",
    **options,
) -> ModelBundle:
    """Load a base model and put an untrained adapter on it.

    Args:
        model_name_or_path: folder or Hub id of a dual encoder (CLIP) or an image classifier (ViT), `id@revision` for
            one revision; None for the embedded tiny CLIP.
        method: a name in `METHODS`.
        class_names: names of the classes, in label order.
        seed: seed of the prompts' and of a new head's first values.
        image_size: edge in pixels of the images to take; None for the model's own. Positions are interpolated.
        device: where to put the model; None leaves it on the CPU.
        precision: what the weights of a dual encoder are held in, and an image classifier computes in: a name in
            `utils.precision.PRECISIONS`.
        **options: fields of the method's config that replace its defaults.

    Raises:
        ValueError: if the method does not exist or does not fit the model, an option is unknown, or the model cannot
            take images of that size.
    """
    spec = get_method(method)
    set_seed(seed)
    _check_options(spec, options)
    base, new = _load_base(model_name_or_path, class_names, spec.is_baseline)
    content = base_content(base, new)
    processor = _image_processor(base, image_size)
    dual = is_dual_encoder(base) and not spec.is_baseline
    if not dual and spec.classifier_recipe is None:
        possible = [name for name, other in METHODS.items() if other.classifier_recipe]
        raise ValueError(
            f"{spec.title} needs a model with a text tower, such as CLIP; {base.config.model_type} has none. "
            f"Possible on this model: {', '.join(possible)}."
        )
    if dual:
        options |= {"class_names": list(class_names)}
    config = spec.configure(base, is_classifier=not dual, **options)
    config.revision = split_revision(model_name_or_path)[1] if model_name_or_path else None
    model = get_peft_model(_compute_in(precision, base, dual, device), config)
    content |= {"image processor": digest_json(processor.to_dict()), "tokenizer": _tokenizer_content(model)}
    return ModelBundle(model.to(device), processor, spec.recipe if dual else spec.classifier_recipe, content)


@typed
def load_adapter(
    adapter: str | Path,
    model_name_or_path: str | None = None,
    class_names: Sequence[str] | None = None,
    embedded: bool = False,
    *,
    image_size: int | None = None,
    device: str | torch.device | None = None,
    precision: Precision = "float32",
    class_descriptions: str | Path | None = None,
    subfolder: str | None = None,
) -> ModelBundle:
    """Load a trained adapter on its base model, for evaluation.

    Args:
        adapter: folder or Hub id of the adapter, `id@revision` for one revision.
        model_name_or_path: base model; default: the one the adapter names.
        class_names: classes of the head, for a base model with a classification head.
        embedded: the adapter was trained on the embedded model, wherever that is installed now.
        image_size: edge in pixels of the images to take; None for the model's own.
        device: where to put the model; None leaves it on the CPU.
        precision: what the weights of a dual encoder are held in, and an image classifier computes in: a name in
            `utils.precision.PRECISIONS`.
        class_descriptions: JSON file of sentences by class, beside those that the adapter was saved with.
        subfolder: of an adapter that is not in the first place.

    Raises:
        OSError: there is no such adapter, or no such base model.
        AdapterMismatchError: the adapter does not fit the base model, or its file cannot be read.
    """
    config = adapter_config(adapter, subfolder)
    if model_name_or_path is None and not embedded:
        model_name_or_path = base_of(config)
    classifier = has_head(config)
    place, revision = split_revision(str(adapter))
    if classifier:
        check_head(config, place, {"revision": revision, "subfolder": subfolder}, len(class_names or ()))
    base = load_base(model_name_or_path, class_names, classifier)
    processor = _image_processor(base, image_size)
    inside: dict[str, Any] = {} if subfolder is None else {"subfolder": subfolder}
    base = _compute_in(precision, base, is_dual_encoder(base), device)
    model = PeftModel.from_pretrained(base, place, revision=revision, **inside).eval()
    if class_descriptions is not None:
        if not isinstance(model, PeftModelForImageClassification):
            raise ValueError(
                "Expected class descriptions for a model that compares images with class names. Received: an image "
                "classifier. Leave --class-descriptions out."
            )
        model.describe_classes(class_descriptions)
    return ModelBundle(model.to(device), processor, None)


def _compute_in(
    precision: Precision, base: PreTrainedModel, dual: bool, device: str | torch.device | None
) -> PreTrainedModel:
    """Hold a dual encoder, which stays frozen, in a precision; an image classifier's head or layers are trained."""
    return hold(base, precision) if dual else autocast(base, precision, torch.device(device or "cpu"))


def has_head(config: PeftConfig) -> bool:
    """Tell whether an adapter's base model has a classification head in the place of texts."""
    return str((config.auto_mapping or {}).get("base_model_class")).endswith("ForImageClassification")


def as_published(bundle: ModelBundle, benchmark: str | None) -> ModelBundle:
    """Return the model with the preprocessing and the augmentation that a benchmark's task has, if the data are one.

    Raises:
        ValueError: an unknown task, or an image processor without a fixed size.
    """
    if benchmark is None:
        return bundle
    task = find_task(benchmark)
    processor = task.image_processor(image_size(bundle.image_processor)[0]) or bundle.image_processor
    recipe = bundle.recipe if bundle.recipe is None or task.crop is None else replace(bundle.recipe, crop=task.crop)
    return replace(bundle, image_processor=processor, recipe=recipe)


def published_fields(benchmark: str | None, method: str) -> dict[str, Any]:
    """Return the fields of a method's config that the template of a benchmark's task decides: the text around class names.

    Raises:
        ValueError: an unknown task or method.
    """
    template = published_template(benchmark)
    spec = get_method(method)
    reads = "template" in {each.name for each in fields(spec.config_class)}
    return spec.text(template) if template and reads else {}


def adapter_config(adapter: str | Path, subfolder: str | None = None) -> PeftConfig:
    """Read the config of a saved adapter.

    Args:
        adapter: its folder or Hub id, `id@revision` for one revision.
        subfolder: of an adapter that is not in the first place.

    Raises:
        OSError: there is no such folder and no such repository on the Hub, or no adapter in it, or the Hub is out of
            reach.
        AdapterMismatchError: it is damaged, or has a pattern of modules that could take for ever.
    """
    folder = Path(adapter, subfolder or "")
    finish_saving(folder)
    if Path(adapter).is_dir() and not (folder / CONFIG_NAME).is_file():
        raise OSError(f"Expected the folder of an adapter, with {CONFIG_NAME}. Received: {str(folder)!r} without it.")
    place, revision = split_revision(str(adapter))
    try:
        return read_config(place, revision=revision, subfolder=subfolder)
    except AdapterMismatchError:
        raise
    except ValueError as error:
        if Path(adapter).is_dir() or error.__cause__ is None:  # it is there, and damaged
            raise
        raise OSError(
            f"Expected the folder or the Hub id of an adapter. Received: {str(adapter)!r}. There is no such folder, and "
            f"no {CONFIG_NAME} of that id on the Hub or among the files downloaded before "
            f"({type(error.__cause__).__name__}: {first_line(error)}). Check the spelling and the connection."
        ) from error


def base_of(config: PeftConfig) -> str | None:
    """Return the base model that a saved adapter names, at the revision that it names."""
    name = config.base_model_name_or_path
    return f"{name}@{config.revision}" if name and config.revision else name


def load_base(
    model_name_or_path: str | None, class_names: Sequence[str] | None = None, classifier: bool = False
) -> PreTrainedModel:
    """Load a dual encoder as it is, any other model as an image classifier with one output per class.

    Args:
        model_name_or_path: folder or Hub id, `id@revision` for one revision; None for the embedded model.
        class_names: classes of the head.
        classifier: make an image classifier of a dual encoder, too: its image encoder with a new head.

    Raises:
        OSError: if there is no such folder and no such model on the Hub, or the Hub is out of reach.
    """
    return _load_base(model_name_or_path, class_names, classifier)[0]


def reads_texts(model_name_or_path: str | None) -> bool:
    """Tell whether a base model has a text tower, by its config alone.

    Args:
        model_name_or_path: folder or Hub id, `id@revision` for one revision; None for the embedded model.

    Raises:
        OSError: there is no such folder and no such model on the Hub, or the Hub is out of reach.
    """
    path, revision = split_revision(model_name_or_path or demo_model_path())
    if is_open_clip(path, revision=revision):
        return True
    return is_dual_encoder(AutoConfig.from_pretrained(path, revision=revision or "main", trust_remote_code=False))


def recipe_on(model_name_or_path: str | None, spec: MethodSpec) -> Recipe | None:
    """Return how a method is trained on a base model: with class names, or as a classifier with a head."""
    learns_from_names = not spec.is_baseline and reads_texts(model_name_or_path)
    return spec.recipe if learns_from_names else spec.classifier_recipe


def base_content(base: PreTrainedModel, new: Collection[str] = ()) -> dict[str, str | None]:
    """Return a digest of a base model's weights and config, by which a run knows it whatever its path.

    Args:
        base: the model as it was loaded.
        new: names of the tensors that no file gave, such as those of a new head.
    """
    # The names of the classes count by themselves.
    config = without(base.config.to_dict(), {*MODEL_PROVENANCE, "id2label", "label2id"})
    tensors = {name: tensor for name, tensor in base.state_dict().items() if name not in new}
    return {"base model": digest_json([config, digest_tensors(tensors)], 32)}


def _tokenizer_content(model: PeftModel) -> str | None:
    """Return a digest of the tokenizer that reads class names; None where there is none."""
    config: Any = model.active_peft_config
    classifier = getattr(model, "class_name_classifier", None)
    if classifier is None or not getattr(config, "class_names", None):
        return None
    tokenizer = classifier.adapted.tokenizers.find(config.tokenizer_name_or_path)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return digest_json(tokenizer.get_vocab(), 32)
    parts = json.loads(backend.to_str())
    return digest_json({name: part for name, part in parts.items() if name not in ("padding", "truncation")}, 32)


def _load_base(
    model_name_or_path: str | None, class_names: Sequence[str] | None, classifier: bool
) -> tuple[PreTrainedModel, set[str]]:
    """Load a base model; also return the names of its tensors that are new."""
    path, revision = split_revision(model_name_or_path or demo_model_path())
    pinned: dict[str, Any] = {"trust_remote_code": False} | ({} if revision is None else {"revision": revision})
    try:
        config: Any = AutoConfig.from_pretrained(path, **pinned)
    except (OSError, ValueError) as error:
        if not is_open_clip(path, revision=revision):
            if not isinstance(error, OSError):
                raise
            raise OSError(f"Cannot load the model {path!r}: {error}") from error
        if classifier:
            raise UnsupportedModelError(
                f"Expected a model of transformers to make an image classifier of. Received files of open_clip in {path!r}. "
                "If it is of CLIP's own build with a ViT, make one with `vprompt convert-clip`. Of others use a method on class names, "
                "such as classifier-r, which learns one vector for each class."
            ) from error
        return load_open_clip(path, revision=revision), set()
    options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True} | pinned
    if is_dual_encoder(config) and not classifier:
        # Not every dual encoder is known to transformers as one for zero-shot classification.
        zero_shot = type(config) in AutoModelForZeroShotImageClassification._model_mapping
        auto: Any = AutoModelForZeroShotImageClassification if zero_shot else AutoModel
        base, loaded = auto.from_pretrained(path, **options)
    elif type(config) not in AutoModelForImageClassification._model_mapping:
        raise UnsupportedModelError(
            f"Expected a model that has a class with a classification head. Received: {path!r}, a {config.model_type}, which has "
            "none. Use a method on class names, such as classifier-r, which learns one vector for each class."
        )
    else:
        names = dict(enumerate(class_names)) if class_names else config.id2label
        options |= {"id2label": names, "label2id": {name: label for label, name in names.items()}}
        base, loaded = AutoModelForImageClassification.from_pretrained(path, ignore_mismatched_sizes=True, **options)
    mismatched = {key if isinstance(key, str) else key[0] for key in loaded.get("mismatched_keys", ())}
    return base, set(loaded.get("missing_keys", ())) | mismatched


def _image_processor(base: PreTrainedModel, image_size: int | None):
    """Return the model's image processor; with an image size, both give and take images of that size.

    It comes from the commit of the Hub that the model came from.
    """
    commit = getattr(base.config, "_commit_hash", None)
    name: Any = base.name_or_path
    options: dict[str, Any] = {"backend": "pil", "trust_remote_code": False, "revision": commit}
    try:
        processor: Any = AutoImageProcessor.from_pretrained(name, **options)
    except (OSError, ValueError):
        if not is_open_clip(name, revision=commit):
            raise
        if image_size is not None:
            set_image_size(base, image_size)
        tower: Any = base.get_submodule(find_backbone(base).vision)
        return open_clip_image_processor(name, tower.config.image_size, revision=commit)
    if image_size is None:
        return processor
    if takes_any_shape(processor):
        raise ValueError(
            f"This model takes images of any shape, so there is no image size to set. Received: {image_size}. Leave it out."
        )
    set_image_size(base, image_size)
    square = {"height": image_size, "width": image_size}
    if not getattr(processor, "do_center_crop", False):
        return AutoImageProcessor.from_pretrained(base.name_or_path, size=square, **options)
    larger = image_size / processor.crop_size["height"]
    size = {edge: round(pixels * larger) for edge, pixels in dict(processor.size).items() if pixels}
    return AutoImageProcessor.from_pretrained(base.name_or_path, size=size, crop_size=square, **options)


def _check_options(spec: MethodSpec, options: dict) -> None:
    own = {field.name for field in fields(spec.config_class)} - set(PeftConfig.__dataclass_fields__)
    own -= {"class_names", "class_names_digest", "head_classes"}
    if unknown := [name for name in options if name not in own]:
        raise ValueError(f"{spec.title} has no option {', '.join(unknown)}. It has: {', '.join(sorted(own))}.")
