"""The protocols by which papers of the field compare methods, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """How a method is trained and tested.

    Attributes:
        name: on the command line.
        title: in reports.
        about: what is trained on what and tested on what, in a sentence or two.
        shots: training images per class of the papers.
        base_novel: train on the first half of the classes, and test on both halves.
        transfers: train on one source, and test on its test images and on those of other tasks, the targets.
        new_classes: whether the classes of the targets are others than the source's.
    """

    name: str
    title: str
    about: str
    shots: tuple[int, ...] = (16,)
    base_novel: bool = False
    transfers: bool = False
    new_classes: bool = False


_ALL = (
    Protocol(
        "base-to-novel",
        "Base-to-novel generalisation",
        "Trained on the first half of the classes (rounded up); tested on these, and on the other half, each among its own.",
        base_novel=True,
    ),
    Protocol(
        "few-shot",
        "Few-shot learning",
        "Trained on few images of every class, tested among all classes.",
        shots=(1, 2, 4, 8, 16),
    ),
    Protocol(
        "cross-dataset",
        "Cross-data-set transfer",
        "Trained on all classes of a source; tested, as it is, on other data sets with their own class names and templates.",
        transfers=True,
        new_classes=True,
    ),
    Protocol(
        "domain-generalization",
        "Domain generalisation",
        "Trained on all classes of a source; tested, as it is, on images of the same classes, or of some, from other domains.",
        transfers=True,
    ),
)

#: Every protocol by its name.
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _ALL}


def find_protocol(name: str) -> Protocol:
    """Return the protocol of that name.

    Raises:
        ValueError: there is none; lists the names.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"Expected a protocol: {', '.join(PROTOCOLS)}. Received: {name!r}.")
    return PROTOCOLS[name]
