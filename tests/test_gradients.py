"""Gradient matching: closed forms, a double backward as its twin, and what both sides share."""

import dataclasses
from typing import Any

import pytest
import torch
from test_matching import LABELS, convnet, distilled_images, problem
from torch import Tensor, nn

from potstill.data import augmentation
from potstill.engine.flat import FlatModel
from potstill.errors import InputError
from potstill.evaluation.protocols import DSA as OPERATIONS
from potstill.methods.base import Estimate, Examples, Problem
from potstill.methods.gradients import DC, Distance, GradientOptions, published_loops
from potstill.models import fresh
from potstill.seeds import derive, generator

EXACT = {"rtol": 1e-10, "atol": 1e-13}


class SoftmaxLinear(nn.Module):
    """One linear layer, the same for every seed."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 3).double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(inputs.flatten(1))


def smooth() -> nn.Module:
    """A network whose derivatives are smooth, with weights of two and of four dimensions."""
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, 3)).double()


def estimate(
    task: Problem, images: Tensor, step: int = 0, state: Any = None, **options: Any
) -> Estimate:
    given = {"real_per_class": 20, "network_steps": 1, "network_epochs": 0, **options}
    method = DC(task, GradientOptions(**given))
    targets = torch.eye(3, dtype=torch.float64)[task.labels]
    start = method.start()[0] if state is None else state
    return method.estimate(Examples(images, targets, task.labels), {}, start, step)


def gradients(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    rng = generator(seed, "gradients")
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]


SHAPES = ((4, 1, 3, 3), (4,), (3, 64), (3,))


def test_the_distance_of_a_gradient_from_itself_is_its_published_remainder():
    own, eps = gradients(*SHAPES), 0.3
    rows = torch.cat([part.flatten(1).square().sum(1) for part in (own[0], own[2])])
    distance = Distance("rows", eps, relative=False)
    torch.testing.assert_close(distance(own, own), (eps / (rows + eps)).sum())
    opposite = [-part for part in own]
    torch.testing.assert_close(distance(opposite, own), (1 + rows / (rows + eps)).sum())


def test_one_dimensional_parameters_count_in_the_other_distances_only():
    own, other = gradients(*SHAPES), gradients(*SHAPES, seed=1)
    changed = [other[0], other[1] + 1, other[2], other[3] - 1]
    for kind, same in (("rows", True), ("cosine", False), ("squares", False)):
        distance = Distance(kind, 1e-6, relative=False)
        assert (distance(own, other) == distance(own, changed)) == same
    squares = sum(float((one - two).square().sum()) for one, two in zip(own, other, strict=True))
    assert float(Distance("squares", 0, relative=False)(own, other)) == pytest.approx(squares)


@pytest.mark.parametrize("relative", [False, True])
def test_without_eps_and_with_a_relative_one_scale_does_not_matter(relative):
    own, other = gradients(*SHAPES), gradients(*SHAPES, seed=1)
    distance = Distance("rows", 1e-6 if relative else 0, relative)
    far = [1e-4 * part for part in other]
    torch.testing.assert_close(distance(own, far), distance(own, other), rtol=1e-12, atol=0)
    assert Distance("rows", 1e-6, relative=False)(own, far) != distance(own, far)


def test_a_row_without_gradient_costs_1_and_its_derivative_is_finite():
    zero = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
    other = gradients((2, 5))[0]
    for eps in (0.0, 1e-6):
        value = Distance("rows", eps, relative=False)([zero], [other])
        assert float(value.detach()) == 2
        assert torch.autograd.grad(value, zero)[0].isfinite().all()


def test_softmax_regression_on_one_image_a_side_has_its_closed_form():
    # Every row of a gradient is a multiple of the image, and both signs are alike.
    task = problem(SoftmaxLinear, labels=torch.arange(3))
    images = distilled_images()[:3]
    found = estimate(task, images, real_per_class=1, distance_eps=0.0)
    rows = DC(task, GradientOptions(1, 1, 0)).real.draw([0, 1, 2], 1, task.rng("real batch", 0))
    real = torch.cat([task.real.train.take(own)[0] for own in rows])
    cosines = torch.cosine_similarity(images.flatten(1), real.flatten(1), dim=1)
    assert found.loss == pytest.approx(float(3 * (1 - cosines).sum()), rel=1e-10)


def plain(
    task: Problem, images: Tensor, step: int = 0, theta: Tensor | None = None
) -> tuple[float, Tensor]:
    """The loss and its gradient by a double backward through everything at once."""
    module = fresh(task.networks.factory, derive(0, "start", step), torch.device("cpu"))
    parameters = list(module.parameters())
    if theta is not None:
        nn.utils.vector_to_parameters(theta, parameters)
    images, total = images.detach().requires_grad_(), torch.zeros((), dtype=torch.float64)
    for label in range(3):
        drawn = augmentation.shared_draw(task.real.augment, task.rng("augmentation", step, label))
        real = task.real.train.take(torch.nonzero(task.real.train.labels == label)[:, 0])[0]
        sides = []
        for some, graph in ((real, False), (images[task.labels == label], True)):
            logits = module(augmentation.apply(some, drawn))
            loss = nn.functional.cross_entropy(logits, torch.full((len(some),), label))
            sides.append(torch.autograd.grad(loss, parameters, create_graph=graph))
        for wanted, own in zip(*sides, strict=True):
            if own.dim() > 1:
                one, two = own.flatten(1), wanted.flatten(1)
                total += (1 - (one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1) + 1e-6)).sum()
    return float(total.detach()), torch.autograd.grad(total, images)[0]


@pytest.mark.parametrize(
    "factory", [smooth, convnet(norm="group"), convnet()], ids=["smooth", "group", "instance"]
)
@pytest.mark.parametrize("micro_batch", [1, 100])
def test_one_hessian_product_is_the_double_backward(factory, micro_batch):
    task = problem(factory, OPERATIONS, micro_batch=micro_batch)
    for step in range(3):
        found = estimate(task, distilled_images(), step)
        loss, grad = plain(task, distilled_images(), step)
        assert found.loss == pytest.approx(loss, rel=1e-10)
        torch.testing.assert_close(found.grads["images"], grad, **EXACT)


def test_frozen_images_count_and_ask_for_nothing():
    task = problem(smooth)
    method = DC(task, GradientOptions(20, 1, 0))
    targets = torch.eye(3, dtype=torch.float64)[LABELS]
    order = torch.tensor([0, 2, 4, 1, 3, 5])  # the first of each class, then the second
    task = dataclasses.replace(task, labels=LABELS[order])
    method = DC(task, GradientOptions(20, 1, 0))
    given = Examples(distilled_images()[order], targets[order], LABELS[order], 3)
    found = method.estimate(given, {}, {}, 0)
    loss, grad = plain(task, distilled_images()[order])
    assert found.loss == pytest.approx(loss, rel=1e-10)
    torch.testing.assert_close(found.grads["images"][3:], grad[3:], **EXACT)


def test_the_gradient_is_that_of_finite_differences():
    task, images = problem(smooth), distilled_images()
    along = torch.randn(images.shape, generator=generator(5), dtype=torch.float64)
    up, down = (estimate(task, images + sign * 1e-5 * along).loss for sign in (1, -1))
    slope = float((estimate(task, images).grads["images"] * along).sum())
    assert slope == pytest.approx((up - down) / 2e-5, rel=1e-6)


def test_order_and_repetition_within_a_class_do_not_matter():
    task, images = problem(smooth), distilled_images()
    swapped = images[torch.tensor([1, 0, 2, 3, 5, 4])]
    assert estimate(task, swapped).loss == pytest.approx(estimate(task, images).loss, rel=1e-12)


@pytest.mark.parametrize("step", range(8))
def test_the_real_images_themselves_leave_the_remainder_of_eps_alone(step):
    # Under one draw for both sides; with one each, the gradients would differ.
    labels = torch.arange(3).repeat_interleave(20)
    task = problem(smooth, OPERATIONS, labels=labels)
    images = task.real.train.take(torch.arange(60))[0]
    found = estimate(task, images, step, distance_eps=0.0)
    assert found.loss < 1e-10


def test_a_network_lives_for_its_steps_and_trains_on_the_set_in_between():
    task, images = problem(smooth), distilled_images()
    options = {"network_steps": 3, "network_epochs": 4}
    first = estimate(task, images, 0, **options)
    moved = images + 0.1
    second = estimate(task, moved, 1, first.state, **options)
    # By hand: four epochs of one batch, plain SGD at 0.01, on the images as they are now.
    module = fresh(task.networks.factory, derive(0, "start", 0), torch.device("cpu"))
    rule = torch.optim.SGD(module.parameters(), 0.01)
    for _ in range(4):
        rule.zero_grad()
        nn.functional.cross_entropy(module(moved), LABELS).backward()
        rule.step()
    theta = nn.utils.parameters_to_vector(module.parameters()).detach()
    torch.testing.assert_close(second.state["theta"], theta, **EXACT)
    loss, grad = plain(task, moved, 1, theta)
    assert second.loss == pytest.approx(loss, rel=1e-10)
    torch.testing.assert_close(second.grads["images"], grad, **EXACT)
    # After its last step it makes room for a fresh one.
    fourth = estimate(task, moved, 3, second.state, **options)
    start = FlatModel(
        fresh(task.networks.factory, derive(0, "start", 1), torch.device("cpu"))
    ).theta
    torch.testing.assert_close(fourth.state["theta"], start)


def test_published_loops_hold_for_their_sizes_and_the_next_lower_one_for_others():
    assert [published_loops(ipc) for ipc in (1, 10, 50)] == [(1, 1), (10, 50), (50, 10)]
    assert [published_loops(ipc) for ipc in (2, 15)] == [(1, 1), (10, 50)]
    assert published_loops(200) == (50, 10)


def test_a_class_without_real_images_of_weight_is_told():
    from potstill.data.sampling import Weighted

    task = problem(smooth)
    weights = torch.ones(60, dtype=torch.float64)
    weights[20:40] = 0
    real = dataclasses.replace(task.real, sampler=Weighted(weights))
    with pytest.raises(InputError, match="class 1 has none"):
        estimate(dataclasses.replace(task, real=real), distilled_images())


def test_a_skipped_first_step_leaves_no_other_network_behind():
    task, images = problem(smooth), distilled_images()
    options = {"network_steps": 3, "network_epochs": 4}
    before = estimate(task, images, 2, estimate(task, images, 1, **options).state, **options)
    after_skip = estimate(task, images, 4, before.state, **options)  # step 3 was skipped
    module = fresh(task.networks.factory, derive(0, "start", 1), torch.device("cpu"))
    torch.testing.assert_close(after_skip.state["theta"], FlatModel(module).theta)


@pytest.mark.parametrize("options", [{"distance_eps": 0.1}, {"relative_eps": True}])
def test_eps_is_refused_where_nothing_is_divided(options):
    with pytest.raises(InputError, match="distance_eps and relative_eps have no effect with dist"):
        GradientOptions(distance="squares", **options)
