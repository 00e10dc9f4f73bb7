"""Optimisers as pure functions of flat vectors, and in torch's form for plain training.

The inner loop, which is differentiated, and the outer loop use the pure form.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from potstill.config.options import option

Count = int | Tensor
"""Number of a step: a Python number, or a 0-d floating-point tensor."""
State = tuple[Tensor, ...]
"""An optimiser's state: the parameters first, then its moments, each of the same shape."""


class Optimizer(Protocol):
    """An optimiser as one pure, differentiable, elementwise function."""

    def init(self, theta: Tensor) -> State:
        """Return the state before the first step."""
        ...

    def step(self, state: State, grad: Tensor, hyper: Mapping[str, Tensor], count: Count) -> State:
        """Take step number `count`, from 0, and return the new state.

        Args:
            state: the parameters and moments, each (P,).
            grad: (P,).
            hyper: 0-d tensors such as "lr".
            count: number of the step; the first is 0. A program (programs.py) has it on its device.
        """
        ...

    def in_torch(
        self, parameters: Sequence[nn.Parameter], lr: float
    ) -> tuple[torch.optim.Optimizer, Callable[[], None]]:
        """Return the equivalent torch optimiser, and a function to call after each step."""
        ...


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015, Algorithm 1). Its steps do not depend on a gradient's scale.

    Args:
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the denominator.
        eps_placement: "torch" adds eps after bias correction, as the paper and torch.optim do;
            "higher-0.2.1" adds it before, as the PyPI release of `higher` does with which
            RaT-BPTT's results were made.
    """

    scale_free: ClassVar[bool] = True

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    eps_placement: Literal["torch", "higher-0.2.1"] = option(
        "torch", "eps after bias correction, or before it: higher-0.2.1"
    )

    def init(self, theta: Tensor) -> State:
        return theta, torch.zeros_like(theta), torch.zeros_like(theta)

    def step(self, state: State, grad: Tensor, hyper: Mapping[str, Tensor], count: Count) -> State:
        theta, mean, square = state
        mean = self.beta1 * mean + (1 - self.beta1) * grad
        square = self.beta2 * square + (1 - self.beta2) * grad.square()
        correction1, correction2 = self.corrections(count)
        if self.eps_placement == "torch":
            update = (mean / correction1) / (root(square / correction2) + self.eps)
            return theta - hyper["lr"] * update, mean, square
        scale = hyper["lr"] * alike(correction2**0.5 / correction1, theta)
        return theta - scale * mean / (root(square) + self.eps), mean, square

    def corrections(self, count: Any) -> tuple[Any, Any]:
        """Return the bias corrections of both moments at step number `count`, of its type."""
        return 1 - self.beta1 ** (count + 1), 1 - self.beta2 ** (count + 1)

    def in_torch(
        self, parameters: Sequence[nn.Parameter], lr: float
    ) -> tuple[torch.optim.Optimizer, Callable[[], None]]:
        eps_before = self.eps_placement != "torch"
        first = self.eps / self.corrections(0)[1] ** 0.5 if eps_before else self.eps
        made = torch.optim.Adam(parameters, lr, (self.beta1, self.beta2), first)
        steps = 0

        def after() -> None:
            # eps before the correction is, after it, one that shrinks from step to step.
            nonlocal steps
            steps += 1
            if eps_before:
                made.param_groups[0]["eps"] = self.eps / self.corrections(steps)[1] ** 0.5

        return made, after


@dataclass(frozen=True)
class AdaBelief:
    """AdaBelief (Zhuang et al. 2020, arXiv:2010.07468, Algorithm 2): Adam, whose second moment is
    that of what the first did not foresee. It takes long steps where gradients agree.

    Args:
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the second moment at each step, in squares of a gradient, and to the
            denominator. Steps hang on a gradient's scale where that is below some 3e-7.
    """

    scale_free: ClassVar[bool] = True

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-16

    def init(self, theta: Tensor) -> State:
        return theta, torch.zeros_like(theta), torch.zeros_like(theta)

    def step(self, state: State, grad: Tensor, hyper: Mapping[str, Tensor], count: Count) -> State:
        theta, mean, square = state
        mean = self.beta1 * mean + (1 - self.beta1) * grad
        surprise = (grad - mean).square()
        square = self.beta2 * square + (1 - self.beta2) * surprise + self.eps
        mean_now = mean / alike(1 - self.beta1 ** (count + 1), theta)
        square_now = square / alike(1 - self.beta2 ** (count + 1), theta)
        return theta - hyper["lr"] * mean_now / (root(square_now) + self.eps), mean, square

    def in_torch(
        self, parameters: Sequence[nn.Parameter], lr: float
    ) -> tuple[torch.optim.Optimizer, Callable[[], None]]:
        return Pure(parameters, lr, self), lambda: None


@dataclass(frozen=True)
class Lamb:
    """LAMB (You et al. 2020, arXiv:1904.00962, Algorithm 2, without weight decay): Adam's step, as
    long as the learning rate's share of the norm of what is moved.

    It is for tensors that are one thing, as a set's images are: a flat vector of all of a network's
    layers would move as one. Where either norm is 0 the step is Adam's.

    Args:
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the denominator after bias correction.
    """

    scale_free: ClassVar[bool] = True
    outer_only: ClassVar[bool] = True

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6

    def init(self, theta: Tensor) -> State:
        return theta, torch.zeros_like(theta), torch.zeros_like(theta)

    def step(self, state: State, grad: Tensor, hyper: Mapping[str, Tensor], count: Count) -> State:
        unit = {"lr": torch.ones_like(hyper["lr"])}
        adam = Adam(self.beta1, self.beta2, self.eps)
        moved, mean, square = adam.step((torch.zeros_like(grad), *state[1:]), grad, unit, count)
        theta, length, own = state[0], moved.norm(), state[0].norm()
        share = torch.where((length > 0) & (own > 0), own / length, 1)
        return theta + hyper["lr"] * share * moved, mean, square

    def in_torch(
        self, parameters: Sequence[nn.Parameter], lr: float
    ) -> tuple[torch.optim.Optimizer, Callable[[], None]]:
        return Pure(parameters, lr, self), lambda: None


class Pure(torch.optim.Optimizer):
    """A pure optimiser in torch's form.

    Args:
        parameters: what it moves.
        lr: learning rate.
        rule: the pure optimiser.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, rule: Optimizer):
        super().__init__(parameters, {"lr": lr})
        self.rule, self.count = rule, 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                moments = self.state[parameter].get("moments") or self.rule.init(parameter)[1:]
                hyper = {"lr": parameter.new_tensor(group["lr"])}
                after = self.rule.step((parameter, *moments), parameter.grad, hyper, self.count)
                parameter.copy_(after[0])
                self.state[parameter]["moments"] = after[1:]
        self.count += 1


