"""The samplers: their distributions by count, and when a window moves."""

from collections import Counter

import pytest

from potstill.config.config import configuration
from potstill.errors import InputError
from potstill.methods.unrolled import UnrolledMethod
from potstill.methods.windows import WARM_UP, Backward, Early, Forward, Growing, RandomTruncated
from potstill.registry import METHODS
from potstill.seeds import generator

UNROLL, WINDOW, DRAWS = 8, 3, 12_000


def sampler_of(name: str, **options):
    known = {"unroll": UNROLL, "window": WINDOW}
    return configuration(known, method=name, **options).method.options


def counts(sampler) -> Counter[tuple[int, int]]:
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
        ("fixed", {(UNROLL - WINDOW, WINDOW)}),
        ("forward", {(0, WINDOW)}),  # until it moves
        ("backward", {(UNROLL - WINDOW, WINDOW)}),
    ],
)
def test_draws_are_uniform_over_just_these(name, expected):
    found = counts(sampler_of(name))
    assert set(found) == expected
    mean = DRAWS / len(expected)
    # Six standard deviations of a binomial count.
    assert all(abs(count - mean) <= 6 * mean**0.5 for count in found.values())


@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_early_places_have_the_weight_that_the_formula_gives(weight):
    found = counts(sampler_of("early", early_weight=weight))
    last = UNROLL - WINDOW
    weights = [weight ** (-place / last) for place in range(last + 1)]
    assert weights[0] / weights[-1] == pytest.approx(weight)
    for place, share in enumerate(weights):
        mean = DRAWS * share / sum(weights)
        assert abs(found[place, WINDOW] - mean) <= 6 * mean**0.5


def test_a_window_as_long_as_the_unroll_leaves_no_burn_in():
    assert RandomTruncated(5, 5).draw({}, generator(0), 0) == (0, 5)
    assert Early(5, 5, early_weight=4.0).draw({}, generator(0), 0) == (0, 5)


def test_a_growing_unroll_grows_linearly_and_stays():
    sampler = Growing(20, grow_from=10, grow_over=11)
    assert [sampler.draw({}, generator(0), step) for step in (0, 1, 5, 10, 11, 500)] == [
        (0, 10), (0, 11), (0, 15), (0, 20), (0, 20), (0, 20),
    ]  # fmt: skip
    assert Growing(20, grow_from=10, grow_over=1).draw({}, generator(0), 0) == (0, 10)
    grown = configuration(method="growing").method.options.with_steps(70)
    # Over all steps, without being told.
    assert (grown.grow_over, grown.unroll, grown.grow_from) == (
        70,
        60,
        3,
    )


def course(sampler, losses: list[float]) -> list[int]:
    """The place of the window at each outer step, when these are the losses."""
    state, places = sampler.init(), []
    for step, loss in enumerate(losses):
        places.append(sampler.draw(state, generator(0), step)[0])
        state = sampler.update(state, loss, 1.0)
    return places


@pytest.mark.parametrize(("kind", "places"), [(Forward, [0, 2, 4, 5]), (Backward, [5, 3, 1, 0])])
def test_a_window_moves_when_the_loss_has_stagnated_for_so_many_steps_and_stops_at_the_end(
    kind, places
):
    sampler = kind(UNROLL, WINDOW, patience=3, shift=2)
    stagnant = course(sampler, [1.0] * 80)
    # The average settles in the first steps at a place; after three more that do not lower it, the
    # window moves.
    moving = [place for place in places[:-1] for _ in range(WARM_UP + 3)]
    assert stagnant == moving + places[-1:] * (80 - len(moving))


def test_a_window_stays_while_the_smoothed_loss_falls_and_through_single_bad_steps():
    sampler = Forward(UNROLL, WINDOW, patience=3, shift=2)
    assert set(course(sampler, [1 - 0.01 * step for step in range(50)])) == {0}
    spiky = [1 - 0.05 * step + (0.1 if step % 4 == 1 else 0) for step in range(20)]
    assert set(course(sampler, spiky)) == {0}
    # At the next place the loss is higher, as it may be, and falls from there: that is progress.
    fresh = course(sampler, [*[1.0] * (WARM_UP + 3), *[3 - 0.1 * step for step in range(20)]])
    assert fresh == [0] * (WARM_UP + 3) + [2] * 20


def test_a_lucky_first_loss_does_not_move_the_window():
    sampler = Forward(UNROLL, WINDOW, patience=5, shift=2)
    assert set(course(sampler, [0.9, *[1 - 0.005 * step for step in range(60)]])) == {0}


def test_the_smoothed_loss_is_the_mean_of_the_first_losses_and_then_an_exponential_average():
    sampler = Forward(UNROLL, WINDOW, patience=100, shift=1)
    state = sampler.init()
    for loss in (1.0, 2.0, 0.0):
        state = sampler.update(state, loss, 1.0)
    assert state == {
        "burn_in": 0,
        "steps": 3,
        "average": pytest.approx(1),
        "lowest": pytest.approx(1),
        "waited": 0,
    }
    for _ in range(WARM_UP - 3):
        state = sampler.update(state, 1.0, 1.0)
    state = sampler.update(state, 2.0, 1.0)  # from here on with its decay
    assert state == {
        "burn_in": 0,
        "steps": WARM_UP + 1,
        "average": pytest.approx(1.1),
        "lowest": pytest.approx(1),
        "waited": 1,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"window": 9},
            r"window must lie in \[1, unroll=8\], got 9; lower --window or raise --unroll",
        ),
        (
            {"method": "growing", "grow_from": 9},
            r"grow_from must lie in \[1, unroll=8\], got 9; lower --grow-from or",
        ),
        (
            {"method": "fixed", "burn_in": 6},
            r"burn_in must lie in \[0, unroll - window = 5\], got 6; lower --burn-in or",
        ),
        ({"method": "early", "early_weight": 0.5}, "early_weight must be at least 1"),
    ],
)
def test_samplers_refuse_what_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        configuration({"unroll": UNROLL, "window": WINDOW}, options)


def test_methods_that_differentiate_every_step_have_no_window():
    for method in ("bptt", "r-bptt", "growing"):
        assert not hasattr(configuration(method=method, unroll=5).method.options, "window")
        with pytest.raises(
            InputError,
            match=rf"window has no effect with --method {method}; it belongs to rat-bptt, t-bptt",
        ):
            configuration(method=method, window=5)


def test_every_sampler_says_what_it_does():
    for name in (name for name in METHODS if issubclass(METHODS[name], UnrolledMethod)):
        assert str(UNROLL) in str(sampler_of(name))
    assert str(sampler_of("fixed", burn_in=2)) == "5, the last 3 differentiated"
