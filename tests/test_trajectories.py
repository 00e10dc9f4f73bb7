"""Trajectory matching: the whole unroll by autograd as its twin, experts, and what is refused."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_matching import LABELS, convnet, distilled_images, problem
from torch import Tensor, nn

import potstill
from potstill.cache import Cache
from potstill.config.options import declared
from potstill.data import augmentation
from potstill.engine.losses import Batch, Eager
from potstill.errors import InputError
from potstill.evaluation.protocols import DSA
from potstill.evaluation.training import shuffled
from potstill.methods.base import Examples, Problem
from potstill.methods.experts import ExpertOptions, Experts, Sharpness
from potstill.methods.trajectories import FTD, MTT, Tesla
from potstill.models import fresh
from potstill.progress import Listener
from potstill.seeds import derive, generator

CPU = torch.device("cpu")
SMALL = {
    "experts": 2, "expert_batch": 8, "expert_lr": 0.1, "expert_storage": "float32",
    "student_lr": 0.05, "max_start": 2, "expert_epochs": 1,
}  # fmt: skip


def smooth() -> nn.Module:
    """A network whose derivatives are smooth."""
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64, 3)).double()


def task(factory: Any = smooth, operations: tuple[str, ...] = DSA, **options: Any) -> Problem:
    made = problem(factory, operations, **options)
    return dataclasses.replace(made, recipe=dataclasses.replace(made.recipe, augment=operations))


def prepared(kind: Any, given: Problem, folder: Path | None = None, **options: Any) -> Any:
    method = kind(given, kind.Options(**{**SMALL, **options}))
    method.check(Cache(folder))
    method.prepare(Cache(folder))
    return method


def examples(learn: bool = True) -> Examples:
    targets = torch.eye(3, dtype=torch.float64)[LABELS]
    targets = targets * 0.8 + 0.1 if learn else targets
    return Examples(distilled_images(), targets, LABELS, 0, learn)


def by_hand(
    method: MTT, given: Examples, alpha: Tensor, step: int, *, detached: bool
) -> tuple[float, Tensor, Tensor, Tensor]:
    """The loss and its gradients in images, targets and the rate, with the whole graph."""
    options, own = method.options, method.problem
    begin = int(torch.randint(options.max_start, (), generator=own.rng("start", step)))
    expert = method.expert(step)
    theta, target = method.experts.at(expert, (begin, begin + options.expert_epochs), CPU)
    module, start = method.experts.made.model(expert).module, theta
    names = [name for name, _ in module.named_parameters()]
    shapes = [one.shape for one in module.parameters()]
    images, targets, alpha = (
        tensor.detach().clone().requires_grad_() for tensor in (given.images, given.targets, alpha)
    )
    size = options.student_batch or len(images)
    order = shuffled(len(images), size, own.rng("student batches", step))
    for number in range(options.student_steps):
        rows = next(order)
        rng = own.rng("student augmentation", step, number)
        drawn = augmentation.draw(own.recipe.augment, len(rows), rng)
        here = theta.detach() if detached else theta
        here = here.requires_grad_() if not here.requires_grad else here
        parts = here.split([shape.numel() for shape in shapes])
        known = {
            name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)
        }
        logits = torch.func.functional_call(
            module, known, (augmentation.apply(images[rows], drawn),)
        )
        loss = nn.functional.cross_entropy(logits, targets[rows])
        (grad,) = torch.autograd.grad(loss, here, create_graph=True)
        theta = theta - alpha * grad
    final = (theta - target).square().sum() / (start - target).square().sum()
    return float(final.detach()), *torch.autograd.grad(final, (images, targets, alpha))


@pytest.mark.parametrize("student_batch", [0, 4])
@pytest.mark.parametrize("how", ["log", "raw"])
@pytest.mark.parametrize(("kind", "detached"), [(MTT, False), (Tesla, True)])
def test_the_gradient_is_that_of_the_whole_graph(kind, detached, how, student_batch):
    method = prepared(
        kind, task(), student_steps=4, student_batch=student_batch, learn_student_lr=how
    )
    alpha = torch.tensor(0.05, dtype=torch.float64)
    name = "log_student_lr" if how == "log" else "student_lr"
    learned = {name: alpha.log() if how == "log" else alpha}
    for step in range(3):
        found = method.estimate(examples(), learned, {}, step)
        loss, images, targets, rate = by_hand(method, examples(), alpha, step, detached=detached)
        assert found.loss == pytest.approx(loss, rel=1e-12)
        torch.testing.assert_close(found.grads["images"], images, rtol=1e-10, atol=1e-15)
        torch.testing.assert_close(found.grads["targets"], targets, rtol=1e-10, atol=1e-15)
        factor = alpha if how == "log" else 1.0
        torch.testing.assert_close(found.grads[name], factor * rate, rtol=1e-10, atol=1e-15)


def test_tesla_is_mtt_for_one_step_of_the_student_only():
    for steps, same in ((1, True), (4, False)):
        grads = [
            prepared(kind, task(), student_steps=steps).estimate(examples(), {}, {}, 0).grads
            for kind in (MTT, Tesla)
        ]
        one, two = (grad["images"] for grad in grads)
        assert torch.allclose(one, two, rtol=1e-12, atol=1e-16) == same


def test_micro_batches_and_frozen_images_change_nothing_else():
    whole = prepared(MTT, task(), student_steps=3).estimate(examples(), {}, {}, 0)
    cut = prepared(MTT, task(micro_batch=2), student_steps=3).estimate(examples(), {}, {}, 0)
    torch.testing.assert_close(cut.grads["images"], whole.grads["images"], rtol=1e-10, atol=1e-15)
    frozen = dataclasses.replace(examples(), frozen=3)
    found = prepared(MTT, task(), student_steps=3).estimate(frozen, {}, {}, 0)
    moving = found.grads["images"][3:]
    torch.testing.assert_close(moving, whole.grads["images"][3:], rtol=1e-10, atol=1e-15)


def test_a_student_that_stands_still_has_loss_1():
    method = prepared(MTT, task(), student_steps=2, learn_student_lr="off", student_lr=1e-30)
    assert method.estimate(examples(), {}, {}, 0).loss == 1


def test_the_teachers_answers_are_the_labels_that_are_stored():
    method = prepared(Tesla, task(learn_labels=True), student_steps=2, expert_labels=True)
    found = method.estimate(examples(), {}, {}, 0)
    options = method.options
    begin = int(torch.randint(options.max_start, (), generator=method.problem.rng("start", 0)))
    target = method.experts.at(method.expert(0), (begin + options.expert_epochs,), CPU)[0]
    module = smooth()
    nn.utils.vector_to_parameters(target, module.parameters())
    answers = module(distilled_images()).softmax(1).detach()
    torch.testing.assert_close(found.values["targets"], answers)
    assert set(found.grads) == {"images"}


def test_every_expert_comes_once_before_one_comes_again():
    method = prepared(MTT, task(), experts=3, student_steps=1)
    turns = [sorted(method.expert(step) for step in range(at, at + 3)) for at in (0, 3, 6)]
    assert turns == [[0, 1, 2]] * 3
    assert (
        len({tuple(method.expert(step) for step in range(at, at + 3)) for at in range(0, 18, 3)})
        > 1
    )


def test_an_expert_is_a_network_in_training():
    given = task()
    made = Experts(given, ExpertOptions(**options_of_experts()), 2)
    held, seed = made.trajectory(1), derive(0, "expert", 1)
    module = fresh(smooth, seed, CPU)
    start = nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    torch.testing.assert_close(held["start"], start)
    rule, rng = torch.optim.SGD(module.parameters(), 0.1), generator(seed, "batches")
    rows = shuffled(len(given.real.train), 8, rng)
    for epoch in range(2):
        for _ in range(8):  # sixty images in batches of eight, the last of four
            images, labels = given.real.train.take(next(rows))
            drawn = augmentation.draw(DSA, len(labels), rng)
            rule.zero_grad()
            nn.functional.cross_entropy(
                module(augmentation.apply(images, drawn)), labels
            ).backward()
            rule.step()
        reached = nn.utils.parameters_to_vector(module.parameters()).detach()
        there = start + held["moves"][: epoch + 1].sum(0)
        torch.testing.assert_close(there, reached, rtol=1e-9, atol=1e-12)


def options_of_experts(**changed: Any) -> dict[str, Any]:
    own = {item.name for item, _ in declared(ExpertOptions)}
    return {name: value for name, value in {**SMALL, **changed}.items() if name in own}


def test_bfloat16_keeps_a_trajectory_to_half_a_percent_of_its_last_move(tmp_path):
    exact, rounded = (
        Experts(task(), ExpertOptions(**options_of_experts(expert_storage=storage)), 5).prepare(
            Cache(tmp_path)
        )
        for storage in ("float32", "bfloat16")
    )
    for epoch in range(1, 6):
        here, before = exact.at(0, (epoch,), CPU)[0], exact.at(0, (epoch - 1,), CPU)[0]
        error = (rounded.at(0, (epoch,), CPU)[0] - here).norm() / (here - before).norm()
        assert 0 < error < 0.005


def test_experts_are_trained_once_and_longer_ones_serve_shorter_runs(tmp_path):
    told: list[str] = []

    def trained(epochs: int, **changed: Any) -> int:
        told.clear()
        cache = Cache(tmp_path, None, Listener(say=told.append))
        Experts(task(), ExpertOptions(**options_of_experts(**changed)), epochs).prepare(cache)
        return len(told)

    assert trained(2) == 1
    assert "training 2 experts for 2 epochs each" in told[0]
    assert trained(2) == trained(1) == 0
    assert trained(3) == 1
    assert trained(2) == 0
    assert trained(3, experts=3) == 1
    assert told[0].startswith("training 1 expert for 3 epochs")
    for other in ({"expert_lr": 0.2}, {"expert_batch": 9}, {"expert_seed": 1}):
        assert trained(2, **other) == 1


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"factory": convnet()}, "another network"),
        ({"identity": "other"}, "another data"),
        ({"operations": ("flip",)}, "augment"),
        ({"expert_lr": 0.2}, "learning rate 0.1"),
    ],
)
def test_a_folder_of_other_experts_is_refused(other, what, tmp_path):
    own = {"expert_folder": str(tmp_path / "mine"), "student_steps": 1}
    prepared(MTT, task(), **own)
    prepared(MTT, task(), **own)  # the same
    for_problem = {
        name: other[name] for name in other if name in ("factory", "identity", "operations")
    }
    for_options = {name: other[name] for name in other if name not in for_problem}
    with pytest.raises(
        InputError, match=f"expert_folder must hold .* {what}.*leave --expert-folder out"
    ):
        prepared(MTT, task(**for_problem), **{**own, **for_options})


def test_a_disk_that_is_too_small_is_told_before_training(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=50_001_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        InputError, match="must have 0 MB for experts, 0 MB can be used; lower --experts"
    ):
        prepared(MTT, task(), tmp_path, student_steps=1)
    assert not list(tmp_path.rglob("*.safetensors"))


class Quadratic:
    """The gradient and loss of theta' H theta / 2."""

    def __init__(self) -> None:
        rng = generator(1, "quadratic")
        half = torch.randn(7, 7, generator=rng, dtype=torch.float64)
        self.hessian = half @ half.T
        self.theta = torch.randn(7, generator=rng, dtype=torch.float64)
        self.loss = Eager(lambda theta, batch, step: theta @ self.hessian @ theta / 2)


