"""BERTs and RoBERTas in open_clip's files, as transformers has them: text towers of BiomedCLIP, LAION's multilingual CLIPs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from ...errors import UnsupportedModelError
from ...utils.validation import shorten
from .files import CONFIG_FILE


#: What open_clip takes for what its configuration does not say.
DEFAULTS = {"hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"}
#: Model types of transformers that a text tower may be -> what open_clip pools by where its configuration says null.
POOLERS = {"bert": "cls_last_hidden_state_pooler", "roberta": "mean_pooler", "xlm-roberta": "mean_pooler"}
#: What open_clip pools by -> whether the model's own pooler takes part, and whether tokens are averaged.
POOLING = {
    "cls_pooler": (True, False),
    "cls_last_hidden_state_pooler": (False, False),
    "mean_pooler": (False, True),
}
#: What `text_cfg` may say beside `hf_` names: what these towers do not depend on.
BESIDE = (
    "context_length",
    "tokenizer_kwargs",
    "bos_id",
    "eos_id",
    "pad_id",
    "output_tokens",
    "vocab_size",
    "embed_cls",
)
KNOWN = ("hf_model_name", "hf_tokenizer_name", "hf_pooler_type", "hf_proj_type", "hf_model_pretrained")

PREFIX = "text.transformer."


def hf_text(
    said: Mapping[str, Any], embed_dim: int, state: Mapping[str, Tensor]
) -> tuple[PreTrainedModel, nn.Module, set[str]]:
    """Make the text encoder and its projection of the tensors that open_clip's `HFTextEncoder` has.

    Args:
        said: what `open_clip_config.json` says as `text_cfg`. The configuration of `hf_model_name` is read from the Hub, its
            cache or a folder; weights are not.
        embed_dim: size of the joint space.
        state: the tensors, by open_clip's names.

    Returns:
        Encoder, projection, and the names of the tensors that were read.

    Raises:
        UnsupportedModelError: another kind of encoder or of pooling, a configuration that cannot be read, or tensors that do
            not fit.
    """
    name = said["hf_model_name"]
    if unknown := [key for key in said if key not in (*KNOWN, *BESIDE)]:
        raise UnsupportedModelError(
            f"Expected a BERT as transformers has it. {CONFIG_FILE} says {', '.join(f'text_cfg.{k}={said[k]!r}' for k in unknown)}. "
            "Use a checkpoint whose text tower is CLIP's or a plain BERT."
        )
    try:
        config: Any = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(
            f"Expected the configuration of the text encoder {name!r}, which is not in the file. Let it be downloaded once, or "
            f"write the path of a folder with its config.json as text_cfg.hf_model_name into {CONFIG_FILE}."
        ) from error
    kind = config.model_type
    pooler = said.get("hf_pooler_type", DEFAULTS["hf_pooler_type"]) or POOLERS.get(kind, "")
    if kind not in POOLERS or pooler not in POOLING:
        raise UnsupportedModelError(
            f"Expected a text encoder of {', '.join(POOLERS)}, pooled by {', '.join(POOLING)}. Received: {name!r}, of {kind}, pooled "
            f"by {pooler or 'another way'}. Use a checkpoint whose text tower is one of those or CLIP's."
        )
    own_pooler, mean = POOLING[pooler]
    encoder = AutoModel.from_config(config, add_pooling_layer=own_pooler)
    if mean:
        encoder.config.text_pooling = "mean"
    projection = _projection(said.get("hf_proj_type", DEFAULTS["hf_proj_type"]), config.hidden_size, embed_dim, name)
    taken = _load(encoder, PREFIX, state) | _load(projection, "text.proj.", state)
    return encoder, projection, taken


def _projection(kind: str | None, width: int, embed_dim: int, name: str) -> nn.Module:
    """Return open_clip's projection of a kind."""
    if kind is None and width == embed_dim:
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(width, embed_dim, bias=False)
    if kind == "mlp":
        hidden = (width + embed_dim) // 2
        return nn.Sequential(nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, embed_dim, bias=False))
    raise UnsupportedModelError(
        f"Expected text_cfg.hf_proj_type 'linear' or 'mlp' from the {width} numbers of {name!r} to {embed_dim}. Received: {kind!r}. "
        "Use a checkpoint with one of those."
    )


def _load(module: nn.Module, prefix: str, state: Mapping[str, Tensor]) -> set[str]:
    """Load a module's tensors, and return their names in the file; those of indices mean nothing.

    Raises:
        UnsupportedModelError: some are missing or have another shape.
    """
    names = {name.removeprefix(prefix): name for name in state if name.startswith(prefix)}
    own = module.state_dict()
    wrong = [name for name in own if name not in names or state[names[name]].shape != own[name].shape]
    if wrong := [name for name in wrong if own[name].is_floating_point()]:
        raise UnsupportedModelError(
            f"Expected the tensors of a {type(module).__name__} in {prefix}*. Missing, or of another shape: {shorten(wrong, 4)}. "
            f"Compare text_cfg.hf_model_name in {CONFIG_FILE} with the checkpoint."
        )
    module.load_state_dict(
        {name: state[names[name]].float() for name in own if own[name].is_floating_point()}, strict=False
    )
    return {file for name, file in names.items() if name in own or name.endswith(("position_ids", "token_type_ids"))}
