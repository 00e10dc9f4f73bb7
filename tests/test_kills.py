"""Runs of every kind are killed and go on to the same bytes; `make torture` does so more often."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from killing import KINDS, kills, overwritten


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_to_the_same_bytes(kind, tmp_path):
    """Once by the clock, once in the middle of a write."""
    assert list(kills(kind, 2, 1, tmp_path)) == [""] * 2


def test_of_a_run_that_replaces_another_one_is_there_whole(tmp_path):
    assert list(overwritten(2, 1, tmp_path)) == ["", ""]
