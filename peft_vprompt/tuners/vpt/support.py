"""Which visual prompts fit which image encoder, and why others do not."""

from __future__ import annotations

from ...backbones.vision import VisionView
from ...errors import UnsupportedModelError
from .config import PIXEL_LOCATIONS, STRIP_LOCATIONS, VisualPromptConfig


def check_tower(config: VisualPromptConfig, view: VisionView) -> None:
    """Refuse what cannot be put on `view`.

    Raises:
        ValueError: layers that are not there.
        UnsupportedModelError: a location, a pooling or read-only prompts that this encoder has no place for.
    """
    model_name = type(view.module).__name__
    if view.no_layers:
        check_opaque(config, view, model_name)
        return
    check_layers(config, view.num_layers)
    if config.location in PIXEL_LOCATIONS and view.patch_embedding is None:
        raise UnsupportedModelError(
            f"Prompts at location={config.location!r} are pixels, and {model_name} does not embed its patches by one "
            "convolution with position embeddings after it. Use location='prepend'."
        )
    if config.read_only and view.no_read_only:
        raise UnsupportedModelError(
            f"{model_name} takes no read-only prompts: {view.no_read_only}. Use read_only=False."
        )
    if view.num_tokens is None:
        check_ragged(config, model_name)
    if len(view.stages) > 1:
        check_stages(config, model_name)


def check_opaque(config: VisualPromptConfig, view: VisionView, model_name: str) -> None:
    """Refuse what an encoder without known layers has no place for; tokens were refused before.

    Raises:
        UnsupportedModelError: a pooling of rows, or pixels where the encoder does not say what images it takes.
    """
    if config.pooling != "original":
        raise UnsupportedModelError(
            f"{model_name} shows no rows to pool: it {view.no_layers}. Received: pooling={config.pooling!r}. Use "
            "pooling='original'."
        )
    if view.image_size is None:
        raise UnsupportedModelError(
            f"Prompts at location={config.location!r} fit images of one size, and the config of {model_name} names none. Set "
            "image_size, in pixels, in the config of the image encoder."
        )
    if config.location == "below" and view.patch_embedding is None:
        raise UnsupportedModelError(
            f"Prompts at location='below' enter by the one convolution that reads the image, and {model_name} has none. Use "
            "location='pad'."
        )


def check_layers(config: VisualPromptConfig, num_layers: int) -> None:
    """Refuse prompted layers that are not there.

    Raises:
        ValueError: names the fields and the number of layers.
    """
    last = config.first_layer + config.depth(num_layers)
    if config.first_layer >= num_layers or last > num_layers:
        raise ValueError(
            f"Expected first_layer + num_deep_layers <= {num_layers}, the layers of the vision tower. "
            f"Received: first_layer={config.first_layer}, num_deep_layers={config.num_deep_layers}."
        )


def check_ragged(config: VisualPromptConfig, model_name: str) -> None:
    """Refuse what needs the same number of tokens in every image.

    Raises:
        UnsupportedModelError: says which values work.
    """
    if config.location == "add" or config.pooling in ("img_pool", "imgprompt_pool"):
        raise UnsupportedModelError(
            f"{model_name} takes images of different numbers of tokens, padded: there is no prompt for each of them, and "
            "no plain mean over them. Use location='prepend' or 'add-1', and pooling='original' or 'prompt_pool'."
        )


def check_stages(config: VisualPromptConfig, model_name: str) -> None:
    """Refuse what has no meaning where tokens are a grid that narrows and widens from stage to stage.

    Raises:
        UnsupportedModelError: names the field, the reason and the remedy.
    """
    one_width = "its width grows from stage to stage, and this takes prompts of one width"
    reasons = {"projection_dim": one_width, "deep_shared": one_width}
    if config.location in STRIP_LOCATIONS:
        reasons["location"] = "its tokens stay a grid, to which a strip of patches cannot be added"
    elif config.location != "prepend":
        reasons |= {"deep": one_width, "first_layer": one_width}
    for name, reason in reasons.items():
        if value := getattr(config, name):
            place = "" if name == "location" else f" with location={config.location!r}"
            remedy = "location='prepend'" if name == "location" else "the prompts without it"
            raise UnsupportedModelError(f"{model_name} cannot take {name}={value!r}{place}: {reason}. Use {remedy}.")
