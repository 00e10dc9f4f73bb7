"""Exact meta-gradients of an unroll of pure optimiser steps, with memory flat in the window.

An unroll takes `burn_in` steps without a derivative and then `window` differentiated ones, on a
state of flat vectors (parameters, moments). Nothing keeps the graph of more than one step: the
forward pass keeps the state and the gradient before each differentiated step, and the way back
rebuilds one step at a time. With lambda the cotangent of the state,

1. the transpose of the optimiser's step turns lambda into the cotangent `a` of that step's
   gradient, the cotangent of the older state, and cotangents of the hyper-parameters;
2. one Hessian product, d/d(theta, batch) <grad_theta loss, a>, gives the cotangents of the older
   parameters and of the batch;
3. the batch's cotangents go back through augmentation, selection and parameterisation to the
   leaves;
4. lambda at the window's start is the cotangent of the state there.

Source: equations (2) to (4) and Algorithm 1 of Feng, Vedantam & Kempe 2024, arXiv:2311.07025.
    Replaying instead of storing the graph is reverse-mode differentiation with a checkpoint at
    every step.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from potstill.engine.losses import Batch, Differentiable
from potstill.engine.optimizers import Count, Optimizer, State
from potstill.workers import in_order

Leaves = Mapping[str, Tensor]
"""Learned tensors: name -> tensor."""


@dataclass(frozen=True)
class InnerProblem:
    """The inner loop: what happens at each step.

    Every part must return the same for the same arguments, or replay is not exact.

    Args:
        loss: (theta, batch, step) -> scalar, by its derivatives.
        batch: (leaves, step) -> batch, differentiable in the leaves.
        optimizer: the pure optimiser step.
        counter: the number of the step on the device, 0-d int64, if programs (programs.py) are to
            run it: what changes from step to step is read by it.
        variant: step -> what the parts decide by other means; steps of one variant are one program.
    """

    loss: Differentiable
    batch: Callable[[Leaves, int], Batch]
    optimizer: Optimizer
    counter: Tensor | None = None
    variant: Callable[[int], Hashable] = lambda step: None


Parts = Iterable[tuple[Any, float]]
"""(part of the real data, weight) pairs."""


class Objective(Protocol):
    """The outer loss, given by its gradient.

    It maps (theta after the last step, leaves, part of the real data) to a scalar.
    """

    def gradient(
        self, theta: Tensor, leaves: Leaves, part: Any
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compute the loss, 0-d, its gradient in theta, and those in the leaves it reads."""
        ...


