"""RCIG: its inner problem against autograd, and its gradient against that of the exact solution."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from test_features import CLASSES, LABELS, SMALL, examples, normal
from test_unrolled import SHAPE
from torch import Tensor
from twins import CPU

import potstill
from potstill.cli.parser import main
from potstill.data.splits import TensorSplit
from potstill.distilled.recipes import Recipe
from potstill.engine.optimizers import Adam
from potstill.engine.ridge import centred
from potstill.engine.when_to_compile import NetworkFamily
from potstill.methods import rcig
from potstill.methods.base import Examples, Problem, Real
from potstill.methods.linear_networks import Inner, Linear, Solution, descend, searched
from potstill.methods.rcig import Rcig, RcigOptions, last_linear, no_longer
from potstill.models import resolve

OPTIONS = {"networks": 2, "network_life": 4, "ridge": 1e-2, "solver_steps": 4}


def method(mirrored: bool = True, **options) -> Rcig:
    """On smooth networks in float64 with a few hundred parameters."""
    made = resolve(
        "convnet", SHAPE, CLASSES, width=2, depth=2, norm="none", network_init="he",
        inner_activation="softplus",
    )  # fmt: skip
    networks = NetworkFamily(lambda: made().double(), SHAPE, CLASSES, CPU, "float32")
    train = TensorSplit(normal(60, *SHAPE, seed=1), torch.arange(60) % CLASSES)
    real = Real(train, CLASSES, 40, micro_batch=15)
    task = Problem(real, networks, LABELS, Recipe(optimizer=Adam(), lr=0.01), 0, CPU, micro_batch=5)
    return Rcig(
        task, RcigOptions(**{**OPTIONS, **options}, mirrored_copies="on" if mirrored else "off")
    )


def inner_problem(own: Rcig, given: Examples) -> Inner:
    linear = Linear(own.of.evaluating, own.of.fresh(0, 0), own.moving)
    pair = own.with_copies(given.images, centred(given.targets))
    return Inner(linear, *pair, own.options.ridge * len(given.images))


def jacobian(inner: Inner, images: Tensor) -> Tensor:
    """(n K, P), of the network's own outputs in what moves."""
    found = torch.autograd.functional.jacobian(
        lambda theta: inner.linear.outputs(theta, images).flatten(), inner.linear.network.theta
    )
    return found * inner.linear.moving


def written_out(inner: Inner, tau: Tensor) -> Tensor:
    """The inner loss, with the best last layer by a direct solve of its normal equations."""
    features, ridge = inner.linear.features(inner.images), inner.ridge
    behind = inner.targets - (jacobian(inner, inner.images) @ tau).view_as(inner.targets)
    normal_matrix = features.T @ features + ridge * torch.eye(features.shape[1]).double()
    weights = torch.linalg.solve(normal_matrix, features.T @ behind)
    error = (behind - features @ weights).square().sum()
    return (error + ridge * (weights.square().sum() + tau.square().sum())) / (
        2 * inner.targets.numel()
    )


def test_the_inner_loss_its_gradient_and_hessian_are_those_of_the_formula():
    own = method()
    inner, count = inner_problem(own, examples()), len(own.moving)
    tau, along = 0.1 * normal(count) * own.moving, normal(count, seed=1) * own.moving
    loss, grad = inner.loss_and_gradient(tau)
    leaf = tau.clone().requires_grad_()
    expected = written_out(inner, leaf)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=1e-12)
    (of_leaf,) = torch.autograd.grad(expected, leaf, create_graph=True)
    torch.testing.assert_close(grad, of_leaf.detach() * own.moving, rtol=1e-8, atol=1e-12)
    (product,) = torch.autograd.grad((of_leaf * along).sum(), leaf)
    torch.testing.assert_close(inner.hessian(along), product * own.moving, rtol=1e-8, atol=1e-12)


