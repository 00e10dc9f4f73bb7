"""The core: optimiser steps as pure functions, and the exact meta-gradient of an unroll in memory that is flat in the window.

An unroll takes `burn_in` steps without a derivative and then `window` differentiated ones, on a state of flat vectors
(parameters, moments). Nothing keeps the graph of more than one step, unless `Keep` asks for it: the forward pass keeps the
state and the gradient before each differentiated step, and the way back rebuilds one step at a time. With lambda the
cotangent of the state,

1. the transpose of the optimiser's step turns lambda into the cotangent `a` of that step's gradient, the cotangent of the
   older state, and cotangents of the hyper-parameters;
2. one Hessian product, d/d(theta, batch) <grad_theta loss, a>, gives what reaches the older parameters and the batch;
3. the batch's cotangents go back through augmentation, selection and parameterisation to the leaves;
4. what is left of lambda at the window's start is the cotangent of the state there.

Source: equations (2) to (4) and Algorithm 1 of Feng, Vedantam & Kempe 2024, arXiv:2311.07025. Replaying instead of
storing the graph is reverse-mode differentiation with a checkpoint at every step.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from potstill.derivatives import Batch, Differentiable, Linearisable, Pullback

State = tuple[Tensor, ...]
"""An optimiser's state: the flat parameters first, then its moments, each of the same length."""
Leaves = Mapping[str, Tensor]
"""What is learned: name -> tensor."""


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


@dataclass(frozen=True)
class InnerProblem:
    """What the inner loop does at each step; every part gives the same for the same arguments, or replay is not exact.

    Args:
        loss: (theta, batch, step) -> scalar, by its derivatives.
        batch: (leaves, step) -> batch, differentiable in the leaves.
        optimizer: the pure optimiser step.
    """

    loss: Differentiable
    batch: Callable[[Leaves, int], Batch]
    optimizer: InnerOptimizer


class Objective(Protocol):
    """The outer loss: (theta after the last step, leaves, part of the real data) -> scalar, by its gradient."""

    def gradient(self, theta: Tensor, leaves: Leaves, part: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The loss, 0-d, its gradient in theta, and those in the leaves that it reads directly."""
        ...


@dataclass(frozen=True)
class EagerObjective:
    """An outer loss with its gradient by autograd."""

    loss: Callable[[Tensor, Leaves, Any], Tensor]

    def gradient(self, theta: Tensor, leaves: Leaves, part: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        theta, wanted = theta.detach().requires_grad_(), with_grad(leaves)
        loss = self.loss(theta, wanted, part)
        of_theta, *rest = torch.autograd.grad(loss, (theta, *wanted.values()), allow_unused=True, materialize_grads=True)
        return loss.detach(), of_theta, dict(zip(wanted, rest, strict=True))


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


@dataclass(frozen=True)
class Keep:
    """What the forward pass keeps of the window.

    Args:
        dtype: type in which states are kept; None keeps their own. A narrower one moves the point where a step is
            differentiated by its rounding.
        device: where they are kept; None keeps them where they are.
        checkpoints: keep the state before every ceil(sqrt(M))-th step only, and take the steps between again on the way
            back: some 2 sqrt(M) states in place of M, one more forward pass.
        graphs: of how many of the last steps the graph is kept too, which saves taking their gradient again; only for a
            loss that can be linearised.
    """

    dtype: torch.dtype | None = None
    device: torch.device | None = None
    checkpoints: bool = False
    graphs: int = 0

    def segment(self, window: int) -> int:
        """How many steps the tape holds at once."""
        return math.isqrt(max(0, window - 1)) + 1 if self.checkpoints else max(1, window)


STATES = Keep()


class Unrolled:
    """A trajectory of burn_in + window steps that can be differentiated through its last `window`, as often as wanted.

    The forward pass is taken once, when it is made. The way back is linear in the cotangent at its end, so that the
    meta-gradients of several outer losses cost one forward pass and a way back for each.

    Args:
        problem: the inner loop.
        leaves: what is learned; never changed.
        hyper: the optimiser's hyper-parameters, 0-d tensors; at least "lr".
        start: the optimiser's state to start from, fresh (`optimizer.init`) or of a partly trained network.
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

    def meta_gradient(self, objective: Objective, parts: Iterable[tuple[Any, float]]) -> MetaGradient:
        """The outer loss and its cotangents.

        Args:
            objective: the outer loss at the trained parameters; it may read the leaves directly.
            parts: (part, weight) pairs; the outer loss is the weighted sum of the objective over the parts. Micro-batches of a
                mean over examples have weights n_i / n and cost the memory of one; an objective that couples its batch takes
                one part.
        """
        loss, of_theta, of_leaves = outer_gradient(objective, self.final[0], self.leaves, parts)
        adjoint = (of_theta, *(torch.zeros_like(moment) for moment in self.final[1:]))
        of_hyper = {name: torch.zeros_like(value) for name, value in self.hyper.items()}
        for segment, start in zip(reversed(self.segments), reversed(self.starts), strict=True):
            if segment != self.tape.steps:
                forward(self.problem, self.leaves, self.hyper, start, segment, self.tape)
            for step in reversed(segment):
                before, grad, pullback = self.tape.take(step)
                older, of_grad, more_hyper = optimizer_transpose(self.problem.optimizer, before, grad, self.hyper, step, adjoint)
                of_theta, more_leaves = (pullback or step_product(self.problem, before[0], self.leaves, step))(of_grad)
                adjoint = (older[0] + of_theta, *older[1:])
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
    """Train for burn_in + window steps and differentiate the outer loss through the last `window` of them.

    Args and returns are those of `Unrolled` and its `meta_gradient`.
    """
    unrolled = Unrolled(problem, leaves, hyper, start, burn_in=burn_in, window=window, first=first, keep=keep)
    return unrolled.meta_gradient(objective, parts)


StepPullback = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]
"""The cotangent of a step's gradient -> those of theta and the leaves."""