@dataclass(frozen=True)
class EagerObjective:
    """An outer loss whose gradient is taken by autograd."""

    loss: Callable[[Tensor, Leaves, Any], Tensor]

    def gradient(
        self, theta: Tensor, leaves: Leaves, part: Any
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        theta, wanted = theta.detach().requires_grad_(), with_grad(leaves)
        loss = self.loss(theta, wanted, part)
        of_theta, *rest = torch.autograd.grad(
            loss, (theta, *wanted.values()), allow_unused=True, materialize_grads=True
        )
        return loss.detach(), of_theta, dict(zip(wanted, rest, strict=True))


@dataclass(frozen=True)
class MetaGradient:
    """The outer loss of one unroll and its cotangents.

    Args:
        loss: the outer loss, 0-d.
        leaves: d loss / d leaf, for every leaf.
        hyper: d loss / d hyper-parameter, for every one.
        start: d loss / d (state before the first differentiated step); of the start itself when
            there is no burn-in.
        final: the optimiser's state after the last step.
    """

    loss: Tensor
    leaves: dict[str, Tensor]
    hyper: dict[str, Tensor]
    start: State
    final: State


@dataclass(frozen=True)
class Keep:
    """What the forward pass keeps of the window, for the way back.

    Args:
        dtype: type in which states are kept; None keeps their own. A narrower one moves the point
            where a step is differentiated by its rounding.
        device: the device on which states are kept; None keeps their own.
        checkpoints: keep the state before every ceil(sqrt(M))-th step only, and take the steps
            between again on the way back: some 2 sqrt(M) states in place of M, one more forward
            pass.
    """

    dtype: torch.dtype | None = None
    device: torch.device | None = None
    checkpoints: bool = False

    @classmethod
    def named(cls, name: str) -> "Keep":
        """Return what an option's word stands for: states, sqrt, host or bfloat16."""
        return cls(
            dtype=torch.bfloat16 if name == "bfloat16" else None,
            device=torch.device("cpu") if name == "host" else None,
            checkpoints=name == "sqrt",
        )

    def segment(self, window: int) -> int:
        """Return how many steps the tape holds at once."""
        return math.isqrt(max(0, window - 1)) + 1 if self.checkpoints else max(1, window)


STATES = Keep()


class Unrolled:
    """A trajectory of burn_in + window steps, differentiable through its last `window`.

    It can be differentiated any number of times.

    The forward pass is taken once, when it is made. The way back is linear in the cotangent at its
    end, so that the meta-gradients of several outer losses cost one forward pass and a way back for
    each.

    Args:
        problem: the inner loop.
        leaves: what is learned; never changed.
        hyper: the optimiser's hyper-parameters, 0-d tensors; at least "lr".
        start: the optimiser's state to start from, fresh (`optimizer.init`) or of a partly trained
            network.
        burn_in: steps without a derivative.
        window: differentiated steps after them.
        first: number of the first step, for a start that has already taken some.
        keep: what the forward pass keeps for the way back: memory against time.
    """

    def __init__(
        self, problem: InnerProblem, leaves: Leaves, hyper: Leaves, start: State,
        *, burn_in: int, window: int, first: int = 0, keep: Keep = STATES,
    ):  # fmt: skip
        self.problem, self.leaves, self.hyper = problem, leaves, hyper
        state = tuple(tensor.detach() for tensor in start)
        state = forward(problem, leaves, hyper, state, range(first, first + burn_in))
        steps = range(first + burn_in, first + burn_in + window)
        size = keep.segment(window)
        self.segments = [steps[at : at + size] for at in range(0, window, size)] or [steps]
        self.starts: list[State] = []
        for segment in self.segments[:-1]:
            self.starts.append(state)
            state = forward(problem, leaves, hyper, state, segment)
        self.starts.append(state)
        self.tape = Tape(state, size, keep)
        self.final = forward(problem, leaves, hyper, state, self.segments[-1], self.tape)
        """The optimiser's state after the last step."""

    def meta_gradient(
        self,
        objective: Objective,
        parts: Parts,
        *,
        exact: bool = True,
        early: Mapping[int, Parts] | None = None,
    ) -> MetaGradient:
        """Compute the outer loss and its cotangents.

        Args:
            objective: the outer loss at the trained parameters; it may read the leaves directly.
            parts: (part, weight) pairs; the outer loss is the weighted sum of the objective over
                the parts. Micro-batches of a mean over examples have weights n_i / n and cost the
                memory of one; an objective that couples its batch takes one part.
            exact: whether a step's gradient counts as a function of the parameters before it. If
                not, it depends on the batch alone, and the result is that of an unroll whose
                parameters are detached before each gradient.
            early: step of the window -> parts of the outer loss that are taken at the parameters
                before that step, and added to those at the end.
        """
        loss, of_theta, of_leaves = outer_gradient(objective, self.final[0], self.leaves, parts)
        adjoint = (of_theta, *(torch.zeros_like(moment) for moment in self.final[1:]))
        of_hyper = {name: torch.zeros_like(value) for name, value in self.hyper.items()}
        for segment, start in zip(reversed(self.segments), reversed(self.starts), strict=True):
            if segment != self.tape.steps:
                forward(self.problem, self.leaves, self.hyper, start, segment, self.tape)
            for step in reversed(segment):
                before, grad = self.tape.take(step)
                older, of_grad, more_hyper = optimizer_transpose(
                    self.problem.optimizer, before, grad, self.hyper, step, adjoint
                )
                of_older, more_leaves = step_product(
                    self.problem, before[0], self.leaves, step, of_grad, in_theta=exact
                )
                adjoint = older if of_older is None else (older[0] + of_older, *older[1:])
                if early and step in early:
                    more, of_theta, rest = outer_gradient(
                        objective, before[0], self.leaves, early[step]
                    )
                    loss, adjoint = loss + more, (adjoint[0] + of_theta, *adjoint[1:])
                    for name, of in rest.items():
                        of_leaves[name] += of
                for name, more in more_leaves.items():
                    of_leaves[name] += more
                for name, more in more_hyper.items():
                    of_hyper[name] += more
        return MetaGradient(loss, of_leaves, of_hyper, adjoint, self.final)


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
    keep: Keep = STATES,
) -> MetaGradient:
    """Train for burn_in + window steps and differentiate through the last `window`.

    Args and returns are those of `Unrolled` and its `meta_gradient`.
    """
    unrolled = Unrolled(
        problem, leaves, hyper, start, burn_in=burn_in, window=window, first=first, keep=keep
    )
    return unrolled.meta_gradient(objective, parts)


class Tape:
    """The state and the gradient before each step of a segment, in buffers allocated once."""

    def __init__(self, state: State, length: int, keep: Keep):
        self.like = state[0]
        dtype, device = keep.dtype or self.like.dtype, keep.device or self.like.device
        self.buffers = tuple(
            tensor.new_empty((length, *tensor.shape), dtype=dtype, device=device)
            for tensor in (*state, state[0])
        )
        self.steps = range(0)

    def begin(self, steps: range) -> None:
        """Make room for these steps."""
        self.steps = steps

    def put(self, step: int, state: State, grad: Tensor) -> None:
        """Keep the state and the gradient before a step."""
        for buffer, tensor in zip(self.buffers, (*state, grad), strict=True):
            buffer[step - self.steps.start] = tensor

    def take(self, step: int) -> tuple[State, Tensor]:
        """Return the state and the gradient before a step."""
        *state, grad = (buffer[step - self.steps.start].to(self.like) for buffer in self.buffers)
        return tuple(state), grad


