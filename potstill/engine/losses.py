"""The interface of a differentiable loss: its gradient and its Hessian product.

Here they are taken by autograd; compiled_losses.py has the fast twin.

A network is a function of one flat parameter vector (flat.py). A loss that is a mean over
examples may be taken in micro-batches (`InMicroBatches`), which bounds the memory and not the
result.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.engine.flat import FlatModel
from potstill.seeds import global_seed
from potstill.workers import all_threads_at_once, in_order

NEARBY = 0.01
"""How far from a fresh network its second derivative is checked, standard deviation."""


@dataclass(frozen=True)
class Batch:
    """The examples that a loss reads at one step.

    Args:
        inputs: (B, ...).
        targets: (B, K) probabilities, or weights of classes.
        frozen: how many of the first rows ask for no gradient, even if the tensors do.
    """

    inputs: Tensor
    targets: Tensor
    frozen: int = 0

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def asks(self) -> bool:
        """Whether some row asks for a gradient."""
        learned = self.inputs.requires_grad or self.targets.requires_grad
        return learned and self.frozen < len(self)


OfBatch = tuple[Tensor | None, Tensor | None]
"""d/d(inputs, targets) of a scalar, each of its tensor's shape.

Inputs or targets that ask for no gradient have None. Values in frozen rows have no meaning.
"""
Products = tuple[Tensor, Tensor | None, Tensor | None]
"""d/d(theta, inputs, targets) of a scalar, the last two as in `OfBatch`."""
Pull = Callable[[Tensor], Tensor]
"""A gradient in theta -> the gradient of some function of it, both (P,)."""


def filled_up(inputs: Tensor, missing: int) -> Tensor:
    """Append copies of the first row to inputs (B, ...): all batches of a size are compiled once.

    Args:
        inputs: at least one row.
        missing: how many copies.
    """
    if not missing:
        return inputs
    return torch.cat([inputs, inputs[:1].detach().expand(missing, *inputs.shape[1:])])


class Differentiable(Protocol):
    """A loss (theta, batch, step) -> scalar, given by its first and second derivatives.

    Both give the same for the same arguments, or a replayed step is not exact.
    """

    def gradient(self, theta: Tensor, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Compute the loss, 0-d, and its gradient in theta."""
        ...

    def product(self, theta: Tensor, batch: Batch, step: int, cotangent: Tensor) -> Products:
        """Compute d/d(theta, batch) <grad_theta loss, cotangent>.

        Args:
            theta: (P,) all trainable parameters.
            batch: the examples of the step.
            step: number of the step.
            cotangent: (P,) cotangent of the gradient.
        """
        ...

    def batch_product(self, theta: Tensor, batch: Batch, step: int, cotangent: Tensor) -> OfBatch:
        """Compute the last two members of `product` alone, which is cheaper."""
        ...

    def pulled(self, theta: Tensor, batch: Batch, step: int, pull: Pull) -> OfBatch:
        """Compute d/d(batch) of a function of grad_theta loss, given by its own gradient.

        Args:
            theta: (P,) all trainable parameters.
            batch: the examples of the step.
            step: number of the step.
            pull: the gradient in theta -> the function's gradient in it.
        """
        ...


