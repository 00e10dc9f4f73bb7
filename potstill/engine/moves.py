"""An optimiser's step, and the way back over it, compiled or on tensors that stay where they are.

Either is a dozen or five dozen small operations on vectors, and each reads and writes memory: on a
CPU they took a third of an inner step of ten images. Compiled, they are one or two passes.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from potstill.engine.compiled_losses import CannotCompile, CompiledNetwork
from potstill.engine.optimizers import Count, Optimizer, State
from potstill.engine.unroll import Leaves, optimizer_transpose

Call = Callable[..., Any]
"""(key, function, *tensors) -> what the function gives, which is the same for equal keys."""


def directly(key: Hashable, function: Callable[..., Any], *tensors: Tensor) -> Any:
    """Call a function as it is."""
    return function(*tensors)


def calls(compiled: CompiledNetwork | None) -> Call:
    """Return how a run calls such functions: compiled on a GPU, if its networks are."""
    return compiled.keyed if compiled and compiled.kernels else directly


@dataclass(frozen=True)
class CompiledOptimizer:
    """An optimiser whose step and its transpose are compiled, if they can be.

    Args:
        optimizer: the pure optimiser step.
        network: compiles.
    """

    optimizer: Optimizer
    network: CompiledNetwork

    def init(self, theta: Tensor) -> State:
        return self.optimizer.init(theta)

    def step(self, state: State, grad: Tensor, hyper: Mapping[str, Tensor], count: Count) -> State:
        moments, names = len(state), list(hyper)

        def function(*tensors: Tensor) -> State:
            state, (grad, *rates, count) = tensors[:moments], tensors[moments:]
            known = dict(zip(names, rates, strict=True))
            return self.optimizer.step(state, grad, known, count)

        found = self.attempted("step", function, *state, grad, *hyper.values(), number(count))
        if found is None:
            return self.optimizer.step(state, grad, hyper, count)
        return tuple(found)

    def transpose(
        self, before: State, grad: Tensor, hyper: Leaves, count: Count, adjoint: State
    ) -> tuple[State, Tensor, dict[str, Tensor]]:
        """Apply the transpose of a step, as `optimizer_transpose` does."""
        moments, names = len(before), list(hyper)

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            before, (grad, *rest) = tensors[:moments], tensors[moments:]
            adjoint, rates, count = tuple(rest[:moments]), rest[moments:-1], rest[-1]
            known = dict(zip(names, rates, strict=True))
            older, of_grad, of_rates = optimizer_transpose(
                self.optimizer, before, grad, known, count, adjoint
            )
            return *older, of_grad, *(of_rates[name] for name in names)

        found = self.attempted(
            "transpose", function, *before, grad, *adjoint, *hyper.values(), number(count)
        )
        if found is None:
            return optimizer_transpose(self.optimizer, before, grad, hyper, count, adjoint)
        older, (of_grad, *of_rates) = tuple(found[:moments]), found[moments:]
        return older, of_grad, dict(zip(names, of_rates, strict=True))

    def attempted(self, name: str, function: Callable[..., Any], *tensors: Tensor) -> Any:
        """Call a function, compiled; None if it cannot be, as a user's own that looks at values."""
        key = name, repr(self.optimizer)  # which may have no hash
        if key in self.network.refused:
            return None
        try:
            return self.network.keyed(key, function, *tensors)
        except CannotCompile:
            self.network.refused.add(key)
            return None

    def in_torch(
        self, parameters: Sequence[nn.Parameter], lr: float
    ) -> tuple[torch.optim.Optimizer, Callable[[], None]]:
        return self.optimizer.in_torch(parameters, lr)


def number(count: Count) -> Tensor:
    """Return the number of a step as a tensor: compiled as a constant, each would be another."""
    return count if isinstance(count, Tensor) else torch.tensor(float(count), dtype=torch.float64)


def compiled_if(optimizer: Optimizer, compiled: CompiledNetwork | None) -> Optimizer:
    """Return an optimiser, compiled if the networks are."""
    return CompiledOptimizer(optimizer, compiled) if compiled else optimizer


@dataclass(frozen=True)
class Moves:
    """What programs do with an optimiser.

    Args:
        optimizer: the pure optimiser step.
        call: calls a function of tensors that changes some of them, compiled or not.
    """

    optimizer: Optimizer
    call: Call = directly

    def move(self, state: State, grad: Tensor, hyper: Leaves, counter: Tensor) -> None:
        """Take a step: change the state, and count it.

        Args:
            state: the parameters and moments, each (P,).
            grad: (P,).
            hyper: 0-d tensors such as "lr".
            counter: number of the step, 0-d int64.
        """
        moments, names = len(state), list(hyper)

        def function(*tensors: Tensor) -> None:
            state, (grad, *rates, counter) = tensors[:moments], tensors[moments:]
            known = dict(zip(names, rates, strict=True))
            after = self.optimizer.step(state, grad, known, counter.double())
            for tensor, value in zip(state, after, strict=True):
                tensor.copy_(value)

        self.call(("move", repr(self.optimizer)), function, *state, grad, *hyper.values(), counter)
        counter.add_(1)  # here, since Inductor loses changes of 0-d tensors (seen with float64)

    def back(
        self, tape: Sequence[Tensor], at: Tensor, hyper: Leaves, counter: Tensor, adjoint: State,
        of_hyper: Leaves,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Walk back over a step, but for what its gradient hangs on: change adjoint and of_hyper.

        Args:
            tape: (steps, P) each: the state before the step, and last its gradient.
            at: the step's place on it, 0-d int64.
            hyper: 0-d tensors such as "lr".
            counter: number of the step, 0-d int64.
            adjoint: cotangent of the state after the step; then of that before it.
            of_hyper: cotangents of hyper; the step's are added.
        Returns:
            The parameters before the step, and the cotangent of its gradient.
        """
        kept, moments, names = len(tape), len(adjoint), list(hyper)

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            tape, (at, counter, *rest) = tensors[:kept], tensors[kept:]
            adjoint, known = tuple(rest[:moments]), dict(zip(names, rest[moments:], strict=True))
            like = adjoint[0]
            *before, grad = (each.index_select(0, at[None])[0].to(like) for each in tape)
            older, of_grad, of_rates = optimizer_transpose(
                self.optimizer, tuple(before), grad, known, counter.double(), adjoint
            )
            for tensor, value in zip(adjoint, older, strict=True):
                tensor.copy_(value)
            return before[0], of_grad, *(of_rates[name] for name in names)

        key = "back", repr(self.optimizer), tape[0].dtype
        theta, of_grad, *of_rates = self.call(
            key, function, *tape, at, counter, *adjoint, *hyper.values()
        )
        for name, of in zip(names, of_rates, strict=True):
            of_hyper[name].add_(of)
        return theta, of_grad
