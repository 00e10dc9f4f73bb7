"""The engine against a slow twin, finite differences, a closed form, and torch's own optimisers, in
float64.
"""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from twins import CPU, OPTIMIZERS, Tiny, lr, plain_unroll

from potstill.engine.flat import FlatModel, couples_batch
from potstill.engine.losses import (
    Batch,
    Eager,
    ExactStart,
    InMicroBatches,
    cross_entropy,
    derivative_error,
)
from potstill.engine.optimizers import SGD, AdaBelief, Adam
from potstill.engine.unroll import (
    STATES,
    EagerObjective,
    InnerProblem,
    Keep,
    Leaves,
    Unrolled,
    meta_gradient,
)
from potstill.seeds import generator, global_seed

NETWORKS = ["mlp", "instance", "batch", "group", "layer", "none"]
RELATIVE = 1e-9


def assert_equal(found: Tensor, expected: Tensor, what: str) -> None:
    """Equal to 1e-9 of the expected tensor's norm."""
    error = float((found - expected).norm() / expected.norm().clamp_min(1e-12))
    assert error < RELATIVE, f"{what} differs by {error:.1e} of its norm"


def objectives(tiny: Tiny) -> dict[str, tuple[Any, list[tuple[Any, float]]]]:
    """name -> (objective, parts): a mean over micro-batches, one that reads the set itself, a
    target trajectory.
    """
    images, labels = tiny.real
    expert = tiny.model.theta + 0.1 * torch.randn(
        tiny.model.theta.shape, generator=generator(2), dtype=torch.float64
    )

    def mean_loss(theta: Tensor, _: Leaves, rows: slice) -> Tensor:
        return F.cross_entropy(tiny.model(theta, images[rows]), labels[rows])

    def reads_the_set(theta: Tensor, leaves: Leaves, rows: slice) -> Tensor:
        return mean_loss(theta, leaves, rows) * sum(
            leaf.square().mean() for leaf in leaves.values()
        )

    def trajectory(theta: Tensor, _: Leaves, target: Tensor) -> Tensor:
        return (theta - target).square().sum() / (tiny.model.theta - target).square().sum()

    coupled = couples_batch(tiny.model.module)
    rows = (
        [(slice(None), 1.0)]
        if coupled
        else [(slice(0, 4), 0.4), (slice(4, 8), 0.4), (slice(8, 10), 0.2)]
    )
    return {
        "mean": (mean_loss, rows),
        "reads the set": (reads_the_set, rows),
        "trajectory": (trajectory, [(expert, 1.0)]),
    }