def test_the_last_layers_weights_do_not_move_and_its_bias_does():
    own = method()
    assert last_linear(own.of.evaluating.module) == "head.weight"
    still = {
        name
        for name, part in zip(
            own.of.evaluating.names, own.moving.split(own.of.evaluating.sizes), strict=True
        )
        if not part.any()
    }
    assert still == {"head.weight"}


@pytest.mark.parametrize("mirrored", [True, False])
def test_the_gradient_is_how_the_loss_of_the_exact_solution_changes(mirrored, monkeypatch):
    """With the inner problem and its inverse solved directly, and nothing shortened."""

    def exact(gradient, like, rate, steps):
        # Both problems are quadratic: gradient(v) = A v - b.
        free = torch.nonzero(like)[:, 0]
        zero = gradient(torch.zeros_like(like))[1]
        columns = [gradient(unit)[1] - zero for unit in torch.eye(len(like)).double()[free]]
        values = torch.zeros_like(like)
        values[free] = torch.linalg.solve(torch.stack(columns)[:, free].T, -zero[free])
        return Solution(values, torch.zeros(2))

    monkeypatch.setattr(rcig, "descend", exact)
    monkeypatch.setattr(rcig, "searched", lambda *_: 1.0)
    monkeypatch.setattr(rcig, "no_longer", lambda grad, than: grad)
    own, given = method(mirrored), examples()
    state, learned = own.start()[0], {"platt": torch.tensor(0.3, dtype=torch.float64)}
    found = own.estimate(given, learned, state, 0)
    assert set(found.grads) == {"images", "targets", "platt"}

    def loss(moved: Examples, values: dict[str, Tensor]) -> float:
        """Written out: Jacobians, dense solves."""
        network = own.pool.at(found.state, found.state["used"])[0]
        linear = Linear(own.of.evaluating, network, own.moving)
        inner = Inner(
            linear, *own.with_copies(moved.images, centred(moved.targets)), 1e-2 * len(LABELS)
        )
        jac, features = jacobian(inner, inner.images), linear.features(inner.images)
        gram = features @ features.T + inner.ridge * torch.eye(len(features)).double()
        inverse = torch.kron(torch.linalg.inv(gram).contiguous(), torch.eye(CLASSES).double())
        normal_matrix = jac.T @ inverse @ jac + torch.eye(jac.shape[1]).double()
        tau = torch.linalg.solve(normal_matrix, jac.T @ inverse @ inner.targets.flatten())
        dual = inverse @ (inner.targets.flatten() - jac @ tau)
        weights = features.T @ dual.view_as(inner.targets)
        train = own.problem.real.train
        rows = own.problem.real.sampler.draw(train, 40, own.problem.rng("real batch", 0))
        seen, labels = train.take(rows)
        predicted = (jacobian(inner, seen) @ tau).view(-1, CLASSES)
        predicted = predicted + linear.features(seen) @ weights
        first, second = moved.targets.topk(2, 1).values.unbind(1)
        ahead = (first - second).clamp_max(1 / (2 * CLASSES)).mean()
        return float(F.cross_entropy(values["platt"].exp() * predicted, labels) - ahead)

    assert float(found.loss) == pytest.approx(loss(given, learned), rel=1e-8)
    for leaf, grad in found.grads.items():
        along = 1e-5 * normal(*grad.shape, seed=4)
        ends = []
        for sign in (1, -1):
            if leaf in learned:
                ends.append(loss(given, {leaf: learned[leaf] + sign * along}))
            else:
                there = {leaf: getattr(given, leaf) + sign * along}
                ends.append(loss(dataclasses.replace(given, **there), learned))
        expected = (ends[0] - ends[1]) / 2
        assert float((grad * along).sum()) == pytest.approx(expected, rel=2e-5), leaf


