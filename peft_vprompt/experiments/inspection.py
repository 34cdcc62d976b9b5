"""What is in an adapter: from its files alone, and by its base model what its contexts and classes are near to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from peft import PeftConfig, PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from ..backbones.supported import HEADS, class_name, view
from ..data.images import read_rgb
from ..errors import TokenizerNotFoundError
from ..peft_models.adapter_files import complete_adapter
from ..tuners.base.classifier import text_classifier
from ..tuners.base.prompted_text_encoder import PromptedTextEncoder
from ..tuners.base.registry import find_row
from ..utils.devices import device_of, find_device
from ..utils.hub import split_revision
from ..utils.precision import find_precision
from ..utils.validation import first_line
from .attention_maps import attention_maps, plot_attention
from .models import adapter_config, has_head
from .results import results_of
from .trained import SavedAdapter


#: Words that are listed for each token of a context, and the tokens that are listed.
NEAREST, MOST_TOKENS = 3, 64

#: Pairs of classes that are listed.
MOST_PAIRS = 10

#: Layers by the names of tensors that lie in them.
_LAYER = re.compile(r"\.(?:layers?|blocks)\.(\d+)\.")


def describe_adapter(adapter: str | Path, subfolder: str | None = None) -> dict:
    """Return what the files of an adapter say; its base model is not loaded.

    Args:
        adapter: folder or Hub id, `id@revision` for one revision.
        subfolder: of an adapter that is not in the first place.

    Returns:
        `method`, `title`, `learns`, `paper`, `peft_type`, `base_model`, `base_class`, `revision`, `tokenizer`, `classes`,
        `options` (that are not the defaults), `parameters`, `bytes`, `dtypes`, `tensors` (`name`, `shape`, `norm`) and
        `norms` (mean norms by depth, see `norms_by_depth`).

    Raises:
        OSError: there is no such adapter.
        ValueError: its weights are damaged.
    """
    config: Any = adapter_config(adapter, subfolder)
    path = weights_file(adapter, subfolder)
    try:
        with safe_open(path, "pt") as file:
            tensors = {_short(name): file.get_tensor(name) for name in sorted(file.keys())}
    except SafetensorError as error:
        raise ValueError(f"The weights {str(path)!r} are damaged: {first_line(error)}.") from error
    recorded = config.auto_mapping or {}
    row = find_row(config, has_head(config))
    labels = getattr(config, "id2label", None)
    names = getattr(config, "class_names", None) or recorded.get("class_names") or list((labels or {}).values())
    if not names and (saved := results_of(adapter, config, subfolder)) is not None:
        names = next(iter(saved["classes"].values()))
    return {
        "method": row.name if row else None,
        "title": row.title if row else f"PEFT's {config.peft_type.value}",
        "learns": row.learns if row else None,
        "paper": row.paper.citation if row else None,
        "peft_type": config.peft_type.value,
        "base_model": config.base_model_name_or_path,
        "base_class": recorded.get("base_model_class"),
        "revision": config.revision,
        "tokenizer": getattr(config, "tokenizer_name_or_path", None),
        "classes": list(names) or None,
        "options": _options(config),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "bytes": path.stat().st_size,
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}),
        "tensors": [
            {"name": name, "shape": list(tensor.shape), "norm": float(tensor.double().norm())}
            for name, tensor in tensors.items()
        ],
        "norms": norms_by_depth(tensors, getattr(config, "class_specific", False)),
    }


def weights_file(adapter: str | Path, subfolder: str | None = None) -> Path:
    """Return the file of an adapter's weights, downloaded from the Hub where the adapter is there.

    Raises:
        OSError: there is none.
    """
    folder = Path(adapter, subfolder or "")
    if not Path(adapter).is_dir():
        place, revision = split_revision(str(adapter))
        return Path(hf_hub_download(place, SAFETENSORS_WEIGHTS_NAME, subfolder=subfolder, revision=revision))
    complete_adapter(folder)
    path = folder / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file():
        raise OSError(
            f"Expected {SAFETENSORS_WEIGHTS_NAME} beside {CONFIG_NAME} in {str(folder)!r}. Received none. Load the adapter "
            "and save it again."
        )
    return path


def norms_by_depth(tensors: Mapping[str, Tensor], by_class: bool = False) -> list[dict]:
    """Return how large what was learned is, layer by layer.

    Of prompts, the mean norm of the vectors of each layer; of what lies in the base model's layers, the norm of all of a
    layer's numbers; of anything else nothing.

    Args:
        tensors: by name.
        by_class: the first dimension of contexts counts classes, not layers; their mean is one number then.

    Returns:
        `{"what", "norms"}`; of what lies in layers also `layers`, their numbers.
    """
    found: list[dict] = []
    squares: dict[str, dict[int, float]] = {}
    for name, tensor in tensors.items():
        if re.search(r"(^|\.)tokens(_\d+)?$", name) and tensor.ndim == 3 and tensor.is_floating_point():
            norms = tensor.double().norm(dim=-1)
            per_layer = norms.mean().unsqueeze(0) if by_class else norms.mean(-1)
            found.append({"what": name, "norms": per_layer.tolist()})
        elif (layer := _LAYER.search(name)) and tensor.is_floating_point():
            sums = squares.setdefault(name.partition(".")[0], {})
            sums[int(layer[1])] = sums.get(int(layer[1]), 0.0) + float(tensor.double().square().sum())
    for tower, sums in squares.items():
        layers = sorted(sums)
        found.append({"what": f"layers of {tower}", "layers": layers, "norms": [sums[each] ** 0.5 for each in layers]})
    return found


@torch.no_grad()
def nearest_words(model: Any, limit: int = NEAREST) -> list[dict] | str:
    """Return the vocabulary's words that are nearest to each learned token of the context (CoOp, section 4.3).

    Args:
        model: a PEFT model.
        limit: words for each token.

    Returns:
        `{"token", "words": [{"word", "distance"}]}` with Euclidean distances, of the first `MOST_TOKENS` tokens; or why it does
        not apply.
    """
    text = next((each for each in model.modules() if isinstance(each, PromptedTextEncoder)), None)
    prompts: Any = None if text is None else text.prompts_of(model.active_adapter)
    if text is None or prompts is None:
        return "Nothing is learned among the words of the text."
    words: Any = view(text.base_layer)
    table = words.token_embedding.weight.float()
    learned: Any = (
        getattr(prompts, "name_tokens", None) if getattr(prompts, "tokens", None) is None else prompts.tokens
    )
    if learned is None or learned.shape[-1] != table.shape[1] or not prompts.among_words:
        return "The learned tokens are not among the words: they come in at a later layer, or from another space."
    first = learned if learned.ndim == 2 else learned[0]
    try:
        tokenizer = model.class_name_classifier.adapted.tokenizers.find(
            model.active_peft_config.tokenizer_name_or_path
        )
    except TokenizerNotFoundError as error:
        return first_line(error) + "."
    distances = torch.cdist(first[:MOST_TOKENS].float(), table)
    distances[:, [place for place in tokenizer.all_special_ids if place < len(table)]] = float("inf")
    near = distances.topk(min(limit, len(table)), largest=False)
    return [
        {
            "token": place + 1,
            "words": [
                {"word": _word(tokenizer, int(word)), "distance": float(distance)}
                for distance, word in zip(values, ids, strict=True)
            ],
        }
        for place, (values, ids) in enumerate(zip(near.values, near.indices, strict=True))
    ]


def _word(tokenizer: Any, token_id: int) -> str:
    """Return a token as a person reads it; one of bytes that are no letter as the vocabulary has it."""
    word = tokenizer.decode([token_id]).strip()
    return word if word.isprintable() and word and "\ufffd" not in word else tokenizer.convert_ids_to_tokens(token_id)


@torch.no_grad()
def similar_classes(model: PeftModel, pixel_values: Tensor | None = None, limit: int = MOST_PAIRS) -> list[dict] | str:
    """Return the pairs of classes that are most alike to the model, which it will confuse first.

    Args:
        model: a PEFT model.
        pixel_values: one image, for a method whose class features depend on it.
        limit: pairs at most.

    Returns:
        `{"classes": [one, other], "cosine"}`, the most similar first; or why it does not apply.
    """
    model.eval()
    base: Any = model.get_base_model()
    if text_classifier(model) is not None:
        names = list(model.class_names or ())
        if len(names) < 2:
            return "The adapter names no classes."
        try:
            features = model.encode_classes(pixel_values)
        except ValueError as error:
            return str(error)
        if pixel_values is not None and features.shape[0] == 1 != len(names):
            features = features[0]
        pairs = features.unsqueeze(1) if features.ndim == 2 else features  # [c, k, e]
        cosines = torch.einsum("ike,jke->ij", pairs, pairs) / pairs.shape[1]
    else:
        head = base.get_submodule(HEADS[class_name(base)]) if class_name(base) in HEADS else None
        weight = (
            next((p for p in reversed(list(head.parameters())) if p.ndim == 2), None) if head is not None else None
        )
        if weight is None or weight.shape[0] != base.config.num_labels or weight.shape[0] < 2:
            return "The model has no weights for each class."
        names = list(base.config.id2label.values())
        rows = F.normalize(weight.float(), dim=-1)
        cosines = rows @ rows.T
    cosines = cosines.where(torch.ones_like(cosines, dtype=torch.bool).tril(-1), -torch.inf)  # each pair once
    found = cosines.flatten().topk(min(limit, len(names) * (len(names) - 1) // 2))
    return [
        {"classes": [names[place % len(names)], names[place // len(names)]], "cosine": cosine}
        for cosine, place in zip(found.values.tolist(), found.indices.tolist(), strict=True)
    ]


def _short(name: str) -> str:
    return name.removeprefix("base_model.model.")


def _options(config: Any) -> dict:
    """Return the fields of a config that are not the defaults and are the method's own."""
    plain = set(PeftConfig.__dataclass_fields__) | {"class_names", "class_names_digest", "id2label", "label2id"}
    plain |= {"tokenizer_name_or_path", "class_descriptions", "num_labels", "inference_mode"}
    own = {field.name: field for field in fields(config) if field.name not in plain}
    given = {name: getattr(config, name) for name, field in own.items() if getattr(config, name) != _default(field)}
    kinds = (bool, int, float, str, list, tuple, set, type(None))
    return {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in given.items()
        if isinstance(value, kinds)
    }


