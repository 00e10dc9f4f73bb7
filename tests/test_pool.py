"""Partly trained networks that wait between outer steps."""

from dataclasses import replace

import pytest
import torch
from test_programs import captured, even, plain
from test_runs import QUICK, bytes_of, interrupted_run
from test_unrolled import EXAMPLES, problem, rat

import potstill
from potstill.distillation.leaf_rules import Rule
from potstill.distillation.outer import Carried, OuterState, Schedule, outer_step
from potstill.engine.optimizers import SGD, Adam
from potstill.errors import InputError
from potstill.methods.one_unroll import Replay
from potstill.methods.pool import PLACES, Pool
from potstill.methods.unroll_options import mean_window
from potstill.seeds import generator


def moving(step: int):
    """The distilled set as an outer step finds it."""
    return replace(EXAMPLES, images=EXAMPLES.images * (1 + step / 10))


def test_a_network_goes_on_where_it_was_left():
    """Three outer steps with one network: one unroll of all its steps, on the set as it was."""
    method = rat(problem(), unroll=11, window=3, pool=1)
    state, trained, age = method.start()[0], None, 0
    for step in range(3):
        found = method.estimate(moving(step), {}, state, step)
        assert found.info["window"] == 3
        before, age = age, found.info["burn_in"] + 3
        if trained is None:
            network = method.problem.network("start", 0)
            trained = method.problem.recipe.optimizer.init(
                method.problem.networks.flat(network).theta
            )
        else:
            assert found.info["burn_in"] == before
        model = method.problem.networks.flat(method.problem.network("start", 0))
        inner = method.inner_problem(moving(step), model, Replay(step))
        leaves = moving(step).leaves
        for number in range(before, age):  # by hand
            grad = inner.loss.gradient(trained[0], inner.batch(leaves, number), number)[1]
            trained = inner.optimizer.step(trained, grad, method.hyper({}), number)
        state = found.state
        if state[PLACES][0]:
            for one, other in zip(method.options.waiting.moments(state, 0), trained, strict=True):
                torch.testing.assert_close(one, other.detach())
    assert age == 9 + int(torch.randint(3, (), generator=after_the_place(1)))


def after_the_place(size: int) -> torch.Generator:
    rng = problem().rng("pool", 0)
    torch.randperm(size, generator=rng)
    return rng


def test_none_grows_older_than_its_lifetime_and_windows_begin_everywhere():
    method = rat(problem(), unroll=12, window=3, pool=3)
    state, begun, ages = method.start()[0], set(), []
    for step in range(40):
        found = method.estimate(EXAMPLES, {}, state, step)
        state = found.state
        begun.add(found.info["burn_in"])
        ages += [place[0] for place in state[PLACES] if place]
        kept = {name.split(".")[0] for name in state if name.startswith("pool of ")}
        waiting = [f"pool of {place}" for place, known in enumerate(state[PLACES]) if known]
        assert kept == set(waiting)
    assert max(ages) <= 9  # another window of 3 must fit
    assert begun == set(range(10))


def test_trajectories_of_a_step_take_networks_of_their_own():
    method = rat(problem(), trajectories=3, pool=3)
    found = method.estimate(EXAMPLES, {}, method.start()[0], 0)
    assert sorted(known[2] for known in found.state[PLACES] if known) == sorted(
        index for index in range(3) if found.info["burn_in"][index] + 6 <= 6
    )
    pool = Pool(3, 2, 20)
    state = pool.empty()
    drawn = pool.drawn(state, [Replay(0, number) for number in range(3)], generator(0))
    assert {unroll.place for unroll in drawn} == {0, 1, 2}


@pytest.mark.parametrize("optimizer", [None, SGD(0.5, milestones=(2, 4), decay=0.5)])
def test_programs_take_them_up_too(optimizer):
    task = even()
    if optimizer:
        task = replace(task, recipe=replace(task.recipe, optimizer=optimizer))
    options = {"trajectories": 2, "pool": 3, "unroll": 20}
    fast, slow = captured(task, **options), plain(task, **options)
    own_state, state, ages = fast.start()[0], slow.start()[0], set()
    for step in range(9):
        own = fast.estimate(moving(step), {}, own_state, step)
        expected = slow.estimate(moving(step), {}, state, step)
        assert torch.equal(own.grads["images"], expected.grads["images"])
        own_state, state = own.state, expected.state
        assert own_state[PLACES] == state[PLACES]
        ages |= set(own.info["burn_in"])
    assert len(ages) > 5


def test_a_network_of_a_skipped_step_gives_its_place_to_another():
    method = rat(problem(), unroll=20, window=3, pool=1)
    leaves = dict(EXAMPLES.leaves)
    state = OuterState.start(leaves, method.start()[0], Adam(), Carried(), ())
    rules = {"images": Rule(0.01, clipped=True)}
    schedule = Schedule(9, Adam(), 0, 9, 9, 0.0)
    estimates = Estimating(method)
    for step in range(3):
        estimates.broken = step == 1
        state, _ = outer_step(estimates, schedule, rules, state, 1.0)
        places = state.method[PLACES]
        if step == 0:
            assert places[0]
            assert places[0][1] == 0
        if step == 1:
            assert places == [[]]
            assert not any(isinstance(value, torch.Tensor) for value in state.method.values())
    assert places[0][1] == 2  # born in that step


class Estimating:
    """A method on the examples of these tests, whose gradient may not be finite."""

    def __init__(self, method):
        self.method, self.broken = method, False

    def estimate(self, leaves, state, step):
        images = leaves["images"] * (float("nan") if self.broken else 1.0)
        found = self.method.estimate(replace(EXAMPLES, images=images), {}, state, step)
        return replace(found, grads={"images": found.grads["images"]})


def test_a_pool_saves_the_steps_before_the_window():
    method = rat(problem(), unroll=30, window=7, pool=1)
    pool, state, burn_ins = method.options.waiting, method.start()[0], []
    for step in range(4000):
        (unroll,) = pool.drawn(state, [Replay(step)], generator(step))
        burn_ins.append(unroll.burn_in)
        state = pool.after(state, unroll, (torch.zeros(1),))
    expected, window = mean_window(method.options, 100)
    assert window == 7
    assert sum(burn_ins) / len(burn_ins) == pytest.approx(expected, rel=0.05)
    assert mean_window(replace(method.options, pool=0), 100)[0] > 4 * expected


def test_a_run_with_a_pool_gives_the_same_bytes_after_an_interruption(tmp_path):
    options = {**QUICK, "unroll": 12, "pool": 2}
    whole = potstill.distill(**options, out=tmp_path / "whole")
    interrupted_run(tmp_path / "cut", after=6, **options)
    potstill.resume(tmp_path / "cut")
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")
    assert whole.metadata.config["method"]["pool"] == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"method": "bptt", "pool": 2},
            "pool takes windows that begin anywhere, those of method rat-bptt, got pool=2 with "
            "others; use --method rat-bptt, or --pool 0",
        ),
        (
            {"pool": 1, "trajectories": 2},
            "pool must be at least trajectories (2), each of which takes a network of its own, "
            "got 1; raise --pool",
        ),
    ],
)
def test_what_a_pool_cannot_do_is_said(options, sentence):
    given = {
        name: value for name, value in QUICK.items() if "method" not in options or name != "window"
    }
    with pytest.raises(InputError) as caught:
        potstill.distill(**{**given, **options})
    assert str(caught.value) == sentence
