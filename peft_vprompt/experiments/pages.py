"""Pages of HTML from the templates that lie here: each needs no other file and no network."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import jinja2

from ..utils.io import atomic_path


def write_html(template: str, path: str | Path, **values) -> None:
    """Fill a template and write the page.

    Args:
        template: name of a file of this folder; `style.css.jinja` beside it may be included.
        path: the page.
        **values: what the template shows; text in it is text, whoever wrote it.

    Raises:
        CannotWriteError: the disk is full, or the folder is not to be written.
    """
    loader = jinja2.FunctionLoader(_read)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template(template).render(**values)
    with atomic_path(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _read(name: str) -> str:
    # pyrefly: ignore[bad-argument-type]  # set, as this is no script
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
