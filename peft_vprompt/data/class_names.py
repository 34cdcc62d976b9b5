"""Class names are keys: which name belongs to which folder or label, by what they say and never by their position.

Numbers are the exception: a list of names is in the order of numbered folders or labels, and "10" comes after "9".
"""

from __future__ import annotations

import difflib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from datasets import ClassLabel
from datasets.features.features import register_feature

from ..errors import ClassNamesError
from ..utils.name_keys import composed, folded, places_of, rows_of
from ..utils.validation import shorten
from ..utils.warning import warn_caller


#: Names as a user gives them: in label order, or by folder or number.
GivenNames = Sequence[str] | Mapping[str, str]

#: How a mapping is written, for messages.
HOW_TO_MAP = (
    "give `class_names` (`--class-names`) as a mapping of all of them: JSON such as {json}, or a .csv file with lines such "
    "as {line}"
)
#: Classes of the data in such an example.
_SHOWN = 5


def clean_name(name: str) -> str:
    """Return a name with hyphens and underscores as spaces."""
    return " ".join(name.replace("_", " ").replace("-", " ").split())


@dataclass(frozen=True)
class ClassTable:
    """Names of classes, and what the data calls them.

    Attributes:
        names: in label order.
        labels: label of each key of the data.
    """

    names: list[str]
    labels: dict[str, int]


def own_names(keys: Sequence[str], clean: bool) -> ClassTable:
    """Return the table of classes that are called what the data calls them, in the order of `keys`."""
    names = [clean_name(key) for key in keys] if clean else list(keys)
    return ClassTable(names, {key: label for label, key in enumerate(keys)})


def given_names(
    keys: Sequence[str], given: GivenNames, clean: bool, numbers: Sequence[str] | None = None
) -> ClassTable:
    """Find the name that was given for each key of the data.

    Args:
        keys: what the data calls its classes: folders, names or numbers.
        given: names by key, in label order or by whole numbers, which have an order of their own; or a list: of the keys
            themselves, in whatever order, or of names for numbers.
        clean: write hyphens and underscores of names that the data has, too, as spaces.
        numbers: numbers that the data gives its classes beside the keys, in their order; None where it gives none.

    Raises:
        ValueError: a key has no name; says the nearest, and how to write a mapping.
    """
    if isinstance(given, Mapping):
        lines = _as_list(given, keys)
        of_data = [*keys, *(numbers or ())]
        given = _sorted_numbers(max(_by_one_key(given), key=lambda part: len(_find_keys(of_data, list(part)))))
        found = _find_keys(keys, list(given))
        if not found and numbers is not None:
            by_number = _find_keys(numbers, list(given))
            found = {key: by_number[number] for key, number in zip(keys, numbers, strict=True) if number in by_number}
        if found or not lines:
            _require_all(keys, found, list(given), "folders and numbers that have a name")
            return ClassTable(list(given.values()), found)
        given = lines
    names = list(given)
    found = _find_keys(keys, names)
    if len(found) < len(keys) and (table := _two_columns(names, keys)):
        return table
    if not found and (by_number := _by_position(keys, names)):
        return ClassTable(names, by_number)
    _require_all(keys, found, names, "class names given")
    as_in_data = all(names[label] == key for key, label in found.items())
    return ClassTable([clean_name(name) for name in names] if clean and as_in_data else names, found)


def in_label_order(given: GivenNames, known: Sequence[str] = ()) -> list[str]:
    """Return names as a list: by key in their order, by whole numbers in the numbers'.

    Args:
        given: the names.
        known: classes among which they may be, by which lines of a number and a name are told from names ("2 euro").

    Raises:
        ClassNamesError: nothing tells these from each other, and they look like names.
    """
    if not isinstance(given, Mapping):
        return list(given)
    if known and not unknown_classes(lines := _lines_of(given), known):
        return lines
    is_numbered = bool(given) and all(map(is_number, given))
    if is_numbered and not counts(given) and len(set(given.values())) < len(given):
        raise ClassNamesError(
            f"Expected a number that counts the classes before each name. Received: {shorten(_lines_of(given), 4)}, whose numbers "
            "count nothing and whose names are repeated without them. If the numbers are part of the names, write these as a JSON "
            "list."
        )
    return list(_sorted_numbers(_by_one_key(given)[0]).values())


def _by_one_key(given: Mapping[str, str]) -> list[Mapping[str, str]]:
    """Return a mapping in which every class has a number and another key, in this order, as one by each; else as it is."""
    half = len(given) // 2
    pairs = list(given.items())
    parts = dict(pairs[:half]), dict(pairs[half:])
    in_two = all(map(is_number, parts[0])) and not any(map(is_number, parts[1]))
    return list(parts) if half and in_two and list(parts[0].values()) == list(parts[1].values()) else [given]


