"""The rows of the method table, and which of them every run tests."""

from peft_vprompt.experiments.models import METHODS
from tests.support.models import often


def _first_of_their_kind() -> list[str]:
    """The names of the rows without those that are a setting of another row's config."""
    kinds: dict[tuple, str] = {}
    for name, spec in METHODS.items():
        kinds.setdefault((spec.config_class, spec.is_baseline, bool(spec.recipe)), name)
    return list(kinds.values())


FIRST_ROWS = _first_of_their_kind()


def every_row(names=tuple(METHODS)) -> list:
    """Return the parameters of a test over rows; those that differ from another one in settings run nightly."""
    return often(names, [name for name in names if name in FIRST_ROWS or name not in METHODS])
