"""Noise of the meta-gradient: against brute force in float64, closed forms, and every combination
of signs.
"""

import dataclasses
import itertools
import math
import statistics

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from twins import CPU, plain_unroll

from potstill.data import augmentation
from potstill.data.splits import TensorSplit, sample
from potstill.diagnosis.variance import (
    Variance,
    exact_variance,
    factorial,
    noise_sources,
    random_signs,
    real_variance,
    variance_by_signs,
    variance_of,
)
from potstill.distilled.recipes import Recipe
from potstill.engine.flat import FlatModel
from potstill.engine.losses import cross_entropy
from potstill.engine.unroll import InnerProblem
from potstill.engine.when_to_compile import NetworkFamily
from potstill.methods.base import Examples, Problem, Real
from potstill.methods.one_unroll import Replay
from potstill.methods.unrolled import UnrolledMethod
from potstill.models import fresh
from potstill.models.convnet import ConvNet
from potstill.registry import METHODS
from potstill.seeds import derive, generator

SHAPE = (1, 8, 8)


def method_of(norm: str = "instance", method: str = "rat-bptt", **options) -> UnrolledMethod:
    """Three distilled images against sixty real ones, in float64."""
    images = torch.randn(60, *SHAPE, generator=generator(1), dtype=torch.float64)
    real = Real(TensorSplit(images, torch.arange(60) % 3), 3, 20, ("flip",), micro_batch=4)

    def factory() -> ConvNet:
        return ConvNet(SHAPE, 3, width=8, depth=1, norm=norm).double()

    networks = NetworkFamily(factory, SHAPE, 3, CPU, "float32")
    recipe = Recipe(batch_per_class=1, classes_per_batch=3, augment=("rotate",))
    problem = Problem(real, networks, torch.arange(3), recipe, 0, CPU, micro_batch=2)
    known = {"unroll": 6} if method == "bptt" else {"unroll": 6, "window": 3}
    return METHODS[method](problem, METHODS[method].Options(**{**known, **options}))


EXAMPLES = Examples(
    torch.randn(3, *SHAPE, generator=generator(0), dtype=torch.float64),
    torch.eye(3, dtype=torch.float64),
    torch.arange(3),
)
STEP, REPLAY = 5, Replay(5)


def brute_force(method: UnrolledMethod, samples: int, size: int) -> Tensor:
    """(samples, D): each sample's meta-gradient by its own plain unroll with its whole graph."""
    problem, recipe = method.problem, method.problem.recipe
    burn_in, window = method.window(method.start()[0], REPLAY)
    rng = method.rng("real batch", REPLAY)
    chosen = sample(problem.real.train, samples * size, rng)
    drawn = augmentation.draw(problem.real.augment, samples * size, rng)
    found = []
    for place in range(samples):
        model = FlatModel(fresh(problem.networks.factory, derive(problem.seed, "start", STEP), CPU))
        rows = torch.arange(place * size, (place + 1) * size)
        images, labels = problem.real.train.take(chosen[rows])
        batch = augmentation.apply(images, drawn.rows(rows)), F.one_hot(labels, 3).double()
        made = method.inner_problem(EXAMPLES, model, REPLAY).batch
        inner = InnerProblem(cross_entropy(model), made, recipe.optimizer)
        rate = {"lr": torch.tensor(recipe.lr)}
        start = recipe.optimizer.init(model.theta)

        def loss(theta, leaves, model=model, batch=batch):
            return F.cross_entropy(model(theta, batch[0]), batch[1])

        plain = plain_unroll(
            inner, EXAMPLES.leaves, rate, start, loss, burn_in=burn_in, window=window
        )
        found.append(plain.leaves["images"].flatten())
    return torch.stack(found)


