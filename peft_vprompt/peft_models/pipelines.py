"""What of transformers' pipelines is changed for models with our adapters, and for no others.

* `pipeline("image-classification")` and `pipeline("zero-shot-image-classification")` know our PEFT models. Reason: they
  report an error for classes that are not in their table. Goes when a PEFT model may say for itself what it can do.
* In zero-shot classification a learned context decides the text around the names, as in training. Reason: the pipeline
  fills a template of its own, whose words would come on top of the context. Goes when a model may name its template.
* The folder or Hub id of an adapter is loaded as a PEFT model. Reason: they put the adapter into a model that they choose
  by the task: one with a new head for image classification, whose answers are random, or one without class names. Goes when
  transformers asks PEFT which model an adapter makes.
* Both read files and images in memory as a training does: 16 bits scaled, transparent parts on white. Reason:
  transformers cuts 16-bit values off at 255 and shows what lies under transparent parts. Goes when `load_image` does so.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from PIL import Image
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from ..core.tokenization import text_tokens
from ..tuners.base import registry
from ..tuners.base.config import TASK_TYPE
from ..tuners.base.prompted_text_encoder import PromptedTextEncoder
from ..utils.io import read_json
from ..utils.late_imports import patch_functions
from .auto import AutoPeftModelForImageClassification
from .peft_model import PeftModelForImageClassification
from .safe_saving import SavedPeftModel


#: Our PEFT models by the pipelines that take them.
TASKS = {
    "image-classification": ["PeftModelForImageClassification", "SavedPeftModel"],
    "zero-shot-image-classification": ["PeftModelForImageClassification"],
}


def tell_tasks(module: ModuleType) -> None:
    """Enter our PEFT models into the table of `transformers.pipelines.base`."""
    for task, names in TASKS.items():
        known = module.SUPPORTED_PEFT_TASKS.setdefault(task, [])
        known.extend(name for name in names if name not in known)


def patch_loading(module: ModuleType) -> None:
    """Patch `transformers.pipelines`, so that adapters of ours are loaded by PEFT."""
    revisions: dict[str, str | None] = {}
    patches = {
        "find_adapter_config_file": lambda find: remember_revision(find, revisions),
        "load_model": lambda load: load_adapters(load, revisions),
    }
    patch_functions(module, patches)


def remember_revision(find: Callable, revisions: dict[str, str | None]) -> Callable:
    """Note which revision of an adapter was asked for: what loads the model is told that of the base model.

    Raises:
        ValueError: when it is called: the adapter does not say where its base model is.
    """

    def run(model, *args, **kwargs):
        found = find(model, *args, **kwargs)
        if found is not None:
            revisions[str(model)] = kwargs.get("revision")
            if _is_own(found) and not read_json(found).get("base_model_name_or_path"):
                raise ValueError(
                    f"The adapter in {str(model)!r} does not say where its base model is. Load both and give the pipeline the "
                    "model: pipeline(task, model=PeftModel.from_pretrained(base, adapter), image_processor=...)."
                )
        return found

    return run


def load_adapters(load: Callable, revisions: dict[str, str | None]) -> Callable:
    """Load an adapter of ours with its base model, and anything else as ever."""

    def run(model, *args, task=None, **kwargs):
        if task not in TASKS or not isinstance(model, str) or model not in revisions:
            return load(model, *args, task=task, **kwargs)
        revision = revisions.pop(model)
        hub = {name: kwargs[name] for name in ("token", "local_files_only", "cache_dir") if kwargs.get(name)}
        found = find_adapter_config_file(model, revision=revision, **hub)
        if found is None or not _is_own(found):
            return load(model, *args, task=task, **kwargs)
        placed = {name: kwargs[name] for name in ("dtype", "device_map") if kwargs.get(name) not in (None, "auto")}
        loaded = AutoPeftModelForImageClassification.from_pretrained(model, revision=revision, **hub, **placed)
        return loaded.eval()

    return run


def _is_own(config_file: str) -> bool:
    """Tell whether the config of an adapter is of one of our methods, or of PEFT's own on class names."""
    config = read_json(config_file)
    if not isinstance(config, dict):
        return False
    try:
        return config.get("task_type") == TASK_TYPE or registry.is_known(config.get("peft_type", ""))
    except ValueError:  # no method at all
        return False