def forward(
    problem: InnerProblem,
    leaves: Leaves,
    hyper: Leaves,
    state: State,
    steps: range,
    tape: Tape | None = None,
) -> State:
    """Take `steps` and return the state after them; the tape keeps what the way back needs.

    Args:
        problem: the inner loop.
        leaves: what is learned.
        hyper: the optimiser's hyper-parameters, 0-d tensors.
        state: the optimiser's state before the first of the steps.
        steps: numbers of the steps.
        tape: keeps state and gradient before each step; None keeps nothing.
    """
    if tape:
        tape.begin(steps)
    for step in steps:
        with torch.no_grad():
            batch = problem.batch(leaves, step)
        grad = problem.loss.gradient(state[0], batch, step)[1]
        if tape:
            tape.put(step, state, grad)
        with torch.no_grad():
            state = problem.optimizer.step(state, grad, hyper, step)
    return state


def outer_gradient(
    objective: Objective, theta: Tensor, leaves: Leaves, parts: Iterable[tuple[Any, float]]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Compute the weighted sum of the objective over the parts, and its gradients.

    The gradients are those in theta and in the leaves.

    Args:
        objective: the outer loss.
        theta: (P,) parameters after the last step.
        leaves: what is learned.
        parts: (part of the real data, weight) pairs, which are tasks (workers.py).
    """
    total, of_theta = theta.new_zeros(()), torch.zeros_like(theta)
    of_leaves = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    weights: list[float] = []

    def tasks() -> Iterator[Callable[[], tuple[Tensor, Tensor, dict[str, Tensor]]]]:
        for part, weight in parts:
            weights.append(weight)
            yield partial(objective.gradient, theta, leaves, part)

    for index, (loss, more, rest) in enumerate(in_order(tasks(), theta.device)):
        weight = weights[index]
        total += weight * loss
        of_theta.add_(more, alpha=weight)
        for name, of_leaf in rest.items():
            of_leaves[name].add_(of_leaf, alpha=weight)
    return total, of_theta, of_leaves


def optimizer_transpose(
    optimizer: Optimizer, before: State, grad: Tensor, hyper: Leaves, count: Count, adjoint: State
) -> tuple[State, Tensor, dict[str, Tensor]]:
    """Apply the transpose of an optimiser step to the cotangent of its new state.

    Args:
        optimizer: the pure optimiser step; it may bring its own `transpose`.
        before: the state before the step.
        grad: (P,) the gradient of the step.
        hyper: the hyper-parameters, 0-d tensors.
        count: number of the step.
        adjoint: cotangent of the state after the step.
    Returns:
        The cotangents of the state before, of the gradient and of the hyper-parameters.
    """
    known = getattr(optimizer, "transpose", None)
    if known:
        found: tuple[State, Tensor, dict[str, Tensor]] = known(before, grad, hyper, count, adjoint)
        return found
    state = tuple(tensor.detach().requires_grad_() for tensor in before)
    grad, rates = grad.detach().requires_grad_(), with_grad(hyper)
    after = optimizer.step(state, grad, rates, count)
    grads = torch.autograd.grad(
        after, [*state, grad, *rates.values()], adjoint, allow_unused=True, materialize_grads=True
    )
    moments = len(state)
    return grads[:moments], grads[moments], dict(zip(rates, grads[moments + 1 :], strict=True))


def step_product(
    problem: InnerProblem,
    theta: Tensor,
    leaves: Leaves,
    step: int,
    cotangent: Tensor,
    *,
    in_theta: bool = True,
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Compute d/d(theta, leaves) <grad_theta loss at `step`, cotangent>.

    It is what the gradient of one step sends back, through the batch to the leaves.

    Args:
        problem: the inner loop.
        theta: (P,) parameters before the step.
        leaves: what is learned.
        step: number of the step.
        cotangent: (P,) cotangent of the step's gradient.
        in_theta: whether the cotangent of theta is wanted.
    Returns:
        The cotangent of theta or None, and that of each leaf; {} if the batch asks for no gradient.
    """
    wanted = with_grad(leaves)
    batch = problem.batch(wanted, step)
    of_theta: Tensor | None = None
    of_batch: Sequence[Tensor | None]
    if in_theta:
        of_theta, *of_batch = problem.loss.product(theta, batch, step, cotangent)
    else:
        of_batch = problem.loss.batch_product(theta, batch, step, cotangent)
    pairs = zip((batch.inputs, batch.targets), of_batch, strict=True)
    reached = [(tensor, of) for tensor, of in pairs if of is not None]
    if not reached:
        return of_theta, {}
    tensors, cotangents = zip(*reached, strict=True)
    of_leaves = torch.autograd.grad(
        tensors, list(wanted.values()), cotangents, allow_unused=True, materialize_grads=True
    )
    return of_theta, dict(zip(wanted, of_leaves, strict=True))


def with_grad(leaves: Leaves) -> dict[str, Tensor]:
    """Return tensors of the same values that ask for a gradient."""
    return {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