@pytest.mark.parametrize(
    ("norm", "samples", "size"), [("instance", 7, 1), ("instance", 5, 3), ("batch", 5, 3)]
)
@pytest.mark.parametrize("method", ["rat-bptt", "bptt"])
def test_one_unroll_gives_the_variance_of_as_many_plain_unrolls_as_samples(
    method, norm, samples, size
):
    tested = method_of(norm, method=method)
    draws = brute_force(tested, samples, size)
    found = real_variance(tested, EXAMPLES, {}, tested.start()[0], STEP, samples=samples, size=size)
    assert found.per_entry == pytest.approx(float(draws.var(dim=0).mean()), rel=1e-9)
    assert found.norm == pytest.approx(float(draws.mean(0).norm()), rel=1e-9)
    assert (found.entries, found.n) == (192, samples)
    assert found.normalised == pytest.approx(
        float(draws.var(dim=0).mean() / draws.mean(0).square().sum()), rel=1e-9
    )
    noise = float(draws.var(dim=0).sum() / draws.square().sum(1).mean())
    assert found.share == pytest.approx(noise, rel=1e-9)


def test_random_signs_have_no_bias():
    tested, n = method_of(), 6
    exact = real_variance(tested, EXAMPLES, {}, tested.start()[0], STEP, samples=n)
    trajectory = tested.trajectory(EXAMPLES, {}, REPLAY, *tested.window(tested.start()[0], REPLAY))

    def gradient(weights: Tensor) -> Tensor:
        return trajectory.of_samples(REPLAY, n, 1, weights.double()).leaves["images"].flatten()

    # The expectation over signs is the mean over all of them, which are few here.
    every = [
        torch.tensor(signs, dtype=torch.float64)
        for signs in itertools.product((1.0, -1.0), repeat=n)
    ]
    found = variance_by_signs(gradient, n, every)
    # Weights such as 1 / n are rounded.
    assert found.per_entry == pytest.approx(exact.per_entry, rel=1e-6)
    assert found.norm == pytest.approx(exact.norm, rel=1e-6)
    assert found.power == pytest.approx(exact.power, rel=1e-6)
    single = [variance_by_signs(gradient, n, [signs]).per_entry for signs in every]
    assert max(single) > 1.1 * min(single)  # it is an estimate


def test_the_estimate_draws_its_signs_from_the_seed():
    tested = method_of()
    one, two = (
        real_variance(tested, EXAMPLES, {}, tested.start()[0], STEP, samples=8, signs=4)
        for _ in range(2)
    )
    assert one == two
    exact = real_variance(tested, EXAMPLES, {}, tested.start()[0], STEP, samples=8)
    assert one.per_entry == pytest.approx(exact.per_entry, rel=0.8)
    assert drawn_signs(0, 5).tolist() == drawn_signs(0, 5).tolist()
    assert (
        len({tuple(map(tuple, drawn_signs(*at).tolist())) for at in ((0, 5), (1, 5), (0, 6))}) == 3
    )
    assert set(drawn_signs(0, 5).flatten().tolist()) == {-1, 1}
    assert one.norm == pytest.approx(exact.norm, rel=1e-6)


def drawn_signs(seed: int, outer_step: int) -> Tensor:
    return random_signs(4, 8, seed, outer_step)


def test_the_mean_of_the_samples_is_the_meta_gradient_of_the_step():
    tested = method_of()
    estimate = tested.estimate(EXAMPLES, {}, tested.start()[0], STEP)
    # As many as the real batch has.
    found = real_variance(tested, EXAMPLES, {}, tested.start()[0], STEP, samples=20)
    assert found.norm == pytest.approx(float(estimate.grads["images"].norm()), rel=1e-9)
    dealt = real_variance(tested, EXAMPLES, {}, tested.start()[0], STEP, samples=5, size=4)
    assert dealt.norm == pytest.approx(found.norm, rel=1e-9)


def test_the_norms_that_a_step_logs():
    tested = method_of(unroll=1, window=1)
    # A single image is in a batch.
    recipe = dataclasses.replace(tested.problem.recipe, classes_per_batch=1)
    tested.problem = dataclasses.replace(tested.problem, recipe=recipe)
    estimate = tested.estimate(EXAMPLES, {}, tested.start()[0], STEP)
    norms = estimate.grads["images"].flatten(1).norm(dim=1)
    assert (norms > 0).sum() == 1
    assert estimate.info["image_grad_norm"] == pytest.approx(float(norms.max()))
    whole = method_of().estimate(EXAMPLES, {}, tested.start()[0], STEP)
    assert whole.info["image_grad_norm"] == pytest.approx(
        float(whole.grads["images"].flatten(1).norm(dim=1).mean())
    )


