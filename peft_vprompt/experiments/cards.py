"""What `results.json` of a run tells the card of its adapter."""

from __future__ import annotations

from collections.abc import Mapping

from ..data.readers import is_local
from ..peft_models.card_details import CardDetails, Score
from ..peft_models.publishing import hub_id
from .reports import MEANINGS
from .several_labels import metric_of


#: What the embedded task is called.
EMBEDDED_TASK = "the embedded task of peft_vprompt"

#: Packages of `environment` whose versions a card names; PEFT names its own.
_PACKAGES = ("peft-vprompt", "transformers", "torch")


def card_details(report: Mapping, *, language: str | None = None, license: str | None = None) -> CardDetails:
    """Return what the card of an adapter says of its run. No path of this machine is in it.

    Args:
        report: what `results.json` holds, see `run_report.report_of`.
        language: of the class names, such as "en"; None where nobody said.
        license: of the adapter, such as "mit"; None where nobody said.
    """
    zero_shot, chance = report.get("zero_shot") or {}, report.get("chance") or {}
    scores = [
        Score(name, MEANINGS.get(name, name), value, zero_shot.get(name), chance.get(name))
        for name, value in (report.get("accuracy") or {}).items()
    ]
    data = report.get("data")
    name, data_set = _data_name(data)
    versions = (report.get("environment") or {}).get("versions") or {}
    return CardDetails(
        data=name,
        data_set=data_set,
        split=data["test_split"] if data_set and scores and data else None,
        metric=metric_of(report),
        scores=tuple(scores),
        training=_training(report),
        versions={package: versions[package] for package in _PACKAGES if versions.get(package)},
        language=language,
        license=license,
    )


def _data_name(data: Mapping | None) -> tuple[str | None, str | None]:
    """Return what the images are called, and their id on the Hub if they have one."""
    if data is None:
        return EMBEDDED_TASK, None
    if not is_local(data["path"]) and "://" not in data["path"]:
        return data["path"], data["path"]
    return data.get("benchmark"), None


def _training(report: Mapping) -> dict[str, str]:
    """Return how a run was trained, as a person says it, by what it is about."""
    settings, recipe = report["settings"], report.get("recipe")
    said = {"Images": _images(report), "Classes": _classes(report)}
    if recipe:
        length = f"{recipe['epochs']} epochs, " if recipe.get("epochs") else ""
        said["Recipe"] = (
            f"{recipe['optimizer'].upper()}, learning rate {recipe['learning_rate']:g}, weight decay "
            f"{recipe['weight_decay']:g}, batches of {recipe['batch_size']}, {length}{report['steps']} steps, "
            f"{recipe['schedule'].replace('_', ' ')}"
        )
        said["Augmentation"] = recipe["crop"].replace("_", " ")
    if settings.get("loss"):
        said["Loss"] = settings["loss"]
    if config := _config(settings.get("config") or {}):
        said["Method's options"] = config
    said["Precision"] = settings.get("precision", "float32")
    said["Seed"] = str(settings["seed"])
    if report.get("train_seconds") is not None:
        machine = (report.get("environment") or {}).get("machine") or {}
        place = next(iter(machine.get("gpus") or ()), machine.get("cpu"))
        said["Time"] = f"{report['train_seconds']:.0f} s" + (f" on {place}" if place else "")
    if report.get("model_commit"):
        said["Commit of the base model"] = report["model_commit"]
    return said


def _images(report: Mapping) -> str:
    settings = report["settings"]
    supervision = settings.get("supervision") or {}
    shots = f"{settings['shots']} of each class" if settings.get("shots") else "all of the training split"
    if supervision.get("pseudo_labels"):
        labelled = (report.get("pseudo_labels") or {}).get("images", "those")
        return f"{labelled} that zero-shot chose, without labels, by those that it gives"
    if settings.get("teacher"):
        return f"{shots}, without labels, by a teacher's predictions"
    if supervision.get("unlabelled"):
        return f"{shots}, without labels, by those that zero-shot gives"
    if supervision.get("noise"):
        return f"{shots}, with {supervision['noise']} noise in {100 * supervision['noise_rate']:g} % of the labels"
    return shots


def _classes(report: Mapping) -> str:
    names = report["classes"]
    if "novel" in names:
        return f"{len(names['base'])}, and {len(names['novel'])} that were kept back to test on"
    return str(len(next(iter(names.values()))))


def _config(config: Mapping) -> str:
    """Return the options that were changed; a tokenizer of a folder of this machine is not named."""
    plain = {name: value for name, value in config.items() if isinstance(value, (bool, int, float, str))}
    if "tokenizer_name_or_path" in plain and hub_id(str(plain["tokenizer_name_or_path"])) is None:
        del plain["tokenizer_name_or_path"]
    return ", ".join(f"{name}={value}" for name, value in plain.items())