def test_flat_experts_descend_as_their_formula_says():
    one = Quadratic()
    theta, grad = one.theta, one.hessian @ one.theta
    none: Any = Batch(torch.empty(0), torch.empty(0))
    torch.testing.assert_close(Sharpness(0.0, 0.3).direction(one.loss, theta, none, 0), grad)
    uphill = 0.5 * theta.square() * grad / (theta.abs() * grad).norm()
    above = grad + one.hessian @ uphill
    torch.testing.assert_close(Sharpness(0.5, 0.0).direction(one.loss, theta, none, 0), above)
    left_out = above - Sharpness(0.5, 1.0).direction(one.loss, theta, none, 0)
    assert float(left_out @ above) == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(left_out, grad - above * (grad @ above) / above.square().sum())


def test_flat_experts_are_others_and_ftd_uses_them(tmp_path):
    plain, flat = prepared(MTT, task(), tmp_path), prepared(FTD, task(), tmp_path, flat_rho=0.5)
    assert not torch.equal(plain.experts.at(0, (1,), CPU)[0], flat.experts.at(0, (1,), CPU)[0])
    same = prepared(FTD, task(), tmp_path, flat_rho=0.0)
    assert torch.equal(plain.experts.at(0, (1,), CPU)[0], same.experts.at(0, (1,), CPU)[0])