def whole(parts: list[tuple[Any, float]]) -> Any:
    """The parts as one."""
    return slice(None) if isinstance(parts[0][0], slice) else parts[0][0]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("burn_in", "window"), [(0, 1), (0, 4), (2, 3)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_replay_equals_the_plain_unroll(optimizer, burn_in, window, network):
    for learn_labels in (False, True):
        tiny = Tiny.make(network, learn_labels=learn_labels)
        hyper = lr(0.01)
        for operations in ((), ("rotate", "flip", "color")):
            problem = tiny.problem(OPTIMIZERS[optimizer], operations)
            start = problem.optimizer.init(tiny.model.theta)
            for name, (objective, parts) in objectives(tiny).items():
                found = meta_gradient(
                    problem,
                    tiny.leaves,
                    hyper,
                    start,
                    EagerObjective(objective),
                    parts,
                    burn_in=burn_in,
                    window=window,
                )
                expected = plain_unroll(
                    problem,
                    tiny.leaves,
                    hyper,
                    start,
                    lambda theta, leaves: objective(theta, leaves, whole(parts)),  # noqa: B023
                    burn_in=burn_in,
                    window=window,
                )
                where = f"{name}, labels {learn_labels}, augmentation {operations}: "
                assert_equal(found.loss, expected.loss, where + "loss")
                for leaf in tiny.leaves:
                    assert_equal(found.leaves[leaf], expected.leaves[leaf], where + leaf)
                assert_equal(found.hyper["lr"], expected.hyper["lr"], where + "lr")
                for place, (one, other) in enumerate(zip(found.start, expected.start, strict=True)):
                    assert_equal(one, other, f"{where}start {place}")
                for place, (one, other) in enumerate(zip(found.final, expected.final, strict=True)):
                    assert_equal(one, other, f"{where}final {place}")


def test_meta_gradient_agrees_with_finite_differences():
    # Smooth units: a ReLU kink between the two points would spoil the difference.
    with global_seed(0, CPU):
        model = FlatModel(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        )
    tiny = Tiny.make("mlp", learn_labels=True)
    tiny = Tiny(model, tiny.leaves, {}, tiny.real)
    problem = tiny.problem(Adam(), ("rotate",))
    rng = generator(5)

    def objective(theta: Tensor, leaves: Leaves, part: None) -> Tensor:
        return (
            F.cross_entropy(model(theta, tiny.real[0]), tiny.real[1])
            + leaves["images"].pow(3).mean()
        )

    def run(leaves: Leaves, rate: float, theta: Tensor) -> Any:
        start = problem.optimizer.init(theta)
        return meta_gradient(
            problem,
            leaves,
            lr(rate),
            start,
            EagerObjective(objective),
            [(None, 1.0)],
            burn_in=0,
            window=4,
        )

    result = run(tiny.leaves, 0.02, model.theta)
    h = 1e-5
    for name, leaf in tiny.leaves.items():
        direction = torch.randn(leaf.shape, generator=rng, dtype=torch.float64)
        up, down = (
            run({**tiny.leaves, name: leaf + sign * h * direction}, 0.02, model.theta).loss
            for sign in (1, -1)
        )
        expected = (up - down) / (2 * h)
        assert float((result.leaves[name] * direction).sum()) == pytest.approx(
            float(expected), rel=1e-4
        )
    up, down = (run(tiny.leaves, 0.02 + sign * 1e-6, model.theta).loss for sign in (1, -1))
    assert float(result.hyper["lr"]) == pytest.approx(float((up - down) / 2e-6), rel=1e-5)
    direction = torch.randn(model.theta.shape, generator=rng, dtype=torch.float64)
    up, down = (run(tiny.leaves, 0.02, model.theta + sign * h * direction).loss for sign in (1, -1))
    assert float(result.start[0] @ direction) == pytest.approx(
        float((up - down) / (2 * h)), rel=1e-4
    )


@pytest.mark.parametrize(("burn_in", "window"), [(0, 1), (0, 8), (5, 3)])
def test_meta_gradient_of_a_quadratic_has_its_closed_form(burn_in, window):
    # Inner loss |theta - x|^2 / 2 under plain SGD: d theta_N / dx = 1 - (1 - lr)^window, whatever
    # the burn-in was.
    rate, rng = 0.3, generator(0)
    x, start, y = torch.randn(3, 4, generator=rng, dtype=torch.float64).unbind()
    problem = InnerProblem(
        loss=Eager(lambda theta, batch, step: 0.5 * (theta - batch.inputs).square().sum()),
        batch=lambda leaves, step: Batch(leaves["x"], torch.zeros(len(leaves["x"]))),
        optimizer=SGD(momentum=0.0),
    )
    result = meta_gradient(
        problem,
        {"x": x},
        lr(rate),
        problem.optimizer.init(start),
        EagerObjective(lambda theta, leaves, part: 0.5 * (theta - part).square().sum()),
        [(y, 1.0)],
        burn_in=burn_in,
        window=window,
    )
    trained = x + (1 - rate) ** (burn_in + window) * (start - x)
    torch.testing.assert_close(result.final[0], trained)
    torch.testing.assert_close(result.leaves["x"], (1 - (1 - rate) ** window) * (trained - y))
    torch.testing.assert_close(result.start[0], (1 - rate) ** window * (trained - y))
    # d theta_N / d lr = -k (1 - lr)^(k - 1) (theta_burnt - x) with k = window
    burnt = (1 - rate) ** burn_in * (start - x)
    torch.testing.assert_close(
        result.hyper["lr"], (trained - y) @ (-window * (1 - rate) ** (window - 1) * burnt)
    )


@pytest.mark.parametrize("keep", [STATES, Keep(checkpoints=True)])
def test_only_the_first_step_is_taken_in_full(keep):
    # theta' = theta - lr c (theta - x), with c = 2 in full and 3 rounded: of the start is left
    # 0.8 * 0.7 * 0.7.
    full, rounded = (
        Eager(lambda theta, batch, _, c=c: c / 2 * (theta - batch.inputs).square().sum())
        for c in (2.0, 3.0)
    )
    x, start = torch.randn(2, 4, generator=generator(0), dtype=torch.float64).unbind()
    problem = InnerProblem(
        ExactStart(rounded, full), lambda leaves, step: Batch(leaves["x"], x), SGD(momentum=0.0)
    )
    result = meta_gradient(
        problem,
        {"x": x},
        lr(0.1),
        problem.optimizer.init(start),
        EagerObjective(lambda theta, *_: theta.sum()),
        [(None, 1.0)],
        burn_in=0,
        window=3,
        keep=keep,
    )
    left = 0.8 * 0.7**2
    torch.testing.assert_close(result.final[0], x + left * (start - x))
    torch.testing.assert_close(result.start[0], torch.full_like(x, left))
    torch.testing.assert_close(result.leaves["x"], torch.full_like(x, 1 - left))


@pytest.mark.parametrize(
    ("ours", "theirs", "milestones"),
    [
        (Adam(), lambda p: torch.optim.Adam(p, lr=0.05), ()),
        (SGD(0.9), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), ()),
        (
            SGD(0.5, 0.1, (2, 4), 0.2),
            lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.5, weight_decay=0.1),
            (2, 4),
        ),
    ],
)
def test_steps_equal_torchs_optimizers(ours, theirs, milestones):
    theta = torch.randn(7, generator=generator(0), dtype=torch.float64)
    parameter = nn.Parameter(theta.clone())
    optimizer = theirs([parameter])
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(milestones), 0.2)
    state = ours.init(theta)
    for step in range(6):
        grad = torch.sin(3 * state[0]) + step
        state = ours.step(state, grad, lr(0.05), step)
        parameter.grad = torch.sin(3 * parameter.detach()) + step
        optimizer.step()
        schedule.step()
        torch.testing.assert_close(state[0], parameter.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "ours",
    [
        Adam(),
        Adam(eps=1e-3, eps_placement="higher-0.2.1"),
        SGD(0.5, 0.1, (2, 4), 0.2),
        AdaBelief(eps=1e-8),
    ],
)
def test_the_optimizer_in_torchs_form_takes_the_same_steps(ours):
    theta = torch.randn(7, generator=generator(0), dtype=torch.float64)
    parameter, state = nn.Parameter(theta.clone()), ours.init(theta)
    optimizer, after_step = ours.in_torch([parameter], 0.05)
    for step in range(6):
        state = ours.step(state, torch.sin(3 * state[0]) + step, lr(0.05), step)
        parameter.grad = torch.sin(3 * parameter.detach()) + step
        optimizer.step()
        after_step()
        torch.testing.assert_close(state[0], parameter.detach(), rtol=1e-12, atol=1e-14)


