"""Sharing a trained adapter on the Hub: asked before the work whether it may be done, and done from the adapter's folder."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.utils import validate_repo_id

from ..errors import CannotPublishError
from ..peft_models.adapter_files import CARD
from ..peft_models.card_details import CardDetails
from ..utils.validation import first_line
from .cards import card_details
from .identity import RESULTS
from .models import ModelBundle, load_adapter
from .results import read_results


def check_hub(repo_id: str) -> None:
    """Refuse what could not be published after the work: a name that is none, no connection, no token.

    Raises:
        ValueError: the name is none that the Hub takes.
        CannotPublishError: the Hub does not know who asks, or cannot be reached.
    """
    validate_repo_id(repo_id)
    try:
        HfApi().whoami()
    except Exception as error:
        raise CannotPublishError(
            f"Cannot publish to {repo_id!r}: {_reason(error)}. Nothing was done. Log in with `hf auth login`, or set HF_TOKEN "
            "to a token that may write; without a connection, train first and publish later with `vprompt push`."
        ) from error


def load_with_results(
    adapter: str | Path, model_name_or_path: str | None = None, **options
) -> tuple[ModelBundle, dict | None]:
    """Load a trained adapter with what the `results.json` beside it says, if there is one.

    Args:
        adapter: folder or Hub id.
        model_name_or_path: base model; default: the one that the adapter names, or the embedded one it was trained on.
        **options: further ones of `load_adapter`.

    Raises:
        OSError, AdapterMismatchError: as `load_adapter`.
        ValueError: the file of results is damaged.
    """
    saved = read_results(Path(adapter, RESULTS))
    embedded = saved is not None and saved["settings"]["model"] is None
    names = next(iter(saved["classes"].values())) if saved else None
    return load_adapter(adapter, model_name_or_path, names, embedded=embedded, **options), saved


def publish(
    adapter: str | Path,
    repo_id: str,
    model_name_or_path: str | None = None,
    *,
    private: bool | None = None,
    language: str | None = None,
    license: str | None = None,
) -> str:
    """Upload an adapter, its config and its card to the Hub; return the address of the commit.

    What the folder holds stays as it is, whatever happens. A card in it that somebody edited is published with its text,
    unless the repository has one already.

    Args:
        adapter: folder of the adapter.
        repo_id: repository, which is made where there is none.
        model_name_or_path: base model; default: the one that the adapter names.
        private: whether a new repository is private.
        language: of the class names, for the card; default: what the card in the folder says.
        license: likewise.

    Raises:
        ValueError: there is no such folder, or the repository's name is none.
        CannotPublishError: the upload failed.
    """
    validate_repo_id(repo_id)
    if not Path(adapter).is_dir():
        raise ValueError(f"Expected the folder of an adapter to publish. Received: {str(adapter)!r}.")
    bundle, saved = load_with_results(adapter, model_name_or_path)
    model: Any = bundle.model
    card = Path(adapter, CARD)
    said: Any = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data if card.is_file() else {}
    asked = {"language": language or said.get("language"), "license": license or said.get("license")}
    model.card_details = replace(card_details(saved) if saved else CardDetails(), **asked)
    try:
        return model.push_to_hub(repo_id, private=private, card=card).commit_url
    except Exception as error:
        raise CannotPublishError(
            f"The adapter in {str(adapter)!r} is whole and stays; publishing it to {repo_id!r} failed: {_reason(error)}. "
            f"Publish it again with `{shlex.join(['vprompt', 'push', str(adapter), repo_id])}`."
        ) from error


def _reason(error: Exception) -> str:
    """Return the first line that says something, of an error of the Hub's client."""
    return first_line(error).rstrip(".:") or type(error).__name__