def test_a_rate_is_the_largest_with_which_the_loss_still_falls_less_a_margin():
    diagonal = torch.tensor([1.0, 30.0])
    target = torch.tensor([1.0, -1.0])

    def gradient(values: Tensor) -> tuple[Tensor, Tensor]:
        apart = values - target
        return (diagonal * apart.square()).sum() / 2, diagonal * apart

    rate = searched(gradient, target, 1e-3, 20)
    assert descend(gradient, target, rate, 20).fell
    assert not descend(gradient, target, rate / 0.7, 20).fell
    assert descend(gradient, target, rate / 0.7 / 1.2, 20).fell
    assert descend(gradient, target, 50.0, 20).rose


@pytest.mark.parametrize("first", [*range(9), 98, 99, 100, 200])
def test_the_search_finds_the_first_rate_that_fails(monkeypatch, first):
    tried: list[float] = []

    def course(gradient, like, rate: float, steps: int) -> Solution:
        tried.append(rate)
        losses = [3.0, 2.0, 1.0] if rate < 1.2**first * 0.999 else [3.0, 4.0, 1.0]
        return Solution(like, torch.tensor(losses))

    monkeypatch.setattr("potstill.methods.linear_networks.descend", course)
    rate = searched(lambda tau: (tau, tau), torch.zeros(2), 1.0, 2)
    assert rate == pytest.approx(0.7 * 1.2 ** min(first, 100))
    assert len(tried) <= first / 4 + 4


def test_the_rate_follows_how_solutions_went(monkeypatch):
    own = method(solver_steps=2)
    inner, state = inner_problem(own, examples()), own.start()[0]

    def courses(*falls: bool) -> float:
        states = dict(state) | {"solver rate": 1.0}
        for fall in falls:
            losses = torch.tensor([1.0, 0.9, 0.8] if fall else [1.0, 2.0, 3.0])
            made = Solution(torch.zeros(3), losses)
            monkeypatch.setattr(rcig, "descend", lambda *_, made=made: made)
            states = own.solution(inner, states)[1]
        return states["solver rate"]

    assert courses(*[True] * 49) == 1.0
    assert courses(*[True] * 50) == pytest.approx(1.05)
    assert courses(*[False] * 20, *[True] * 30) == pytest.approx(0.9)
    assert courses(*[False] * 10, *[True] * 40) == pytest.approx(1.05)
    assert courses(*[False] * 14, *[True] * 36) == pytest.approx(1.05)


def test_an_implicit_gradient_is_never_longer_than_the_direct_one():
    direct = normal(3, 4)
    torch.testing.assert_close(no_longer(0.5 * direct, direct), 0.5 * direct)
    torch.testing.assert_close(no_longer(9 * direct, direct), direct)
    assert not no_longer(torch.full_like(direct, torch.nan), direct).any()


def test_a_network_trains_after_it_was_used_and_gives_way_at_its_age():
    own = method(most_training=3)
    state, ages = own.start()[0], []
    for step in range(14):
        state = own.estimate(examples(), {"platt": torch.zeros(()).double()}, state, step).state
        ages.append([age for _, age, _ in state["networks"]])
    steps = [new[0] - old[0] for old, new in itertools.pairwise(ages)]
    assert {step for step in steps if step > 0} <= {1, 2, 3}
    assert len({step for step in steps if step > 0}) > 1
    assert min(steps) < 0  # a fresh one took its place
    assert max(map(max, ages)) < 4


def test_a_run_lowers_its_loss_and_says_what_it_needs(tmp_path, capsys):
    out = tmp_path / "run"
    made = potstill.distill(
        **{**SMALL, "steps": 25, "average": 0.5, "validate_every": 25}, method="rcig", networks=2,
        out=out, clip=0.0,
    )  # fmt: skip
    assert made.recipe.learner == "network-mse"
    losses = [record.loss for record in potstill.distillation.run_folder.RunFolder(out).records()]
    assert sum(losses[-5:]) < sum(losses[:5])
    words = ["distill", "--method", "rcig", "--norm", "batch", "--out", str(tmp_path / "x")]
    assert main(words) == 2
    assert "method rcig needs a network that sees each image by itself" in capsys.readouterr().err
