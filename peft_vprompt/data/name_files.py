"""Files of class names: lists, and mappings from folders or numbers to names, in the forms that people have."""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..utils.arguments import typed
from ..utils.io import read_json, read_text
from ..utils.validation import shorten
from .class_names import counts, is_number, repeated_names


#: Lines of a key and a name, and what stands between them: an id of WordNet, or a number.
_KEYED_LINES = (
    re.compile(r"(n\d{8})(?:\s*[,:;=]\s*|\s+-\s+|\s+)(.+)"),
    re.compile(r"(\d+)(?:\s*[,:;=]\s*|\s+-\s+|[.)]?\s+)(.+)"),
)
#: An id of WordNet, a number and a name (`n02119789 1 kit_fox`).
_TWO_KEYS = re.compile(r"(n\d{8})\s+(\d+)\s+(\S+)")
#: Endings of text that would be read as names line by line, and is no list of them.
_OTHER_FORMS = (".yaml", ".yml", ".toml", ".xml", ".html", ".py")
#: First cells of the header of a table of names.
_HEADERS = {"class", "class_id", "folder", "id", "index", "key", "label", "number", "synset", "wnid"}
#: Header of a column of names alone.
_NAME_HEADERS = {"name", "names", "class_name", "class_names", "classname", "classnames", "label_name"}


@typed
def read_class_names(path: str | Path) -> tuple[str, ...] | dict[str, str]:
    """Read class names from a file.

    A list, in label order: a text file with one name per line, a JSON list, or a JSON object {name: number} or two columns
    of names and numbers. A mapping
    from folder or number to name: a JSON object, a dict as Python prints it, or two columns separated by a tab, in a
    `.csv` by commas, or after a number or an id of WordNet by blanks (`n01440764 tench, Tinca tinca`). A mapping by both:
    JSON {"0": ["n01440764", "tench"]}, or lines of an id of WordNet, a number and a name.

    Returns:
        The names in label order, or by folder or number; by all numbers and then by all other keys where a class has both.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, no text or of another form, or says one key twice.
    """
    path = Path(path)
    if path.suffix.lower() in _OTHER_FORMS:
        raise ValueError(
            f"Expected class names in a text file with one name per line, JSON, or a .csv of two columns. Received: {path}."
        )
    text = read_text(path)
    if path.suffix == ".json":
        names = _from_json(read_json(path), path)
    elif path.suffix in (".csv", ".tsv"):
        names = _from_table(text, path)
    else:
        names = _from_lines([line.strip() for line in text.splitlines() if line.strip()], path)
    if not names:
        raise ValueError(f"{path} holds no class name.")
    return names


def _from_json(content, path: Path) -> tuple[str, ...] | dict[str, str]:
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return tuple(content)
    if isinstance(content, dict):
        content = {str(key): value for key, value in content.items()}
        values = list(content.values())
        if all(isinstance(name, str) for name in values):
            return dict(content)
        if all(isinstance(number, int) for number in values):
            return _by_number({number: name for name, number in content.items()}, len(values), path)
        pairs = all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, str) for x in pair) for pair in values
        )
        if pairs and len(values) > 1:  # a pair alone is two names
            return _by_two_keys([(key, *pair) for key, pair in content.items()], path)  # {"0": ["n01440764", "tench"]}
    raise ValueError(
        f"{path} must hold a JSON list of strings, or an object of them by folder or number. "
        f"Received: {type(content).__name__} of something else."
    )


