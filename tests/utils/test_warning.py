"""Warnings point to the caller's line, wherever in the package they arise."""

import warnings

from peft_vprompt.utils import warning


def test_the_line_is_the_callers():
    inside = {"__name__": "peft_vprompt.somewhere", "warn": warning.warn_caller}
    exec("def inner():\n    warn('text')\ndef outer():\n    inner()\n", inside)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        inside["outer"]()
    assert found[0].filename == __file__