def test_variance_of_vectors_is_the_sample_variance():
    draws = torch.randn(9, 4, generator=generator(2), dtype=torch.float64)
    found = variance_of(draws)
    assert found.per_entry == pytest.approx(float(draws.var(dim=0).mean()))
    assert found == exact_variance(lambda weights: weights.double() @ draws, 9)
    assert found.power == pytest.approx(float(draws.square().sum(1).mean()))
    assert math.isinf(Variance(1.0, 0.0, 4.0, 4, 9).normalised)


def test_the_share_of_noise_has_no_bias():
    # A mean of length 1 and noise of variance 2 in each of 3 entries: of a draw's squared length of
    # 7, 6 are noise.
    rng = generator(5)
    mean = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    found = [
        variance_of(mean + 2**0.5 * torch.randn(4, 3, generator=rng, dtype=torch.float64))
        for _ in range(4000)
    ]
    average = Variance(
        *(
            statistics.fmean(getattr(one, name) for one in found)
            for name in ("per_entry", "norm", "power")
        ),
        3,
        4,
    )
    assert average.share == pytest.approx(6 / 7, rel=0.02)
    assert Variance(0.0, 0.0, 0.0, 3, 4).share == 0


def test_sources_that_add_up_are_told_apart_exactly():
    n = 4
    effects = {name: scale * torch.randn(n, 5, generator=generator(3, name), dtype=torch.float64)
               for name, scale in (("start", 3.0), ("window", 0.5), ("real", 1.0))}  # fmt: skip

    def draws(start: int, window: int) -> list[Tensor]:
        return [
            effects["start"][start] + effects["window"][window] + effects["real"][real]
            for real in range(n)
        ]

    found = factorial(draws, [(place, 1) for place in range(n)], n)
    for name, values in effects.items():
        assert found[name].per_entry == pytest.approx(float(values.var(dim=0).mean()))
    assert found["all"].per_entry == pytest.approx(sum(found[name].per_entry for name in effects))
    assert found["all"].norm == pytest.approx(
        float(sum(values.mean(0) for values in effects.values()).norm())
    )


def test_the_sources_of_a_method_are_those_of_its_draws():
    n, tested = 3, method_of(unroll=9)
    found = noise_sources(tested, EXAMPLES, {}, tested.start()[0], STEP, n)
    cube = torch.zeros(n, n, n, 192, dtype=torch.float64)
    for start in range(n):
        for window in range(n):
            place = tested.window_of(tested.start()[0], Replay(STEP + window), STEP)
            for real in range(n):
                trajectory = tested.trajectory(EXAMPLES, {}, Replay(STEP + start), *place)
                cube[start, window, real] = (
                    trajectory.meta_gradient(Replay(STEP + real)).leaves["images"].flatten()
                )
    for axis, name in enumerate(("start", "window", "real")):
        assert found[name].per_entry == pytest.approx(float(cube.var(dim=axis).mean()), rel=1e-9)
    # The draws of a step are those of the cube's diagonal.
    step = tested.estimate(EXAMPLES, {}, tested.start()[0], STEP).grads["images"].flatten()
    torch.testing.assert_close(cube[0, 0, 0], step)
    assert found["all"].norm == pytest.approx(float(cube.mean((0, 1, 2)).norm()), rel=1e-9)
    assert found["real"].power == pytest.approx(float(cube.square().sum(-1).mean()), rel=1e-9)


def test_a_method_whose_window_never_changes_has_no_noise_from_it():
    tested = method_of(method="t-bptt")
    made = []
    real = tested.trajectory
    tested.trajectory = lambda *all: made.append(all) or real(*all)  # type: ignore[method-assign]
    found = noise_sources(tested, EXAMPLES, {}, tested.start()[0], STEP, 3)
    assert found["window"].per_entry == 0
    assert found["start"].per_entry > 0
    assert len(made) == 3  # one unroll for each start