def _read_literal(text: str, path: Path):
    """Read what JSON or Python writes for a list or a dict."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"Expected one class name per line in {path}, or a list or dict as Python or JSON writes it. Received: "
            f"{text[:40]!r}... ({type(error).__name__}). Save it as JSON."
        ) from error


def _by_two_keys(rows: Sequence[tuple[str, str, str]], path: Path) -> dict[str, str]:
    """Return a mapping in which each class has its name under a number and under another key."""
    if not all(is_number(number) for number, _, _ in rows) or any(is_number(key) for _, key, _ in rows):
        return _mapping([(key, name) for _, key, name in rows], path)
    by_number = {number: name for number, _, name in sorted(rows, key=lambda row: int(row[0]))}
    by_key = _mapping([(key, name) for _, key, name in sorted(rows, key=lambda row: int(row[0]))], path)
    return by_number | by_key


def _by_number(names: dict[int, str], count: int, path: Path) -> tuple[str, ...] | dict[str, str]:
    if len(names) < count:
        raise ValueError(f"{path} gives one number to several names. Give each class a number of its own.")
    if sorted(names) == list(range(count)):
        return tuple(names[number] for number in range(count))
    return {str(number): name for number, name in sorted(names.items())}


def _from_table(text: str, path: Path) -> tuple[str, ...] | dict[str, str]:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    first = text.lstrip().partition("\n")[0]
    if delimiter not in first and ";" in first:
        delimiter = ";"
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=delimiter)]
    except csv.Error as error:
        raise ValueError(f"Expected a table of class names in {path}. Received: {error}.") from error
    rows = [row for row in rows if any(row)]
    if all(len(row) == 1 for row in rows):
        names = tuple(row[0] for row in rows)
        return names[1:] if names and names[0].lower().replace(" ", "_") in _NAME_HEADERS else names
    if any(len(row) != 2 for row in rows):
        raise ValueError(f"Expected two columns, folder or number and name, in {path}. Received: {rows[0]}.")
    header = [cell.lower().replace(" ", "_") for cell in rows[0]]
    is_headed = header[0] in _HEADERS | _NAME_HEADERS and (header[0] in _HEADERS or header[1] in _HEADERS)
    is_headed = is_headed or (_ends_in_numbers(rows[1:]) and not is_number(rows[0][1]))
    rows = rows[is_headed:]
    says_numbers = is_headed and header[1] in _HEADERS
    if (
        not (is_headed and header[1] in _NAME_HEADERS)
        and _ends_in_numbers(rows)
        and (says_numbers or counts(number for _, number in rows))
    ):
        return _by_number({int(number): name for name, number in rows}, len(rows), path)
    return _mapping(rows, path)


def _ends_in_numbers(rows: Sequence[Sequence[str]]) -> bool:
    """Tell whether rows are of a name and a number, and not the other way round."""
    return bool(rows) and all(is_number(row[1]) for row in rows) and not all(is_number(row[0]) for row in rows)


def _from_lines(lines: list[str], path: Path) -> tuple[str, ...] | dict[str, str]:
    if lines and lines[0][0] + lines[-1][-1] in ("{}", "[]"):
        return _from_json(_read_literal("\n".join(lines), path), path)
    if lines and all("\t" in line for line in lines):
        return _from_table("\n".join(lines), path.with_suffix(".tsv"))
    if lines and all(two_keys := [_TWO_KEYS.fullmatch(line) for line in lines]):
        return _by_two_keys([(match[2], match[1], match[3]) for match in two_keys if match], path)
    pairs = [[cell.strip() for cell in line.rpartition(",")[::2]] for line in lines]
    if _ends_in_numbers(pairs) and sorted(int(number) for _, number in pairs) == list(range(len(pairs))):
        return _by_number({int(number): name for name, number in pairs}, len(pairs), path)
    for pattern in _KEYED_LINES:
        found = [pattern.fullmatch(line) for line in lines]
        pairs = [match.groups() for match in found if match]
        if lines and len(pairs) == len(lines) and len({key for key, _ in pairs}) == len(lines):
            return {key: name.strip() for key, name in pairs}
    return tuple(lines)


def _mapping(pairs: Iterable[Sequence[str]], path: Path) -> dict[str, str]:
    pairs = list(pairs)
    if repeated := repeated_names(key for key, _ in pairs):
        raise ValueError(f"{path} names a folder or number twice: {shorten(repeated)}. Give each one name.")
    return {pair[0]: pair[1] for pair in pairs}