def test_eps_before_bias_correction_is_what_higher_does():
    # First step, gradient g: torch moves lr g / (|g| + eps), higher 0.2.1 lr g / (|g| + eps /
    # sqrt(1 - beta2)).
    grad, rate, eps = torch.tensor([1e-7, 1.0], dtype=torch.float64), 0.1, 1e-8
    zero = torch.zeros(2, dtype=torch.float64)
    for placement, shift in (("torch", eps), ("higher-0.2.1", eps / math.sqrt(1 - 0.999))):
        rule = Adam(eps=eps, eps_placement=placement)
        moved = rule.step(rule.init(zero), grad, lr(rate), 0)[0]
        torch.testing.assert_close(moved, -rate * grad / (grad + shift), rtol=1e-9, atol=0)


def test_adabelief_is_algorithm_2_of_its_paper():
    beta1, beta2, eps, rate = 0.9, 0.999, 1e-8, 0.05
    ours, theta, mean, belief = AdaBelief(eps=eps), 1.5, 0.0, 0.0
    state = ours.init(torch.tensor([theta], dtype=torch.float64))
    for step in range(8):
        grad = math.sin(3 * theta) + step
        mean = beta1 * mean + (1 - beta1) * grad
        belief = beta2 * belief + (1 - beta2) * (grad - mean) ** 2 + eps
        corrected = mean / (1 - beta1 ** (step + 1)), belief / (1 - beta2 ** (step + 1))
        theta -= rate * corrected[0] / (math.sqrt(corrected[1]) + eps)
        state = ours.step(state, torch.sin(3 * state[0]) + step, lr(rate), step)
        assert float(state[0]) == pytest.approx(theta, rel=1e-12)


