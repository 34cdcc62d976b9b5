"""Fixtures of the comparisons with the authors' code."""

import pytest

from tests.support.golden_vpt import load_recipe


@pytest.fixture(scope="module")
def recipe(shared):
    """What rebuilds the CLIPs and inputs of the reference cases; the tests of image encoders have another."""
    return load_recipe(shared / "golden" / "clip")