def _sorted_numbers(given: Mapping[str, str]) -> Mapping[str, str]:
    return {key: given[key] for key in sorted_keys(given)} if all(map(is_number, given)) else given


def names_by_number(keys: Sequence[str], given: GivenNames) -> ClassTable:
    """Find the name that was given for each number: a list counts from 0.

    Raises:
        ValueError: a number has no name.
    """
    if isinstance(given, Mapping):
        return given_names(keys, given, clean=False)
    if bad := [key for key in keys if not is_number(key) or int(key) >= len(given)]:
        raise ValueError(
            f"Labels that are no numbers or out of range for {len(given)} class names: {shorten(bad)}. A list counts from 0; for other "
            f"numbers {_how_to_map(bad[0], 'its name', {})}."
        )
    return ClassTable(list(given), {key: int(key) for key in keys})


def _find_keys(keys: Sequence[str], among: Sequence[str]) -> dict[str, int]:
    """Return the position of every key that is found: as it is, else written alike, else as the same number."""
    found = {}
    lookups: list[tuple[Callable, dict]] = [(form, places_of(among, form)) for form in (str, folded, _number)]
    for key in keys:
        for form, positions in lookups:
            places = positions.get(form(key), [])
            if len(places) == 1:
                found[key] = places[0]
                break
    return found


def _number(key: str) -> int | None:
    return int(key) if is_number(key) else None


def counts(numbers: Iterable[str]) -> bool:
    """Tell whether whole numbers are those of a count from 0 or 1 on, in any order."""
    found = sorted(map(int, numbers))
    return found in (list(range(len(found))), list(range(1, len(found) + 1)))


def is_number(key: str) -> bool:
    """Tell whether a key is a whole number."""
    return key.isascii() and key.isdigit()


def sorted_keys(keys: Iterable[str]) -> list[str]:
    """Return keys in their order: whole numbers as numbers, else as text."""
    keys = list(keys)
    return sorted(keys, key=lambda key: (int(key), key)) if all(map(is_number, keys)) else sorted(keys)


