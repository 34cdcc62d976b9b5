"""A report as a document of sections, tables and pictures: written as markdown, and as one page of HTML that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...utils.io import atomic_path
from ...version import __version__
from ..pages import write_html


@dataclass(frozen=True)
class Table:
    """Rows of text below headings.

    Attributes:
        columns: headings; the first column is of names, the others of numbers unless they are in `texts`.
        rows: cells, as many in each as there are headings.
        title: above the table.
        texts: headings of columns that hold text.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Picture:
    """A file of a plot.

    Attributes:
        path: PNG file.
        caption: what it shows.
    """

    path: Path
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of a report: sentences, then tables, then pictures."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        title: of the whole.
        text: sentences below it.
        sections: in their order.
    """

    title: str
    text: Sequence[str] = ()
    sections: Sequence[Section] = field(default_factory=list)


def write_markdown(document: Document, path: str | Path) -> None:
    """Write a document as markdown, with links to its pictures.

    Raises:
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    folder = Path(path).parent
    parts = [f"# {_escaped(document.title)}", *map(_escaped, document.text)]
    for section in document.sections:
        parts += [f"## {_escaped(section.title)}", *map(_escaped, section.text)]
        for table in section.tables:
            parts += [f"**{_escaped(table.title)}**"] if table.title else []
            parts.append(_markdown_table(table))
        for picture in section.pictures:
            place = (
                picture.path.relative_to(folder).as_posix() if picture.path.is_relative_to(folder) else picture.path
            )
            parts.append(f"![{_escaped(picture.caption)}]({place})")
    with atomic_path(path) as partial:
        partial.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def write_page(document: Document, path: str | Path) -> None:
    """Write a document as one page of HTML, with its pictures inside.

    Raises:
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    pictures = {
        picture.path: base64.b64encode(picture.path.read_bytes()).decode("ascii")
        for section in document.sections
        for picture in section.pictures
    }
    write_html("bench.html.jinja", path, document=document, pictures=pictures, version=__version__)


def _markdown_table(table: Table) -> str:
    marks = ["---", *("---" if column in table.texts else "--:" for column in table.columns[1:])]
    rows = [table.columns, marks, *table.rows]
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in rows)


def _escaped(text: str) -> str:
    """Return text in which nothing is markdown: names of classes and tasks are anybody's."""
    for sign in ("\\", "|", "*", "_", "<", "`", "["):
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