@dataclass(frozen=True)
class Eager:
    """A loss whose derivatives are taken by autograd: reverse mode over reverse mode."""

    loss: Callable[[Tensor, Batch, int], Tensor]

    def gradient(self, theta: Tensor, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        theta = theta.detach().requires_grad_()
        loss = self.loss(theta, batch, step)
        return loss.detach(), torch.autograd.grad(loss, theta)[0]

    def product(self, theta: Tensor, batch: Batch, step: int, cotangent: Tensor) -> Products:
        theta = theta.detach().requires_grad_()
        parts = batch.inputs, batch.targets
        cut = [part.detach().requires_grad_(part.requires_grad and batch.asks) for part in parts]
        wanted = [theta, *(part for part in cut if part.requires_grad)]
        loss = self.loss(theta, Batch(cut[0], cut[1], batch.frozen), step)
        (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
        # A loss that is linear in theta and does not mix it with the batch.
        if not grad.requires_grad:
            return torch.zeros_like(theta), None, None
        of_theta, *rest = torch.autograd.grad(
            grad, wanted, cotangent, allow_unused=True, materialize_grads=True
        )
        remaining = iter(rest)
        of_inputs, of_targets = (next(remaining) if part.requires_grad else None for part in cut)
        return of_theta, of_inputs, of_targets

    def batch_product(self, theta: Tensor, batch: Batch, step: int, cotangent: Tensor) -> OfBatch:
        return self.pulled(theta, batch, step, lambda grad: cotangent)

    def pulled(self, theta: Tensor, batch: Batch, step: int, pull: Pull) -> OfBatch:
        theta, parts = theta.detach().requires_grad_(), (batch.inputs, batch.targets)
        cut = [part.detach().requires_grad_(part.requires_grad and batch.asks) for part in parts]
        wanted = [part for part in cut if part.requires_grad]
        loss = self.loss(theta, Batch(cut[0], cut[1], batch.frozen), step)
        (grad,) = torch.autograd.grad(loss, theta, create_graph=bool(wanted))
        cotangent = pull(grad.detach())
        if not wanted or not grad.requires_grad:
            return None, None
        found = iter(
            torch.autograd.grad(grad, wanted, cotangent, allow_unused=True, materialize_grads=True)
        )
        of_inputs, of_targets = (next(found) if part.requires_grad else None for part in cut)
        return of_inputs, of_targets


@dataclass(frozen=True)
class ExactStart:
    """A loss in rounded arithmetic, but in full precision at the first inner step.

    Adam's first step is lr g / (|g| + eps), all but the sign of g. Its derivative in g is a peak
    lr / eps high and eps = 1e-8 wide, and what a window that begins there sends back hangs on the
    few gradients that happen to lie within it. bfloat16 moves gradients by far more than that,
    float32 by less. Later steps divide by what the first ones left, and the way back is linear in
    what it is given: there rounding does no such harm (benchmarks/precision_sources.py).

    Args:
        rounded: the loss at all steps after the first.
        full: the same loss in full precision.
    """

    rounded: Differentiable
    full: Differentiable

    def at(self, step: int) -> Differentiable:
        """Return the loss that holds at a step.

        Its product is of the same kind as its gradient: else dropout would draw them two masks.
        """
        return self.rounded if step else self.full

    def gradient(self, theta: Tensor, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        return self.at(step).gradient(theta, batch, step)

    def product(self, theta: Tensor, batch: Batch, step: int, cotangent: Tensor) -> Products:
        return self.at(step).product(theta, batch, step, cotangent)

    def batch_product(self, theta: Tensor, batch: Batch, step: int, cotangent: Tensor) -> OfBatch:
        return self.at(step).batch_product(theta, batch, step, cotangent)

    def pulled(self, theta: Tensor, batch: Batch, step: int, pull: Pull) -> OfBatch:
        return self.at(step).pulled(theta, batch, step, pull)


@dataclass(frozen=True)
class Whole:
    """A loss whose batch cannot be cut: threads share each of its operations."""

    loss: Differentiable

    def gradient(self, theta: Tensor, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        with all_threads_at_once():
            return self.loss.gradient(theta, batch, step)

    def product(self, theta: Tensor, batch: Batch, step: int, cotangent: Tensor) -> Products:
        with all_threads_at_once():
            return self.loss.product(theta, batch, step, cotangent)

    def batch_product(self, theta: Tensor, batch: Batch, step: int, cotangent: Tensor) -> OfBatch:
        with all_threads_at_once():
            return self.loss.batch_product(theta, batch, step, cotangent)

    def pulled(self, theta: Tensor, batch: Batch, step: int, pull: Pull) -> OfBatch:
        with all_threads_at_once():
            return self.loss.pulled(theta, batch, step, pull)


@dataclass(frozen=True)
class InMicroBatches:
    """A mean over examples, taken `size` at a time: less memory, same result.

    The micro-batches are tasks (workers.py), whose results are added up in order.

    Args:
        whole: the loss, linear in the targets.
        size: most examples at once.
        filled: fill the last micro-batch up to `size` with examples whose targets are 0, which add
            nothing: all have one shape, and a compiled loss is compiled once.
    """

    whole: Differentiable
    size: int
    filled: bool = False

    def parts(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        """Yield (micro-batch, weight of its mean in the mean over all)."""
        count = len(batch)
        for start in range(0, count, self.size):
            frozen = min(self.size, max(0, batch.frozen - start))
            inputs = batch.inputs[start : start + self.size]
            targets = batch.targets[start : start + self.size]
            if self.filled and (missing := self.size - len(inputs)):
                inputs = filled_up(inputs, missing)
                targets = torch.cat([targets, targets.new_zeros(missing, *targets.shape[1:])])
            part = Batch(inputs, targets, frozen)
            yield part, len(inputs) / count

    def gradient(self, theta: Tensor, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        parts = list(self.parts(batch))
        if is_whole(parts, batch):
            return self.whole.gradient(theta, parts[0][0], step)
        loss, grad = theta.new_zeros(()), torch.zeros_like(theta)
        tasks = (partial(self.whole.gradient, theta, part, step) for part, _ in parts)
        found = in_order(tasks, theta.device)
        for (_, share), (more, of_theta) in zip(parts, found, strict=True):
            loss += share * more
            grad.add_(of_theta, alpha=share)
        return loss, grad

    def product(self, theta: Tensor, batch: Batch, step: int, cotangent: Tensor) -> Products:
        parts: list[tuple[Batch, float]] = list(self.parts(batch))
        if is_whole(parts, batch):
            return self.whole.product(theta, parts[0][0], step, cotangent)
        total, found = torch.zeros_like(theta), []
        tasks = (
            partial(self.whole.product, theta, part, step, share * cotangent)
            for part, share in parts
        )
        products = in_order(tasks, theta.device)
        for (part, _), (of_theta, *of_part) in zip(parts, products, strict=True):
            total += of_theta
            found.append((part, of_part))
        return total, *self.joined(batch, found)

    def batch_product(self, theta: Tensor, batch: Batch, step: int, cotangent: Tensor) -> OfBatch:
        parts = list(self.parts(batch))
        tasks = (
            partial(self.whole.batch_product, theta, part, step, share * cotangent)
            for part, share in parts
        )
        products = in_order(tasks, theta.device)
        return self.joined(
            batch, [(part, of) for (part, _), of in zip(parts, products, strict=True)]
        )

    def pulled(self, theta: Tensor, batch: Batch, step: int, pull: Pull) -> OfBatch:
        if len(batch) > self.size:
            grad = self.gradient(theta, batch, step)[1]
            return self.batch_product(theta, batch, step, pull(grad))
        ((part, share),) = self.parts(batch)
        found = self.whole.pulled(theta, part, step, lambda grad: share * pull(share * grad))
        return self.joined(batch, [(part, found)])

    def joined(
        self, batch: Batch, found: Sequence[tuple[Batch, Sequence[Tensor | None]]]
    ) -> OfBatch:
        """Join what was found of each micro-batch to that of the batch.

        Args:
            batch: the whole one.
            found: (micro-batch, its (of inputs, of targets)) pairs, in order.
        """
        columns: tuple[list[Tensor], list[Tensor]] = ([], [])
        for part, of_part in found:
            for column, of, tensor in zip(
                columns, of_part, (part.inputs, part.targets), strict=True
            ):
                # Micro-batches of frozen rows ask for nothing; beside others they stand as 0.
                column.append(torch.zeros_like(tensor) if of is None else of)
        of_inputs, of_targets = (
            torch.cat(column)[: len(batch)] if tensor.requires_grad and batch.asks else None
            for column, tensor in zip(columns, (batch.inputs, batch.targets), strict=True)
        )
        return of_inputs, of_targets


def is_whole(parts: Sequence[tuple[Batch, float]], batch: Batch) -> bool:
    """Return whether the parts of a batch are one, with nothing filled in."""
    return len(parts) == 1 and len(parts[0][0]) == len(batch)


def cross_entropy(model: FlatModel, seed: Callable[[int], int] | None = None) -> Eager:
    """Return the mean cross-entropy of the network on a batch (inputs, targets).

    Args:
        model: the network.
        seed: step -> the seed of its dropout; None if it draws nothing.
    """

    def loss(theta: Tensor, batch: Batch, step: int) -> Tensor:
        if seed is None:
            return F.cross_entropy(model(theta, batch.inputs), batch.targets)
        with global_seed(seed(step), theta.device):
            return F.cross_entropy(model(theta, batch.inputs), batch.targets)

    return Eager(loss)


def derivative_error(
    model: FlatModel, inputs: Tensor, targets: Tensor, rng: torch.Generator
) -> float:
    """Return the relative error of the model's second derivative, in float64.

    It compares the Hessian product with a finite difference of gradients.

    The error is rounding for every differentiable function. Behind a detach or a straight-through
    estimator the gradient changes in ways that autograd does not see, so that a meta-gradient
    through it would have no meaning. (The second derivative that autograd gives stays symmetric
    there, since what is detached counts as constant: symmetry would not show it.)

    Args:
        model: the network, in float64.
        inputs: (B, ...) in float64.
        targets: (B, K) probabilities.
        rng: the generator of the directions.
    """
    loss = cross_entropy(model, seed=lambda _: 0)  # the same dropout every time
    batch = Batch(inputs, targets)

    def drawn() -> Tensor:
        return torch.randn(model.theta.shape, generator=rng, dtype=model.theta.dtype)

    errors = []
    # Beside where it starts: a residual branch whose norm begins at 0 has ReLUs at their kinks.
    theta = model.theta + NEARBY * drawn()
    # The best of three: a step across a ReLU's kink spoils a difference, which is rare.
    for _ in range(3):
        along = drawn()
        along *= 1e-7 / along.norm()
        up, down = (loss.gradient(theta + sign * along, batch, 0)[1] for sign in (1, -1))
        expected = (up - down) / 2
        product = loss.product(theta, batch, 0, along)[0]
        errors.append(float((product - expected).norm() / expected.norm().clamp_min(1e-300)))
    return min(errors)
