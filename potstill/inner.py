"""The core: optimiser steps as pure functions, and the exact meta-gradient of an unroll in memory that is flat in the window.

An unroll takes `burn_in` steps without a derivative and then `window` differentiated ones, on a state of flat vectors
(parameters, moments). Nothing keeps the graph of more than one step: the forward pass keeps the state and the gradient
before each differentiated step, and the way back rebuilds one step at a time. With lambda the cotangent of the state,

1. the transpose of the optimiser's step turns lambda into the cotangent `a` of that step's gradient, the cotangent of the
   older state, and cotangents of the hyper-parameters;
2. one Hessian product, d/d(theta, batch) <grad_theta loss, a>, gives what reaches the older parameters and the batch;
3. the batch's cotangents go back through augmentation, selection and parameterisation to the leaves;
4. what is left of lambda at the window's start is the cotangent of the state there.

Source: equations (2) to (4) and Algorithm 1 of Feng, Vedantam & Kempe 2024, arXiv:2311.07025. Replaying instead of
storing the graph is reverse-mode differentiation with a checkpoint at every step.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from potstill.seeds import global_seed

State = tuple[Tensor, ...]
"""An optimiser's state: the flat parameters first, then its moments, each of the same length."""
Leaves = Mapping[str, Tensor]
"""What is learned: name -> tensor."""
Batch = tuple[Tensor, ...]
"""What the inner loss reads at one step, usually (inputs (B, ...), targets (B, K) probabilities)."""


class InnerOptimizer(Protocol):
    """An optimiser as one pure, differentiable, elementwise function of flat vectors."""

    def init(self, theta: Tensor) -> State:
        """The state before the first step."""
        ...

    def step(self, state: State, grad: Tensor, hyper: Leaves, count: int) -> State:
        """The state after step number `count` (the first is 0); `hyper` holds 0-d tensors such as "lr"."""
        ...


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015, Algorithm 1).

    Args:
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the denominator.
        eps_placement: "torch" adds eps after bias correction, as the paper and torch.optim do; "higher-0.2.1" adds it
            before, as the PyPI release of `higher` does with which RaT-BPTT's results were made.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    eps_placement: str = "torch"

    def init(self, theta: Tensor) -> State:
        return theta, torch.zeros_like(theta), torch.zeros_like(theta)

    def step(self, state: State, grad: Tensor, hyper: Leaves, count: int) -> State:
        theta, mean, square = state
        mean = self.beta1 * mean + (1 - self.beta1) * grad
        square = self.beta2 * square + (1 - self.beta2) * grad.square()
        correction1, correction2 = 1 - self.beta1 ** (count + 1), 1 - self.beta2 ** (count + 1)
        if self.eps_placement == "torch":
            return theta - hyper["lr"] * (mean / correction1) / (root(square / correction2) + self.eps), mean, square
        scale = hyper["lr"] * (correction2**0.5 / correction1)
        return theta - scale * mean / (root(square) + self.eps), mean, square


