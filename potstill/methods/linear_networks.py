"""A network that is linear in its parameters around given ones, and what it learns from examples.

See rcig.py for the formulas.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from potstill.engine.flat import FlatModel
from potstill.engine.optimizers import Adam
from potstill.engine.ridge import doubled
from potstill.methods.network_pool import Trained

GROWTH, BACK = 1.2, 0.7
"""By what a rate grows until a loss rises, and goes back then."""
SEARCHES, STRIDE = 100, 4
"""Most rates that are tried."""
Gradient = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Values (P,) -> (loss, gradient)."""


@dataclass(frozen=True)
class Linear:
    """A network that is linear in its parameters around a pool's.

    Args:
        model: its structure.
        network: its tensors.
        moving: (P,) 1 where a parameter moves, 0 for the last layer's weights.
    """

    model: FlatModel
    network: Trained
    moving: Tensor

    def features(self, images: Tensor) -> Tensor:
        """Compute phi (n, F)."""
        return self.model.features(self.network.theta, images, dict(self.network.constants))

    def outputs(self, theta: Tensor, images: Tensor) -> Tensor:
        """Compute the network's own outputs at other parameters."""
        return self.model(theta, images, dict(self.network.constants))

    def along(self, images: Tensor, tau: Tensor) -> Tensor:
        """Compute J tau (n, K), differentiable in both.

        J'u is linear in u, and tau' times its derivative in u is what is wanted. Forward
        differentiation would be cheaper, but several threads cannot do it at the same time.
        """
        differentiable = torch.is_grad_enabled()
        theta = self.network.theta.detach().requires_grad_()
        with torch.enable_grad():
            outputs = self.outputs(theta, images)
            u = torch.zeros_like(outputs, requires_grad=True)
            (pulled,) = torch.autograd.grad(outputs, theta, u, create_graph=True)
            (found,) = torch.autograd.grad(
                pulled, u, tau * self.moving, create_graph=differentiable
            )
        return found

    def back(self, images: Tensor, cotangent: Tensor) -> Tensor:
        """Compute J' y (P,)."""
        theta = self.network.theta.detach().requires_grad_()
        with torch.enable_grad():
            outputs = self.outputs(theta, images)
            (grad,) = torch.autograd.grad(outputs, theta, cotangent)
        return grad * self.moving


@dataclass(frozen=True)
class Inner:
    """The inner problem on given examples.

    Args:
        linear: the network.
        images: (n, ...) distilled examples, with copies.
        targets: (n, K) around 0.
        ridge: l.
    """

    linear: Linear
    images: Tensor
    targets: Tensor
    ridge: float

    @cached_property
    def features(self) -> Tensor:
        """Phi of the examples, (n, F)."""
        return self.linear.features(self.images)

    @cached_property
    def factor(self) -> Tensor:
        """The Cholesky factor of phi phi' + l I, in float64; NaN where there is none."""
        exact = doubled(self.features)
        gram = exact @ exact.T
        factor, failed = torch.linalg.cholesky_ex(gram + self.ridge * torch.eye(len(gram)).to(gram))
        return torch.where(failed > 0, torch.nan, factor)

    def solved(self, right: Tensor) -> Tensor:
        """Return (phi phi' + l I)^-1 of (n, K)."""
        return torch.cholesky_solve(doubled(right), self.factor).to(right)

    def dual(self, tau: Tensor) -> Tensor:
        """Return a, (n, K)."""
        return self.solved(self.targets - self.linear.along(self.images, tau))

    @property
    def scale(self) -> float:
        """The factor l / (n K) of the gradient and the Hessian."""
        return self.ridge / self.targets.numel()

    def loss_and_gradient(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """Return L and its gradient in tau."""
        behind = self.targets - self.linear.along(self.images, tau)
        dual = self.solved(behind)
        # |y - h - phi w|^2 + l |w|^2 = l a'(y - h) at the best w.
        loss = self.scale * ((dual * behind).sum() + tau.square().sum()) / 2
        return loss, self.scale * (tau - self.linear.back(self.images, dual))

    def hessian(self, vector: Tensor) -> Tensor:
        """Return H v."""
        seen = self.solved(self.linear.along(self.images, vector))
        return self.scale * (vector * self.linear.moving + self.linear.back(self.images, seen))


@dataclass(frozen=True)
class Solution:
    """What some steps of Adam from 0 reach.

    Args:
        values: (P,).
        losses: before each step and after the last, (steps + 1,).
    """

    values: Tensor
    losses: Tensor

    @property
    def fell(self) -> bool:
        """Whether the loss fell at every step."""
        return bool((self.losses.diff() < 0).all())

    @property
    def rose(self) -> bool:
        """Whether it ended above where it began."""
        return not bool(self.losses[-1] <= self.losses[0])


def descend(gradient: Gradient, like: Tensor, rate: float, steps: int) -> Solution:
    """Take Adam's steps from 0.

    Args:
        gradient: of what is lowered.
        like: (P,).
        rate: Adam's learning rate.
        steps: how many.
    """
    rule, lr = Adam(), {"lr": torch.tensor(rate, dtype=like.dtype, device=like.device)}
    state, losses = rule.init(torch.zeros_like(like)), []
    for step in range(steps):
        loss, grad = gradient(state[0])
        losses.append(loss)
        state = rule.step(state, grad, lr, step)
    return Solution(state[0], torch.stack([*losses, gradient(state[0])[0]]).detach())


def searched(gradient: Gradient, like: Tensor, rate: float, steps: int) -> float:
    """Return a learning rate just below those with which a loss rises on the way.

    It is 0.7 times the first of rate, 1.2 rate, 1.2^2 rate, .. with which it does. Of these every
    fourth is tried, and then the three before the one that failed.
    """

    def rises(place: int) -> bool:
        return not descend(gradient, like, rate * GROWTH**place, steps).fell

    failed = next((place for place in range(STRIDE - 1, SEARCHES, STRIDE) if rises(place)), None)
    first = SEARCHES
    if failed is not None:
        before = range(failed - STRIDE + 1, failed)
        first = next((place for place in before if rises(place)), failed)
    return rate * GROWTH**first * BACK