def _by_position(keys: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """Return the positions of numbered folders in a list of names; none where the keys are no numbers.

    Raises:
        ValueError: there are more or fewer numbers than names, and they count neither from 0 nor to the last.
    """
    if not keys or not all(map(is_number, keys)):
        return {}
    ordered = sorted_keys(keys)
    values = [int(key) for key in ordered]
    if len(ordered) == len(names) and len(set(values)) == len(values):
        return {key: position for position, key in enumerate(ordered)}
    first = 0 if values[0] == 0 else 1
    if values[-1] - first >= len(names) or (first and values[-1] < len(names)):
        raise ValueError(
            f"Expected one name for each of the {len(keys)} numbered classes ({shorten(ordered)}). Received: {len(names)} "
            f"names, and which of them belong to these numbers is not known. For part of the names "
            f"{_how_to_map(ordered[0], names[0], {})}."
        )
    return {key: value - first for key, value in zip(ordered, values, strict=True)}


def _as_list(given: Mapping[str, str], keys: Sequence[str]) -> list[str]:
    """Return the lines of a text file that looked like numbers and names, if they are names ("2 euro")."""
    lines = _lines_of(given)
    return lines if len(_find_keys(keys, lines)) == len(keys) else []


def _lines_of(given: Mapping[str, str]) -> list[str]:
    return [f"{number} {name}" for number, name in given.items()]


def _two_columns(lines: Sequence[str], keys: Sequence[str]) -> ClassTable | None:
    """Return the table of lines whose first column, up to a comma, is the data's keys; None where it is not."""
    pairs = [line.partition(",") for line in lines]
    first = [key.strip() for key, _, _ in pairs]
    if not all(name.strip() for _, _, name in pairs) or len(set(first)) < len(first):
        return None
    found = _find_keys(keys, first)
    return ClassTable([name.strip() for _, _, name in pairs], found) if len(found) == len(keys) else None


def _require_all(keys: Sequence[str], found: Mapping[str, int], among: Sequence[str], called: str) -> None:
    missing = [key for key in keys if key not in found]
    if not missing:
        return
    if repeated := [key for key in missing if len(places_of(among, folded).get(folded(key), [])) > 1]:
        raise ClassNamesError(
            f"Classes of the data that are given several times among the {called}, so that nobody knows which is meant: "
            f"{shorten(repeated)}. Write each once, or {_how_to_map(repeated[0], repeated[0], {k: k for k in keys})}."
        )
    by_key = called.startswith("folders")
    alike = nearest(missing[0], among)
    others = {} if by_key else {key: among[label] for key, label in found.items()}
    raise ClassNamesError(
        f"Classes of the data that are not among the {called}: {shorten(missing)}. The nearest to {missing[0]!r} is "
        f"{alike!r}. Names are found by what they say, never by their position: write them alike, or "
        f"{_how_to_map(missing[0], 'its name' if by_key else str(alike), others)}."
    )


def _how_to_map(key: str, name: str, others: Mapping[str, str]) -> str:
    """Say how to write that a class is called something, and others of the data what they are called."""
    pairs = {key: name} | {other: its for other, its in others.items() if other != key}
    shown = [f"{json.dumps(k, ensure_ascii=False)}: {json.dumps(v, ensure_ascii=False)}" for k, v in pairs.items()]
    more = ", ..." if len(shown) > _SHOWN else ""
    line = f"{key},{name}" if "," not in key + name else f'"{key}","{name}"'
    return HOW_TO_MAP.format(json=f"{{{', '.join(shown[:_SHOWN])}{more}}}", line=line)


def nearest(name: str, among: Sequence[str]) -> str | None:
    """Return the name among others that is written most like `name`; None where there are none."""
    forms = {folded(other): other for other in reversed(among)}
    close = difflib.get_close_matches(folded(name), list(forms), n=1, cutoff=0.0)
    return forms[close[0]] if close else None


def unknown_classes(names: Sequence[str], among: Sequence[str]) -> list[str]:
    """Return the names that are none of others, however those are written."""
    return [name for name, row in zip(names, rows_of(names, among, folded), strict=True) if row is None]


def find_classes(names: Sequence[str], among: Sequence[str]) -> dict[int, int]:
    """Find the classes of some data among those of an adapter: position in `among` of each position in `names`.

    Names are found as they are written, else alike; of a name that stands for several classes on both sides, each is
    found once, in their order.

    Raises:
        ValueError: a name is none of them; says the nearest, and how to write a mapping.
    """
    rows = rows_of(names, among, folded)
    if missing := [name for name, row in zip(names, rows, strict=True) if row is None]:
        close = nearest(missing[0], among)
        others = {name: among[row] for name, row in zip(names, rows, strict=True) if row is not None}
        raise ValueError(
            f"Classes of the data that are none of the adapter's {len(among)}: {shorten(missing)}. The nearest to "
            f"{missing[0]!r} is {close!r}. If they are the same, {_how_to_map(missing[0], str(close), others)}. To tell "
            "the classes of the data apart, in the place of the adapter's, use --new-classes."
        )
    # pyrefly: ignore[bad-return]  # none of them is None
    return dict(enumerate(rows))


# ---- labels -------------------------------------------------------------------------------------------------------


@dataclass
class RepeatedNames(ClassLabel):
    """A `ClassLabel` of which some names stand for several classes, as ImageNet's "crane" and "maillot" do."""

    _type: str = field(default="RepeatedNames", init=False, repr=False)

    # pyrefly: ignore[bad-function-definition]  # the fields are those of `ClassLabel`
    def __post_init__(self, num_classes, names_file):
        names = list(self.names)
        self.names = [f"{label} {name}" for label, name in enumerate(names)]
        super().__post_init__(num_classes, names_file)
        self.names = names
        self._int2str = names
        self._str2int = {name: label for label, name in enumerate(names) if names.count(name) == 1}


with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # "experimental", at every import
    register_feature(RepeatedNames, "RepeatedNames")


def class_label(names: Sequence[str]) -> ClassLabel:
    """Return the feature of labels with these names, of which some may be repeated."""
    names = list(names)
    if len(set(names)) == len(names):
        return ClassLabel(names=names)
    return RepeatedNames(names=names)  # pyrefly: ignore[unexpected-keyword]  # a field of `ClassLabel`


def warn_repeated(names: Sequence[str]) -> None:
    """Say which names stand for several classes, and which of them only look the same."""
    if repeated := repeated_names(names):
        warn_caller(
            f"Class names that stand for several classes: {shorten(repeated)}. A model that reads the names cannot tell "
            "these classes apart."
        )
    if alike := repeated_names(map(composed, dict.fromkeys(names))):
        warn_caller(
            f"Class names that look the same and are written by other characters (NFC and NFD): {shorten(alike)}. They are different "
            "classes here: rename the folders or labels of one of the two, if they are one class."
        )


def repeated_names(names: Iterable[str]) -> list[str]:
    """Return the names that stand there more than once, each once."""
    return [name for name, count in Counter(names).items() if count > 1]
