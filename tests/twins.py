"""Slow, plain twins of what the library does fast, and the tiny problems on which both are run in
float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.data import augmentation
from potstill.engine.flat import FlatModel
from potstill.engine.losses import Batch, Eager
from potstill.engine.optimizers import SGD, AdaBelief, Adam, Optimizer
from potstill.engine.unroll import EagerObjective, InnerProblem, Leaves, MetaGradient, meta_gradient
from potstill.models.convnet import ConvNet
from potstill.models.mlp import MLP
from potstill.parameterisations.base import Budget
from potstill.parameterisations.pixels import Pixels
from potstill.seeds import generator, global_seed

CPU = torch.device("cpu")


def pixels(
    ipc: int, classes: int, shape: tuple[int, int, int], *, learn_labels: bool = False
) -> Pixels:
    """So many images of each class by their own pixels."""
    return Pixels(Budget(shape, classes, ipc, learn_labels))


def plain_adam(
    theta: Tensor, grad: Tensor, memory: list[Tensor], lr: Tensor, count: int, placement: str
) -> Tensor:
    """Adam as its paper writes it, or with eps where higher 0.2.1 has it; out-of-place, with its
    graph.
    """
    memory[0] = 0.9 * memory[0] + (1 - 0.9) * grad
    memory[1] = 0.999 * memory[1] + (1 - 0.999) * grad**2
    seen = memory[1] > 0  # a unit that is dead from the start never moves
    denominator = torch.zeros_like(theta)
    if placement == "torch":
        denominator[seen] = (memory[1][seen] / (1 - 0.999 ** (count + 1))) ** 0.5
        return theta - lr * memory[0] / (1 - 0.9 ** (count + 1)) / (denominator + 1e-8)
    denominator[seen] = memory[1][seen] ** 0.5
    return theta - lr * (1 - 0.999 ** (count + 1)) ** 0.5 / (1 - 0.9 ** (count + 1)) * memory[0] / (
        denominator + 1e-8
    )


def plain_sgd(
    theta: Tensor, grad: Tensor, memory: list[Tensor], lr: Tensor, count: int, rule: SGD
) -> Tensor:
    """SGD as torch.optim documents it, learning rate after `count` steps of MultiStepLR; with its
    graph.
    """
    grad = grad + rule.weight_decay * theta
    memory[0] = rule.momentum * memory[0] + grad
    for milestone in rule.milestones:
        if count >= milestone:
            lr = lr * rule.decay
    return theta - lr * memory[0]


def plain_adabelief(
    theta: Tensor, grad: Tensor, memory: list[Tensor], lr: Tensor, count: int, eps: float
) -> Tensor:
    """AdaBelief as Algorithm 2 of Zhuang et al. 2020 has it; with its graph."""
    memory[0] = 0.9 * memory[0] + 0.1 * grad
    memory[1] = 0.999 * memory[1] + (1 - 0.999) * (grad - memory[0]) ** 2 + eps
    belief = memory[1] / (1 - 0.999 ** (count + 1))
    return theta - lr * memory[0] / (1 - 0.9 ** (count + 1)) / (belief**0.5 + eps)


def plain_step(
    rule: Optimizer, theta: Tensor, grad: Tensor, memory: list[Tensor], lr: Tensor, count: int
) -> Tensor:
    """One step of the rule; `memory` takes the new moments."""
    if isinstance(rule, Adam):
        return plain_adam(theta, grad, memory, lr, count, rule.eps_placement)
    if isinstance(rule, AdaBelief):
        return plain_adabelief(theta, grad, memory, lr, count, rule.eps)
    assert isinstance(rule, SGD)
    return plain_sgd(theta, grad, memory, lr, count, rule)


def plain_unroll(
    problem: InnerProblem,
    leaves: Leaves,
    hyper: Leaves,
    start: Sequence[Tensor],
    outer: Callable[[Tensor, Leaves], Tensor],
    *,
    burn_in: int,
    window: int,
) -> MetaGradient:
    """The meta-gradient by one graph over the whole window, kept by create_graph=True."""
    theta, memory = start[0].detach(), [moment.detach() for moment in start[1:]]
    for step in range(burn_in):
        theta = theta.detach().requires_grad_()
        (grad,) = torch.autograd.grad(
            problem.loss.loss(theta, problem.batch(leaves, step), step), theta
        )
        theta = plain_step(problem.optimizer, theta, grad, memory, hyper["lr"], step).detach()
        memory = [moment.detach() for moment in memory]
    theta = first = theta.clone().requires_grad_()
    memory = first_memory = [moment.clone().requires_grad_() for moment in memory]
    memory = list(memory)
    wanted = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    lr = hyper["lr"].clone().requires_grad_()
    for step in range(burn_in, burn_in + window):
        (grad,) = torch.autograd.grad(
            problem.loss.loss(theta, problem.batch(wanted, step), step), theta, create_graph=True
        )
        theta = plain_step(problem.optimizer, theta, grad, memory, lr, step)
    loss = outer(theta, wanted)
    grads = torch.autograd.grad(
        loss,
        [*wanted.values(), lr, first, *first_memory],
        allow_unused=True,
        materialize_grads=True,
    )
    count = len(wanted)
    found = dict(zip(wanted, grads[:count], strict=True))
    return MetaGradient(
        loss.detach(),
        found,
        {"lr": grads[count]},
        tuple(grads[count + 1 :]),
        tuple(t.detach() for t in (theta, *memory)),
    )


OPTIMIZERS: dict[str, Optimizer] = {
    "adabelief": AdaBelief(eps=1e-8),
    "adam": Adam(),
    "adam-higher": Adam(eps_placement="higher-0.2.1"),
    "sgd": SGD(momentum=0.9),
    "sgd-schedule": SGD(momentum=0.5, weight_decay=0.01, milestones=(1, 3), decay=0.3),
}


@dataclass(frozen=True)
class Tiny:
    """A small float64 problem: 6 distilled images of 3 classes, 1 x 8 x 8, and 10 real ones."""

    model: FlatModel
    leaves: dict[str, Tensor]
    fixed: dict[str, Tensor]
    real: tuple[Tensor, Tensor]

    @classmethod
    def make(cls, network: str, *, learn_labels: bool = False, seed: int = 0) -> "Tiny":
        with global_seed(seed, CPU):
            module: nn.Module = (
                MLP((1, 8, 8), 3, width=5, depth=2)
                if network == "mlp"
                else ConvNet((1, 8, 8), 3, width=16, depth=2, norm=network)
            )
        return cls.of(module, learn_labels=learn_labels, seed=seed)

    @classmethod
    def of(cls, module: nn.Module, *, learn_labels: bool = False, seed: int = 0) -> "Tiny":
        rng = generator(seed, "tiny")
        images = torch.randn(6, 1, 8, 8, generator=rng, dtype=torch.float64)
        targets = F.one_hot(torch.arange(6) % 3, 3).double()
        targets = targets + 0.3 * torch.rand(6, 3, generator=rng, dtype=torch.float64)
        real = torch.randn(10, 1, 8, 8, generator=rng, dtype=torch.float64), torch.arange(10) % 3
        learned = {"images": images, "targets": targets} if learn_labels else {"images": images}
        return cls(
            FlatModel(module.double()), learned, {} if learn_labels else {"targets": targets}, real
        )

    def problem(self, optimizer: Optimizer, operations: tuple[str, ...] = ()) -> InnerProblem:
        def batch(leaves: Leaves, step: int) -> Batch:
            rng = generator(1, "batch", step)
            rows = torch.randperm(6, generator=rng)[:4]
            drawn = augmentation.draw(operations, 4, rng)
            both = {**self.fixed, **leaves}
            return Batch(augmentation.apply(both["images"][rows], drawn), both["targets"][rows])

        def loss(theta: Tensor, batch: Batch, step: int) -> Tensor:
            return F.cross_entropy(self.model(theta, batch.inputs), batch.targets)

        return InnerProblem(Eager(loss), batch, optimizer)


def lr(value: float) -> dict[str, Tensor]:
    """The hyper-parameters: a learning rate in float64."""
    return {"lr": torch.tensor(value, dtype=torch.float64)}


__all__ = [
    "CPU",
    "OPTIMIZERS",
    "EagerObjective",
    "Tiny",
    "lr",
    "meta_gradient",
    "pixels",
    "plain_unroll",
]