def patch_zero_shot(module: ModuleType) -> None:
    """Patch the pipeline of `transformers.pipelines.zero_shot_image_classification`."""
    patches = {"preprocess": lambda preprocess: as_seen(own_template(preprocess)), "_forward": own_classes}
    patch_functions(module.ZeroShotImageClassificationPipeline, patches)


def patch_classification(module: ModuleType) -> None:
    """Patch the pipeline of `transformers.pipelines.image_classification`."""
    patch_functions(module.ImageClassificationPipeline, {"preprocess": as_seen})


def as_seen(preprocess: Callable) -> Callable:
    """Read an image of a file or in memory as `data.images.to_rgb` does."""

    def run(self, image, *args, **kwargs):
        if isinstance(self.model, SavedPeftModel):
            image = _in_rgb(image)
        return preprocess(self, image, *args, **kwargs)

    return run


def _in_rgb(image: Any) -> Any:
    """Return an image in RGB; what is neither an image nor the path of a file stays."""
    from ..data.images import read_rgb, to_rgb  # with it comes datasets, which the models do not need

    if isinstance(image, Image.Image):
        return to_rgb(image)
    return read_rgb(image) if isinstance(image, str) and os.path.isfile(image) else image


def own_template(preprocess: Callable) -> Callable:
    """Fill the names into the text that the learned context was trained with."""

    def run(self, image, *args, **kwargs):
        template = learned_template(self.model, self.tokenizer)
        if template is not None:
            given = kwargs.get("hypothesis_template", template)
            if given != template:
                warnings.warn(
                    f"hypothesis_template={given!r} is ignored: this adapter has learned the text around the names.",
                    stacklevel=2,
                )
            kwargs["hypothesis_template"] = template
        return preprocess(self, image, *args, **kwargs)

    return run


def own_classes(forward: Callable) -> Callable:
    """Compare images with the candidate labels as in training, whatever kind of prompts the adapter has."""

    def run(self, model_inputs):
        model = self.model
        if not isinstance(model, PeftModelForImageClassification) or learned_template(model, self.tokenizer) is None:
            return forward(self, model_inputs)
        labels = model_inputs.pop("candidate_labels")
        model_inputs.pop("text_inputs")
        names = labels if isinstance(labels[0], str) else labels[0]  # one list for each image of a batch
        logits = model.class_name_classifier.compare(names, **model_inputs).logits
        return {"candidate_labels": labels, "logits": logits}

    return run


def words_left(tokenizer: PreTrainedTokenizerBase, words: str, num_context: int) -> str:
    """Return the end of a text whose first tokens a context takes.

    Raises:
        ValueError: it is read otherwise than within the text.
    """
    left = text_tokens(tokenizer, words)[num_context:]
    if not left:
        return ""
    places = tokenizer(words, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    end = words[places[num_context][0] :]
    if text_tokens(tokenizer, end) != left:
        raise ValueError(
            f"Expected initial words that can be parted after {num_context} tokens. Received: {words!r}, of which the "
            f"tokenizer reads {end!r} otherwise alone. Give the pipeline the PEFT model: "
            "AutoPeftModelForImageClassification.from_pretrained(adapter)."
        )
    return end


def learned_template(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the text around the names by which a model's own call does what the adapter was trained for.

    None where the text side learns nothing, so that any template may be filled.
    """
    text = next((module for module in model.modules() if isinstance(module, PromptedTextEncoder)), None)
    if text is None or text.reads_elsewhere or text.active_prompts is None:
        return "{}." if text is not None and text.reads_elsewhere else None
    prompts: Any = text.active_prompts
    config: Any = text.configs[text.active_adapters[0]]
    if prompts.text_placement != "replace":
        words = getattr(config, "text_around", None) or getattr(config, "words", None)
        asked_by_names = isinstance(model, PeftModelForImageClassification)  # see `own_classes`
        if asked_by_names or not words:
            return "{}."
        return f"{words_left(tokenizer, words, config.length)} {{}}.".lstrip()
    words = config.words or " ".join(["X"] * prompts().shape[1])
    return f"{words} {{}}."