def alike(number: Any, tensor: Tensor) -> Any:
    """Return a number, if it is a tensor in the type of another, as Python's numbers take it."""
    return number.to(tensor.dtype) if isinstance(number, Tensor) else number


def root(x: Tensor) -> Tensor:
    """Return the square root, with derivative 0 at 0.

    A parameter that never had a gradient would otherwise turn everything to NaN.
    """
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0)


@dataclass(frozen=True)
class Descent:
    """Gradient descent: the parameters are all of its state."""

    def init(self, theta: Tensor) -> State:
        return (theta,)

    def step(self, state: State, grad: Tensor, hyper: Mapping[str, Tensor], count: Count) -> State:
        return (state[0] - hyper["lr"] * grad,)

    def in_torch(
        self, parameters: Sequence[nn.Parameter], lr: float
    ) -> tuple[torch.optim.Optimizer, Callable[[], None]]:
        return torch.optim.SGD(parameters, lr), lambda: None


@dataclass(frozen=True)
class SGD:
    """SGD with momentum, L2 weight decay and step decay, as torch's SGD and MultiStepLR.

    Args:
        momentum: factor on the velocity.
        weight_decay: this times the parameters is added to the gradient.
        milestones: steps from which on the learning rate is multiplied by `decay` (paper D.6).
        decay: that factor.
        restart: whether the velocity starts again from 0 at each milestone.
    """

    momentum: float = option(0.9, "SGD: factor on the velocity", low=0, high=1)
    weight_decay: float = option(0.0, "SGD: this times the parameters is added", low=0)
    milestones: tuple[int, ...] = option((), "SGD: steps at which the rate is multiplied", low=1)
    decay: float = option(0.2, "SGD: by this", low=0, high=1, open_low=True, source="paper D.6")
    restart: bool = False

    def init(self, theta: Tensor) -> State:
        return theta, torch.zeros_like(theta)

    def step(self, state: State, grad: Tensor, hyper: Mapping[str, Tensor], count: Count) -> State:
        theta, velocity = state
        if self.restart:
            for milestone in self.milestones:
                velocity = velocity * (count != milestone)
        velocity = self.momentum * velocity + grad + self.weight_decay * theta
        passed = sum((count >= milestone) * 1.0 for milestone in self.milestones)
        factor = alike(self.decay**passed, theta)
        return theta - hyper["lr"] * factor * velocity, velocity

    def in_torch(
        self, parameters: Sequence[nn.Parameter], lr: float
    ) -> tuple[torch.optim.Optimizer, Callable[[], None]]:
        made = torch.optim.SGD(parameters, lr, self.momentum, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.MultiStepLR(made, list(self.milestones), self.decay)
        steps = 0

        def after() -> None:
            nonlocal steps
            steps += 1
            schedule.step()
            if self.restart and steps in self.milestones:
                made.state.clear()

        return made, after
