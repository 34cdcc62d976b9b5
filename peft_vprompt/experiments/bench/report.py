"""`report.md`, `report.html` and `summary.json` of a bench: all that its cells say, from what lies in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...utils.io import write_json
from ...utils.locks import only_writer
from ..reports import WORSE
from .document import Document, Picture, Section, write_markdown, write_page
from .plots import draw
from .results import BenchResults
from .summary import summarise
from .tables import MEAN_OF_EACH, OF_AVERAGES, accuracy_tables, cost_table, difference_table


#: What a report writes, beside the pictures in `PICTURES`.
MARKDOWN, PAGE, SUMMARY, PICTURES = "report.md", "report.html", "summary.json", "plots"

#: What the numbers are.
_READING = (
    "Accuracy in percent over all test images alike, mean ± standard deviation over seeds; the test images stay the same. "
    f"Chance is guessing; {WORSE} marks what is below zero-shot."
)
_HARMONIC = (
    f"{OF_AVERAGES} is the harmonic mean of the average base and the average novel accuracy, as most papers' tables have it; "
    f"{MEAN_OF_EACH} is the average of the harmonic means of each task and seed."
)
_INTERVALS = (
    "Difference in points, and the interval that holds 95 % of 2,000 paired bootstrap resamples over images and seeds: both "
    "methods are looked at on the same images and the same draws. One seed says nothing about other draws."
)
_COSTS = (
    "Medians over tasks and seeds. Memory is that of the whole process at its most, model and images included. Image features "
    "that cells share are computed once, in the testing or the training of the cell that needs them first."
)
_PUBLISHED = (
    "Published: what the paper's table says of CLIP ViT-B/16 in this setting, in the order of the columns, the harmonic mean "
    "last; shown where base model, protocol, shots, config and recipe are the same."
)


def write_report(folder: str | Path, against: str | None = None) -> dict:
    """Write what the cells in the folder of a bench say.

    Args:
        folder: of the bench.
        against: the method that others are compared with, beside zero-shot, as it was asked for; default: the first one.

    Returns:
        What `summary.json` holds.

    Raises:
        FileNotFoundError: there is no cell in the folder.
        ValueError: `against` was not run.
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    folder = Path(folder)
    summary = summarise(BenchResults.read(folder), against)
    with only_writer(folder, wait=True):  # workers of one grid end together
        pictures = {part["protocol"]: draw(part, folder / PICTURES) for part in summary["protocols"]}
        sections = [each for part in summary["protocols"] for each in _sections(part, pictures[part["protocol"]])]
        document = Document("Bench", _machines(summary), sections)
        write_json(summary, folder / SUMMARY)
        write_markdown(document, folder / MARKDOWN)
        write_page(document, folder / PAGE)
    return summary


def _sections(part: Mapping, pictures: list[Picture]) -> list[Section]:
    """Return the sections of a protocol."""
    title = part["title"]
    text = [part["about"], _READING]
    text += [_HARMONIC] if any("hm" in row for row in part["rows"]) else []
    text += [_PUBLISHED] if any(row["published"] for row in part["rows"]) else []
    sections = [Section(title, [*text, *part["notes"]], accuracy_tables(part), pictures)]
    if (differences := difference_table(part)) is not None:
        sections.append(Section(f"{title}: differences", [_INTERVALS], [differences]))
    said = "Mean of the accuracies of the classes, in percent: a class counts the same however many images it has."
    sections.append(Section(f"{title}: mean per-class accuracy", [said], accuracy_tables(part, "per_class")))
    if (costs := cost_table(part)) is not None:
        sections.append(Section(f"{title}: sizes, times and memory", [_COSTS], [costs]))
    return sections


def _machines(summary: Mapping) -> list[str]:
    """Return a line for each machine and set of versions that cells were run with."""
    lines = []
    for each in summary["environments"]:
        machine, versions = each["machine"], each["versions"]
        cards = ", ".join(machine["gpus"])
        where = f"{cards} beside {machine['cpu']}" if cards else machine["cpu"]
        names = [f"{name} {versions[name]}" for name in ("peft", "transformers", "torch") if versions.get(name)]
        lines.append(f"Run on {where}, {machine['torch_threads']} threads, with {', '.join(names)}.")
    return lines