def root(x: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0: a parameter that never had a gradient would else turn all to NaN."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0)


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum, L2 weight decay and a step schedule, as torch.optim.SGD and MultiStepLR.

    Args:
        momentum: factor on the velocity.
        weight_decay: this times the parameters is added to the gradient.
        milestones: steps from which on the learning rate is multiplied by `decay`, once for each (paper D.6).
        decay: that factor.
    """

    momentum: float = 0.9
    weight_decay: float = 0.0
    milestones: tuple[int, ...] = ()
    decay: float = 0.2

    def init(self, theta: Tensor) -> State:
        return theta, torch.zeros_like(theta)

    def step(self, state: State, grad: Tensor, hyper: Leaves, count: int) -> State:
        theta, velocity = state
        velocity = self.momentum * velocity + grad + self.weight_decay * theta
        factor = self.decay ** sum(count >= milestone for milestone in self.milestones)
        return theta - hyper["lr"] * factor * velocity, velocity


class FlatModel:
    """A module as a function of one flat parameter vector.

    The module stays in training mode, but batch norm neither reads nor writes running statistics: inside an unroll it
    normalises by the batch, so that a replayed step repeats exactly. Parameters that do not require a gradient, and
    buffers, keep the module's own values.
    """

    def __init__(self, module: nn.Module):
        self.module = module.train()
        for part in module.modules():
            if isinstance(part, _NormBase):
                part.track_running_stats = False
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.names, self.shapes = list(named), [p.shape for p in named.values()]
        self.sizes = [p.numel() for p in named.values()]
        self.theta = torch.cat([p.detach().reshape(-1) for p in named.values()])

    def __call__(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """The module's output on `inputs` with the parameters `theta`."""
        parts = zip(self.names, theta.split(self.sizes), self.shapes, strict=True)
        parameters = {name: part.view(shape) for name, part, shape in parts}
        return torch.func.functional_call(self.module, parameters, (inputs,))  # type: ignore[no-any-return]


def couples_batch(module: nn.Module) -> bool:
    """Whether an example's output depends on the rest of its batch: batch norm in training mode."""
    return any(isinstance(part, _NormBase) and not isinstance(part, _InstanceNorm) for part in module.modules())


@dataclass(frozen=True)
class InnerProblem:
    """What the inner loop does at each step; every part gives the same for the same arguments, or replay is not exact.

    Args:
        loss: (theta, batch, step) -> scalar.
        batch: (leaves, step) -> batch, differentiable in the leaves.
        optimizer: the pure optimiser step.
    """

    loss: Callable[[Tensor, Batch, int], Tensor]
    batch: Callable[[Leaves, int], Batch]
    optimizer: InnerOptimizer


Objective = Callable[[Tensor, Leaves, Any], Tensor]
"""(theta after the last step, leaves, part of the real data) -> scalar."""


@dataclass(frozen=True)
class MetaGradient:
    """The outer loss of one unroll and its cotangents.

    Args:
        loss: the outer loss, 0-d.
        leaves: d loss / d leaf, for every leaf.
        hyper: d loss / d hyper-parameter, for every one.
        start: d loss / d (state before the first differentiated step); of the start itself when there is no burn-in.
        final: the optimiser's state after the last step.
    """

    loss: Tensor
    leaves: dict[str, Tensor]
    hyper: dict[str, Tensor]
    start: State
    final: State


def meta_gradient(
    problem: InnerProblem,
    leaves: Leaves,
    hyper: Leaves,
    start: State,
    objective: Objective,
    parts: Iterable[tuple[Any, float]],
    *,
    burn_in: int,
    window: int,
    first: int = 0,
) -> MetaGradient:
    """Train for burn_in + window steps and differentiate the outer loss through the last `window` of them.

    Args:
        problem: the inner loop.
        leaves: what is learned; never changed.
        hyper: the optimiser's hyper-parameters, 0-d tensors; at least "lr".
        start: the optimiser's state to start from, fresh (`optimizer.init`) or of a partly trained network.
        objective: the outer loss at the trained parameters; it may read the leaves directly.
        parts: (part, weight) pairs; the outer loss is the weighted sum of the objective over the parts. Micro-batches of a
            mean over examples have weights n_i / n and cost the memory of one; an objective that couples its batch takes one part.
        burn_in: steps without a derivative.
        window: differentiated steps after them.
        first: number of the first step, for a start that has already taken some.
    Returns:
        The loss and its cotangents.
    """
    state = tuple(tensor.detach() for tensor in start)
    state, _ = forward(problem, leaves, hyper, state, range(first, first + burn_in))
    steps = range(first + burn_in, first + burn_in + window)
    state, tape = forward(problem, leaves, hyper, state, steps, keep=True)
    loss, of_theta, of_leaves = outer_gradient(objective, state[0], leaves, parts)
    adjoint = (of_theta, *(torch.zeros_like(moment) for moment in state[1:]))
    of_hyper = {name: torch.zeros_like(value) for name, value in hyper.items()}
    for step in reversed(steps):
        before, grad = tape[step - steps.start]
        older, of_grad, more_hyper = optimizer_transpose(problem.optimizer, before, grad, hyper, step, adjoint)
        of_theta, more_leaves = step_product(problem, before[0], leaves, step, of_grad)
        adjoint = (older[0] + of_theta, *older[1:])
        for name, more in more_leaves.items():
            of_leaves[name] += more
        for name, more in more_hyper.items():
            of_hyper[name] += more
    return MetaGradient(loss, of_leaves, of_hyper, adjoint, state)


class Tape:
    """The state and the gradient before each differentiated step, in buffers allocated once."""

    def __init__(self, state: State, length: int):
        self.buffers = tuple(tensor.new_empty((length, *tensor.shape)) for tensor in (*state, state[0]))

    def __setitem__(self, index: int, kept: tuple[State, Tensor]) -> None:
        for buffer, tensor in zip(self.buffers, (*kept[0], kept[1]), strict=True):
            buffer[index] = tensor

    def __getitem__(self, index: int) -> tuple[State, Tensor]:
        *state, grad = (buffer[index] for buffer in self.buffers)
        return tuple(state), grad


def forward(
    problem: InnerProblem, leaves: Leaves, hyper: Leaves, state: State, steps: range, *, keep: bool = False
) -> tuple[State, Tape]:
    """Take `steps` without a graph; the state after them and, with `keep`, the tape of what the way back needs."""
    tape = Tape(state, len(steps) if keep else 0)
    for step in steps:
        with torch.no_grad():
            batch = problem.batch(leaves, step)
        theta = state[0].detach().requires_grad_()
        (grad,) = torch.autograd.grad(problem.loss(theta, batch, step), theta)
        if keep:
            tape[step - steps.start] = state, grad
        with torch.no_grad():
            state = problem.optimizer.step(state, grad, hyper, step)
    return state, tape


def outer_gradient(
    objective: Objective, theta: Tensor, leaves: Leaves, parts: Iterable[tuple[Any, float]]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The weighted sum of the objective over the parts, and its gradients in theta and the leaves, part by part."""
    theta, wanted = theta.detach().requires_grad_(), with_grad(leaves)
    total, of_theta = theta.new_zeros(()), torch.zeros_like(theta)
    of_leaves = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for part, weight in parts:
        loss = weight * objective(theta, wanted, part)
        first, *rest = torch.autograd.grad(loss, (theta, *wanted.values()), allow_unused=True, materialize_grads=True)
        total, of_theta = total + loss.detach(), of_theta + first
        for name, more in zip(wanted, rest, strict=True):
            of_leaves[name] += more
    return total, of_theta, of_leaves


def optimizer_transpose(
    optimizer: InnerOptimizer, before: State, grad: Tensor, hyper: Leaves, count: int, adjoint: State
) -> tuple[State, Tensor, dict[str, Tensor]]:
    """The cotangents of the older state, of the gradient and of the hyper-parameters, given that of the newer state."""
    state = tuple(tensor.detach().requires_grad_() for tensor in before)
    grad, rates = grad.detach().requires_grad_(), with_grad(hyper)
    after = optimizer.step(state, grad, rates, count)
    found = torch.autograd.grad(after, [*state, grad, *rates.values()], adjoint, allow_unused=True, materialize_grads=True)
    moments = len(state)
    return found[:moments], found[moments], dict(zip(rates, found[moments + 1 :], strict=True))


def step_product(
    problem: InnerProblem, theta: Tensor, leaves: Leaves, step: int, cotangent: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """d/d(theta, leaves) <grad_theta loss at `step`, cotangent>: what one step's gradient sends back."""
    wanted = with_grad(leaves)
    batch = problem.batch(wanted, step)
    of_theta, of_batch = hessian_product(problem.loss, theta, batch, step, cotangent)
    reached = [(tensor, of) for tensor, of in zip(batch, of_batch, strict=True) if of is not None]
    if not reached:
        return of_theta, {}
    tensors, cotangents = zip(*reached, strict=True)
    of_leaves = torch.autograd.grad(tensors, list(wanted.values()), cotangents, allow_unused=True, materialize_grads=True)
    return of_theta, dict(zip(wanted, of_leaves, strict=True))


def hessian_product(
    loss: Callable[[Tensor, Batch, int], Tensor], theta: Tensor, batch: Batch, step: int, cotangent: Tensor
) -> tuple[Tensor, list[Tensor | None]]:
    """The derivative of <grad_theta loss, cotangent> in theta and in every member of the batch that asks for one."""
    theta = theta.detach().requires_grad_()
    cut = tuple(tensor.detach().requires_grad_(tensor.requires_grad) for tensor in batch)
    wanted = [theta, *(tensor for tensor in cut if tensor.requires_grad)]
    (grad,) = torch.autograd.grad(loss(theta, cut, step), theta, create_graph=True)
    if not grad.requires_grad:  # a loss that is linear in theta and does not mix it with the batch
        return torch.zeros_like(theta), [None] * len(cut)
    of_theta, *rest = torch.autograd.grad(grad, wanted, cotangent, allow_unused=True, materialize_grads=True)
    found = iter(rest)
    return of_theta, [next(found) if tensor.requires_grad else None for tensor in cut]


def with_grad(leaves: Leaves) -> dict[str, Tensor]:
    """Fresh leaves of the same values that ask for a gradient."""
    return {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}


def derivative_error(model: FlatModel, inputs: Tensor, targets: Tensor, rng: torch.Generator) -> float:
    """How far the model's second derivative is from how its gradient really changes, relative, in float64.

    It is rounding for every differentiable function. Behind a detach or a straight-through estimator the gradient changes
    in ways that autograd does not see, so that a meta-gradient through it would have no meaning. (The second derivative
    that autograd gives stays symmetric there, since what is detached counts as constant: symmetry would not show it.)
    """

    def loss(theta: Tensor, batch: Batch, _: int) -> Tensor:
        with global_seed(0, theta.device):  # the same dropout every time
            return nn.functional.cross_entropy(model(theta, batch[0]), batch[1])

    def gradient(theta: Tensor) -> Tensor:
        theta = theta.detach().requires_grad_()
        return torch.autograd.grad(loss(theta, (inputs, targets), 0), theta)[0]

    errors = []
    for _ in range(3):  # the best of three: a step across a ReLU's kink spoils a difference, and is rare at this length
        along = torch.randn(model.theta.shape, generator=rng, dtype=model.theta.dtype)
        along *= 1e-7 / along.norm()
        expected = (gradient(model.theta + along) - gradient(model.theta - along)) / 2
        found = hessian_product(loss, model.theta, (inputs, targets), 0, along)[0]
        errors.append(float((found - expected).norm() / expected.norm().clamp_min(1e-300)))
    return min(errors)