def test_a_parameter_that_never_had_a_gradient_gives_no_nan():
    problem = InnerProblem(
        loss=Eager(
            lambda theta, batch, step: (
                (theta * torch.tensor([1.0, 0.0]).double() - batch.inputs) ** 2
            ).sum()
        ),
        batch=lambda leaves, step: Batch(leaves["x"], torch.zeros(len(leaves["x"]))),
        optimizer=Adam(),
    )
    start = problem.optimizer.init(torch.ones(2, dtype=torch.float64))
    x = torch.tensor([0.3, 0.2], dtype=torch.float64)
    result = meta_gradient(
        problem,
        {"x": x},
        lr(0.1),
        start,
        EagerObjective(lambda theta, leaves, part: theta.sum()),
        [(None, 1.0)],
        burn_in=0,
        window=3,
    )
    assert result.final[2][1] == 0  # the case is the one we mean
    assert all(
        tensor.isfinite().all()
        for tensor in (result.leaves["x"], result.hyper["lr"], *result.start)
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_start_that_has_taken_steps_goes_on_as_if_it_had_not_stopped(optimizer):
    # The schedule and Adam's bias correction count from the start's first step, and so do the
    # batches.
    tiny = Tiny.make("mlp")
    problem, rate = tiny.problem(OPTIMIZERS[optimizer], ("rotate",)), lr(0.01)
    loss, parts = objectives(tiny)["mean"]
    objective = EagerObjective(loss)
    start = problem.optimizer.init(tiny.model.theta)
    whole_way = meta_gradient(
        problem, tiny.leaves, rate, start, objective, parts, burn_in=4, window=2
    )
    half_way = meta_gradient(
        problem, tiny.leaves, rate, start, objective, parts, burn_in=3, window=0
    ).final
    rest = meta_gradient(
        problem, tiny.leaves, rate, half_way, objective, parts, burn_in=1, window=2, first=3
    )
    assert torch.equal(rest.leaves["images"], whole_way.leaves["images"])
    assert torch.equal(rest.hyper["lr"], whole_way.hyper["lr"])


KEPT = {"checkpoints": Keep(checkpoints=True), "host": Keep(device=CPU)}


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("window", [0, 1, 2, 5, 9])
def test_what_the_window_keeps_changes_nothing(window, kept):
    tiny = Tiny.make("instance", learn_labels=True)
    problem, rate = tiny.problem(Adam(), ("rotate",)), lr(0.01)
    loss, parts = objectives(tiny)["reads the set"]
    start = problem.optimizer.init(tiny.model.theta)
    plain = meta_gradient(
        problem, tiny.leaves, rate, start, EagerObjective(loss), parts, burn_in=1, window=window
    )
    unrolled = Unrolled(
        problem, tiny.leaves, rate, start, burn_in=1, window=window, keep=KEPT[kept]
    )
    for way_back in range(2):  # it can be differentiated again
        other = unrolled.meta_gradient(EagerObjective(loss), parts)
        for name in tiny.leaves:
            assert_equal(other.leaves[name], plain.leaves[name], f"{name}, {way_back}")
        assert_equal(other.hyper["lr"], plain.hyper["lr"], "lr")
        assert_equal(other.start[1], plain.start[1], "first moment of the start")


def test_rounded_states_move_the_meta_gradient_by_their_rounding():
    tiny = Tiny.make("none")
    problem, rate = tiny.problem(SGD(0.9)), lr(0.01)
    loss, parts = objectives(tiny)["mean"]
    start = problem.optimizer.init(tiny.model.theta)
    plain, rounded = (
        meta_gradient(
            problem,
            tiny.leaves,
            rate,
            start,
            EagerObjective(loss),
            parts,
            burn_in=1,
            window=4,
            keep=keep,
        ).leaves["images"]
        for keep in (STATES, Keep(dtype=torch.bfloat16))
    )
    assert 1e-6 < float((rounded - plain).norm() / plain.norm()) < 0.05


def test_checkpoints_keep_about_twice_the_root_of_the_window():
    assert [Keep(checkpoints=True).segment(window) for window in (1, 2, 4, 5, 9, 10, 100)] == [
        1,
        2,
        2,
        3,
        3,
        4,
        10,
    ]
    assert Keep().segment(20) == 20


@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "batch"])
@pytest.mark.parametrize("size", [1, 3, 4, 9])
@pytest.mark.parametrize("filled", [False, True])
def test_micro_batches_change_nothing(filled, size, network):
    tiny = Tiny.make(network, learn_labels=True)
    whole = cross_entropy(tiny.model)
    parts, along = (
        InMicroBatches(whole, size, filled),
        torch.randn(tiny.model.theta.shape, generator=generator(4), dtype=torch.float64),
    )
    images, targets = (tiny.leaves[name].clone().requires_grad_() for name in ("images", "targets"))
    theta = tiny.model.theta
    for frozen in (0, 2, 6):
        batch = Batch(images, targets, frozen)
        (of_theta, *of_batch), found = (
            loss.product(theta, batch, 0, along) for loss in (whole, parts)
        )
        assert_equal(found[0], of_theta, "theta")
        for one, other in zip(of_batch, found[1:], strict=True):
            assert (one is None) == (other is None) == (frozen == 6)
            if one is not None:
                assert_equal(other[frozen:], one[frozen:], "micro-batches")
        for one, other in zip(
            whole.gradient(theta, batch, 0), parts.gradient(theta, batch, 0), strict=True
        ):
            assert_equal(other, one, "gradient")


