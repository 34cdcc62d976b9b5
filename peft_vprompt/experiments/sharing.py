"""Sharing a trained adapter on the Hub: name and log-in are checked before the work, and it is done from the adapter's folder."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.utils import validate_repo_id
from peft import PeftModel

from ..errors import CannotPublishError
from ..peft_models.adapter_files import CARD
from ..peft_models.card_details import CardDetails
from ..peft_models.model_card import render_model_card
from ..peft_models.publishing import hub_id, publish_configs
from ..peft_models.safe_saving import SavedPeftModel
from ..utils.validation import first_line
from .cards import card_details
from .identity import RESULTS
from .trained import SavedAdapter


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
    saved = SavedAdapter.find(adapter)
    model: Any = saved.load(model_name_or_path).model
    card = Path(adapter, CARD)
    said: Any = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data if card.is_file() else {}
    asked = {"language": language or said.get("language"), "license": license or said.get("license")}
    try:
        details = replace(card_details(saved.run) if saved.run else CardDetails(), **asked)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"Expected results as `vprompt train` writes them in {str(Path(adapter, RESULTS))!r}. Received some without "
            f"{first_line(error)}. Move the file away to publish the adapter without its results."
        ) from error
    try:
        if not isinstance(model, SavedPeftModel):
            return _publish_plain(model, repo_id, private, details)
        model.card_details = details
        return model.push_to_hub(repo_id, private=private, card=card).commit_url
    except Exception as error:
        raise CannotPublishError(
            f"The adapter in {str(adapter)!r} is whole and stays; publishing it to {repo_id!r} failed: {_reason(error)}. "
            f"Publish it again with `{shlex.join(['vprompt', 'push', str(adapter), repo_id])}`."
        ) from error


def _publish_plain(model: PeftModel, repo_id: str, private: bool | None, details: CardDetails) -> str:
    """Upload an adapter of PEFT's own model class, whose way would leave local paths in; return the commit's address."""
    repo_id = HfApi().create_repo(repo_id, private=private, exist_ok=True).repo_id
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        publish_configs(folder)
        Path(folder, CARD).write_text(render_model_card(model, True, details, repo_id=repo_id), encoding="utf-8")
        said: Any = ModelCard.load(Path(folder, CARD))
        said.data.base_model = hub_id(model.get_base_model().name_or_path)
        said.save(Path(folder, CARD))
        return HfApi().upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload adapter").commit_url


def _reason(error: Exception) -> str:
    """Return the first line that says something, of an error of the Hub's client."""
    return first_line(error).rstrip(".:") or type(error).__name__