def test_answers_are_one_for_examples_that_share_their_label():
    given = task(learn_labels=True, sharing=2)
    method = prepared(Tesla, given, student_steps=2, expert_labels=True)
    found = method.estimate(examples(), {}, {}, 0).values["targets"]
    assert torch.equal(found[::2], found[1::2])
    alone = prepared(Tesla, task(learn_labels=True), student_steps=2, expert_labels=True)
    each = alone.estimate(examples(), {}, {}, 0).values["targets"]
    torch.testing.assert_close(found[::2], (each[::2] + each[1::2]) / 2)


def test_answers_of_an_expert_need_labels_that_are_stored(tmp_path):
    with pytest.raises(InputError, match="expert_labels needs a set that stores labels; give"):
        prepared(Tesla, task(), tmp_path, expert_labels=True)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_options_without_effect_are_refused():
    with pytest.raises(InputError, match="lr_lr has no effect with learn_student_lr off, which"):
        MTT.Options(learn_student_lr="off", lr_lr=1e-5)
    with pytest.raises(InputError, match="flat_alpha has no effect with flat_rho 0, which trains"):
        FTD.Options(flat_rho=0, flat_alpha=1.0)


def test_precision_and_fitted_preprocessing_tell_experts_apart(tmp_path):
    def key(**options: Any) -> Any:
        distilled = potstill.distill(
            data="digits", method="mtt", steps=1, experts=1, max_start=1, expert_epochs=1,
            student_steps=1, width=8, lengths=(2,), validation_nets=1, cache_dir=str(tmp_path),
            **options,
        )  # fmt: skip
        assert distilled
        return len(list(tmp_path.rglob("*.safetensors")))

    assert key(precision="float32") == 1
    assert key(precision="bfloat16") == 2
    assert key(precision="float32", seed=1) == 2
    assert key(precision="float32", split_seed=1) == 3