class Ledger:
    """Bytes that the graphs under way keep for their backward pass: now, and the most so far."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, tensor: Tensor) -> "Held":
        return Held(tensor, self)


class Held:
    def __init__(self, tensor: Tensor, ledger: Ledger):
        self.tensor, self.ledger, self.size = tensor, ledger, tensor.numel() * tensor.element_size()
        ledger.now += self.size
        ledger.most = max(ledger.most, ledger.now)

    def __del__(self) -> None:
        self.ledger.now -= self.size


def graph_bytes(window: int, real: int, micro: int) -> int:
    """The most bytes that any graph of one meta-gradient kept."""
    tiny, ledger = Tiny.make("none"), Ledger()
    problem = tiny.problem(Adam())
    images, labels = tiny.real[0].repeat(100, 1, 1, 1)[:real], tiny.real[1].repeat(100)[:real]
    parts = [(slice(at, at + micro), micro / real) for at in range(0, real, micro)]
    with torch.autograd.graph.saved_tensors_hooks(ledger.pack, lambda held: held.tensor):
        meta_gradient(
            problem,
            tiny.leaves,
            lr(0.01),
            problem.optimizer.init(tiny.model.theta),
            EagerObjective(
                lambda theta, leaves, rows: F.cross_entropy(
                    tiny.model(theta, images[rows]), labels[rows]
                )
            ),
            parts,
            burn_in=1,
            window=window,
        )
    assert ledger.now == 0
    return ledger.most


def test_no_graph_outlives_its_step_so_memory_is_flat_in_the_window():
    assert graph_bytes(window=12, real=8, micro=8) == graph_bytes(window=2, real=8, micro=8) > 0


def test_a_large_real_batch_costs_the_memory_of_one_micro_batch():
    assert graph_bytes(window=1, real=800, micro=40) == graph_bytes(window=1, real=40, micro=40)
    assert graph_bytes(window=1, real=800, micro=800) > 10 * graph_bytes(
        window=1, real=40, micro=40
    )


def test_dropout_seeded_by_the_step_is_replayed_exactly():
    with global_seed(0, CPU):
        model = FlatModel(
            nn.Sequential(
                nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
            ).double()
        )
    tiny = Tiny.make("mlp")
    plain = Tiny(model, tiny.leaves, tiny.fixed, tiny.real).problem(Adam())

    def seeded(theta: Tensor, batch: Batch, step: int) -> Tensor:
        with global_seed(step, CPU):
            return plain.loss.loss(theta, batch, step)

    problem = InnerProblem(Eager(seeded), plain.batch, plain.optimizer)
    start = problem.optimizer.init(model.theta)
    target = torch.zeros_like(model.theta)
    distance = lambda theta, leaves, part: (theta - part).square().sum()  # noqa: E731
    found = meta_gradient(
        problem,
        tiny.leaves,
        lr(0.01),
        start,
        EagerObjective(distance),
        [(target, 1.0)],
        burn_in=1,
        window=3,
    )
    expected = plain_unroll(
        problem,
        tiny.leaves,
        lr(0.01),
        start,
        lambda theta, leaves: distance(theta, leaves, target),
        burn_in=1,
        window=3,
    )
    assert_equal(found.leaves["images"], expected.leaves["images"], "images")


def test_batch_norm_in_an_unroll_neither_reads_nor_writes_running_statistics():
    tiny = Tiny.make("batch")
    buffers = {name: buffer.clone() for name, buffer in tiny.model.module.named_buffers()}
    inputs = tiny.real[0]
    first = tiny.model(tiny.model.theta, inputs)
    for buffer in tiny.model.module.buffers():
        buffer.fill_(7)
    assert torch.equal(first, tiny.model(tiny.model.theta, inputs))
    for buffer in tiny.model.module.buffers():
        assert (buffer == 7).all()
    assert buffers


def test_only_batch_norm_couples_a_batch():
    assert [network for network in NETWORKS if couples_batch(Tiny.make(network).model.module)] == [
        "batch"
    ]
    assert not couples_batch(nn.InstanceNorm2d(3))


def test_the_flat_model_is_the_module_at_its_own_parameters():
    tiny = Tiny.make("instance")
    torch.testing.assert_close(
        tiny.model(tiny.model.theta, tiny.real[0]), tiny.model.module(tiny.real[0]), rtol=0, atol=0
    )


def test_frozen_parameters_stay_out_of_theta():
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Linear(4, 3)).double()
    module[1].requires_grad_(False)
    model = FlatModel(module)
    assert model.theta.numel() == 4 * 3 + 3
    assert model(model.theta, torch.ones(2, 1, 8, 8, dtype=torch.float64)).shape == (2, 3)


class StraightThrough(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 6), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs.flatten(1)).tanh()
        # The value of a square, the derivative of the identity.
        hidden = hidden + (hidden.square() - hidden).detach()
        return self.second(hidden)


def test_a_detach_inside_a_model_is_seen_in_its_second_derivative():
    inputs = torch.randn(2, 1, 8, 8, generator=generator(0), dtype=torch.float64)
    targets = torch.eye(3, dtype=torch.float64)[:2]
    for network in NETWORKS:
        assert derivative_error(Tiny.make(network).model, inputs, targets, generator(1)) < 1e-6
    with global_seed(0, CPU):
        broken = FlatModel(StraightThrough().double())
    assert derivative_error(broken, inputs, targets, generator(1)) > 0.1
