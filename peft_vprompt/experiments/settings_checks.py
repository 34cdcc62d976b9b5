"""Settings that contradict each other, refused before anything is read or built."""

from ..losses.classification import LOSSES
from ..tuners.base.registry import get_method
from ..tuners.base.spec import MethodSpec
from ..tuners.coop import ContextOptConfig
from ..utils.validation import require_int
from .settings import RECIPE_CHANGES, Settings, loss_of
from .teacher import check_teacher


def check_settings(settings: Settings) -> None:
    """Refuse settings that contradict each other, before anything is read or built.

    Raises:
        ValueError: an unknown method or loss, or a method that cannot do what the settings ask for.
    """
    method = get_method(settings.method)
    if settings.base_novel and not method.new_classes:
        raise ValueError(
            f"{method.title} learns its classes one by one and has nothing for novel ones: use all classes."
        )
    needs_clip = {
        "cached features": settings.cache_features,
        "training without labels": not settings.supervision.uses_labels,
        "confusion noise": settings.supervision.noise == "confusion",
    }
    if method.is_baseline and (asked := [what for what, wanted in needs_clip.items() if wanted]):
        raise ValueError(
            f"{method.title} trains an image classifier, and {' and '.join(asked)} take a CLIP. Use a method that "
            "learns prompts or a head of class features on one, such as coop or classifier-c."
        )
    if settings.base_novel and not settings.supervision.uses_labels:
        raise ValueError("Without labels nobody knows which images are of the base classes: use all classes.")
    if settings.loss_options and settings.loss is None:
        raise ValueError(
            f"Parameters of a loss need a loss. Received: {settings.loss_options} and no loss. Name one of: "
            f"{', '.join(LOSSES)}."
        )
    loss_of(settings)
    require_int("ensemble", settings.ensemble, 1)
    if settings.ensemble > 1 and not (method.trains and method.config_class is ContextOptConfig):
        raise ValueError(
            f"An ensemble is of contexts that all classes share, as CoOp learns them. Received: {method.title}."
        )
    _check_training(settings, method)
    if (
        settings.views not in (None, 1)
        and not settings.cache_features
        and method.support is None
        and settings.teacher is None
    ):
        raise ValueError(
            f"Several views are kept with `cache_features` or for a teacher only. Received: views={settings.views}."
        )
    check_teacher(settings)


def _check_training(settings: Settings, method: MethodSpec) -> None:
    """Refuse to train what is not trained: for a cache, the method says whether its keys are.

    Raises:
        ValueError: names the settings.
    """
    if method.support is None:
        return
    if "train_keys" in settings.config:
        raise ValueError(
            f"Expected the method to say whether keys are trained. Received: {method.name} with "
            f"train_keys={settings.config['train_keys']}. Leave it out, and use tip-adapter-f, or tip-adapter for no training."
        )
    given = [name for name in (*RECIPE_CHANGES, "loss") if getattr(settings, name) is not None]
    if method.recipe is None and given:
        raise ValueError(
            f"{method.title} trains nothing. Received: {', '.join(given)}. Leave them out, or use tip-adapter-f, which trains."
        )