class Tape:
    """The state and the gradient before each step of a segment, in buffers allocated once; of the last ones the graph too."""

    def __init__(self, state: State, length: int, keep: Keep):
        self.like = state[0]
        dtype, device = keep.dtype or self.like.dtype, keep.device or self.like.device
        self.buffers = tuple(tensor.new_empty((length, *tensor.shape), dtype=dtype, device=device) for tensor in (*state, state[0]))
        self.keep, self.steps = keep, range(0)
        self.pullbacks: dict[int, StepPullback] = {}

    def begin(self, steps: range) -> None:
        """Make room for these steps."""
        self.steps = steps

    def wants_graph(self, step: int) -> bool:
        """Whether this step's graph is to be kept."""
        return self.steps.stop - step <= self.keep.graphs

    def put(self, step: int, state: State, grad: Tensor) -> None:
        """Keep what was before a step."""
        for buffer, tensor in zip(self.buffers, (*state, grad), strict=True):
            buffer[step - self.steps.start] = tensor

    def take(self, step: int) -> tuple[State, Tensor, StepPullback | None]:
        """The state and the gradient before a step; its pullback, if its graph was kept, which is let go."""
        *state, grad = (buffer[step - self.steps.start].to(self.like) for buffer in self.buffers)
        return tuple(state), grad, self.pullbacks.pop(step, None)


def forward(problem: InnerProblem, leaves: Leaves, hyper: Leaves, state: State, steps: range, tape: Tape | None = None) -> State:
    """Take `steps`; the state after them. The tape, if there is one, takes what the way back needs."""
    if tape:
        tape.begin(steps)
    for step in steps:
        if tape and tape.wants_graph(step):
            grad, tape.pullbacks[step] = linearised_step(problem, state[0], leaves, step)
        else:
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
    """The weighted sum of the objective over the parts, and its gradients in theta and the leaves, part by part."""
    total, of_theta = theta.new_zeros(()), torch.zeros_like(theta)
    of_leaves = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for part, weight in parts:
        loss, more, rest = objective.gradient(theta, leaves, part)
        total += weight * loss
        of_theta.add_(more, alpha=weight)
        for name, of_leaf in rest.items():
            of_leaves[name].add_(of_leaf, alpha=weight)
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


def step_product(problem: InnerProblem, theta: Tensor, leaves: Leaves, step: int) -> StepPullback:
    """cotangent -> d/d(theta, leaves) <grad_theta loss at `step`, cotangent>: what one step's gradient sends back."""
    wanted = with_grad(leaves)
    batch = problem.batch(wanted, step)
    return through_batch(batch, wanted, lambda cotangent: problem.loss.product(theta, batch, step, cotangent))


def linearised_step(problem: InnerProblem, theta: Tensor, leaves: Leaves, step: int) -> tuple[Tensor, StepPullback]:
    """The gradient at `step`, and its `step_product` with the graph kept."""
    loss: Linearisable = problem.loss  # type: ignore[assignment]
    wanted = with_grad(leaves)
    batch = problem.batch(wanted, step)
    grad, pullback = loss.linearised(theta, batch, step)
    return grad, through_batch(batch, wanted, pullback)


def through_batch(batch: Batch, wanted: Leaves, pullback: Pullback) -> StepPullback:
    """`pullback`, and then from the batch back to the leaves that it was made of."""

    def whole(cotangent: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        of_theta, of_batch = pullback(cotangent)
        reached = [(tensor, of) for tensor, of in zip(batch, of_batch, strict=True) if of is not None]
        if not reached:
            return of_theta, {}
        tensors, cotangents = zip(*reached, strict=True)
        of_leaves = torch.autograd.grad(tensors, list(wanted.values()), cotangents, allow_unused=True, materialize_grads=True)
        return of_theta, dict(zip(wanted, of_leaves, strict=True))

    return whole


def with_grad(leaves: Leaves) -> dict[str, Tensor]:
    """Fresh leaves of the same values that ask for a gradient."""
    return {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