def _default(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def inspect_with_model(
    adapter: str | Path,
    model_name_or_path: str | None = None,
    *,
    subfolder: str | None = None,
    image: str | Path | None = None,
    picture: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    must: bool = False,
) -> dict:
    """Return what an adapter is on its base model.

    Args:
        adapter: folder or Hub id.
        model_name_or_path: base model; default: the one that the adapter names.
        subfolder: of an adapter that is not in the first place.
        image: file of an image, for class features that depend on images and for the attention over it.
        picture: PNG file for the attention of the visual prompts over the image.
        device: where to compute.
        precision: what frozen weights are held in, see `utils.precision.find_precision`.
        must: raise what goes wrong with the base model.

    Returns:
        `words` and `similar`, see `nearest_words` and `similar_classes`; or `base_model_error` where the base model cannot be
        loaded.

    Raises:
        UnsupportedModelError: there is an image, and the adapter has no visual prompts whose attention could be shown.
    """
    try:
        place = find_device(device)
        held = find_precision(precision, place)
        saved = SavedAdapter.find(adapter, subfolder)
        bundle = saved.load(model_name_or_path, device=place, precision=held)
    except (OSError, ValueError) as error:
        if must or image is not None:
            raise
        return {"base_model_error": first_line(error) + "."}
    model = bundle.model
    pixels = None
    if image is not None:
        processor: Any = bundle.image_processor
        opened = read_rgb(image, saved.background)
        pixels = processor(images=opened, return_tensors="pt")["pixel_values"].to(device_of(model))
        if picture is not None:
            plot_attention(attention_maps(model, pixels), picture)
    return {"words": nearest_words(model), "similar": similar_classes(model, pixels)}
