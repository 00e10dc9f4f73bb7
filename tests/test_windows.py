"""The samplers' distributions, by count."""

from collections import Counter

import pytest

from potstill.registry import WINDOWS
from potstill.seeds import generator

UNROLL, WINDOW, DRAWS = 8, 3, 12_000


def counts(name: str) -> Counter[tuple[int, int]]:
    sampler = WINDOWS[name](UNROLL, WINDOW)
    state = sampler.init()
    return Counter(sampler.draw(state, generator(0, "window", step), step) for step in range(DRAWS))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Algorithm 1: N uniform on {M..T}, so the burn-in is uniform on {0..T-M}.
        ("rat-bptt", {(burn_in, WINDOW) for burn_in in range(UNROLL - WINDOW + 1)}),
        ("bptt", {(0, UNROLL)}),
        ("t-bptt", {(UNROLL - WINDOW, WINDOW)}),
        ("r-bptt", {(0, steps) for steps in range(1, UNROLL + 1)}),
    ],
)
def test_draws_are_uniform_over_just_these(name, expected):
    found = counts(name)
    assert set(found) == expected
    mean = DRAWS / len(expected)
    # Six standard deviations of a binomial count.
    assert all(abs(count - mean) <= 6 * mean**0.5 for count in found.values())


def test_a_window_as_long_as_the_unroll_leaves_no_burn_in():
    assert WINDOWS["rat-bptt"](5, 5).draw({}, generator(0), 0) == (0, 5)
