"""Ridge regression on features of networks, which predicts real examples from the distilled ones.

Phi being features of one or several networks, S the distilled examples with targets y,

    P = phi(x_t) phi(S)' (phi(S) phi(S)' + r tr / n I)^(-1) y,

a real batch's loss follows from P. The networks themselves do not learn from it. FRePo and RFAD are
of this kind; they differ in the networks and in the loss.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from potstill.cache import Cache
from potstill.config.options import Auto, option
from potstill.engine.ridge import centred, coefficients, doubled
from potstill.engine.unroll import Leaves
from potstill.errors import InputError
from potstill.methods.base import Estimate, Examples, Method, Needs, Problem, State
from potstill.methods.network_pool import Networks, Trained
from potstill.workers import in_order

COLOURS = 3
"""Channels of images of which "auto" takes mirrored copies."""


@dataclass(frozen=True)
class MirroredOptions:
    """The option of methods that may take mirrored copies of the distilled images, too."""

    mirrored_copies: Literal["on", "off"] | Auto = option(
        "auto", "regress on each image and its mirrored copy; auto: of colour images"
    )

    def resolved(self, sizes: Any) -> Self:
        """Replace every "auto"."""
        coloured = len(sizes.shape) > 1 and sizes.shape[0] >= COLOURS
        if self.mirrored_copies != "auto":
            return self
        return replace(self, mirrored_copies="on" if coloured else "off")


@dataclass(frozen=True)
class FeatureOptions(MirroredOptions):
    """Options of every regression on features."""

    ridge: float = option(
        1e-6, "regularisation, relative to the mean of the kernel's diagonal", low=0, open_low=True
    )


def require_images(problem: Problem, mirrored: str) -> None:
    """Raise an InputError if examples are to be mirrored that are no images."""
    if mirrored == "on" and len(problem.networks.shape) == 1:
        raise InputError("mirrored_copies is for images, the data are rows, got on; leave it out")


class FeatureRegression(Method):
    """What is common to methods that regress on features."""

    Options: ClassVar[type] = FeatureOptions
    options: Any
    needs: ClassVar[Needs] = Needs(features=True, targets="numbers")
    offset: ClassVar[float] = 0.0
    """One more feature, the same for all examples; 0: none."""
    remedy: ClassVar[str] = "raise --ridge or lower --outer-lr"

    @cached_property
    def of(self) -> Networks:
        """The networks of the problem."""
        return Networks(self.problem)

    @abstractmethod
    def networks(self, examples: Examples, state: State, step: int) -> tuple[list[Trained], State]:
        """Return the networks of an outer step, and the state after it."""

    @abstractmethod
    def loss(self, predicted: Tensor, labels: Tensor, learned: Leaves) -> Tensor:
        """Return the sum of a loss over real examples.

        Args:
            predicted: (B, K), around 0.
            labels: (B,).
            learned: values that are learned beside the set, by name.
        """

    def beside(self, targets: Tensor) -> Tensor:
        """Return what the loss has beside the real examples, of targets around 0; 0 by default."""
        return targets.new_zeros(())

    def scale(self, networks: int, features: int) -> float:
        """Return the factor on features, of so many networks with so many each; 1 by default."""
        return 1.0

    def estimate(self, examples: Examples, learned: Leaves, state: State, step: int) -> Estimate:
        networks, after = self.networks(examples, state, step)
        images = examples.images.detach()
        seen = self.with_copies(images)
        rows = self.features(networks, seen, self.problem.micro_batch).requires_grad_()
        targets = examples.targets.detach().requires_grad_(examples.learn_targets)
        own = centred(targets)
        exact = doubled(rows)
        copies = len(seen) // len(images)
        solved = coefficients(exact @ exact.T, own.repeat(copies, 1), self.options.ridge)
        weights = (exact.T @ solved).to(rows)
        values = {name: value.detach().requires_grad_() for name, value in learned.items()}
        loss, of_weights, of_values = self.on_real(networks, weights.detach(), values, step)
        beside = self.beside(own)
        asked = [rows, *([targets] if examples.learn_targets else [])]
        through = (weights * of_weights).sum() + beside
        of_rows, *of_targets = torch.autograd.grad(through, asked)
        of_seen = self.pulled(networks, seen, of_rows)
        grads = {"images": self.from_copies(of_seen, len(images)), **of_values}
        if of_targets:
            grads["targets"] = of_targets[0]
        return Estimate(loss + beside.detach(), grads, after)

    def on_real(
        self, networks: Sequence[Trained], weights: Tensor, values: Leaves, step: int
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the mean loss of a real batch, and its gradients in the weights and the values.

        Args:
            networks: of the step.
            weights: (F, K), from features to predictions.
            values: that are learned beside the set; leaves.
            step: number of the outer step.
        """
        problem, real = self.problem, self.problem.real
        chosen = real.sampler.draw(real.train, real.batch, problem.rng("real batch", step))

        def of_part(rows: Tensor) -> tuple[Tensor, ...]:
            images, labels = real.train.take(rows)
            with torch.no_grad():
                features = self.together(networks, images.to(weights.dtype))
            leaf = weights.detach().requires_grad_()
            loss = self.loss(features @ leaf, labels, values)
            return loss.detach(), *torch.autograd.grad(loss, [leaf, *values.values()])

        tasks = (partial(of_part, rows) for rows in chosen.split(real.micro_batch))
        total = [
            torch.zeros_like(one) for one in (weights.new_zeros(()), weights, *values.values())
        ]
        for part in in_order(tasks, problem.device):
            for sum_, more in zip(total, part, strict=True):
                sum_ += more
        loss, of_weights, *rest = (one / len(chosen) for one in total)
        return loss, of_weights, dict(zip(values, rest, strict=True))

    def features(self, networks: Sequence[Trained], images: Tensor, most: int) -> Tensor:
        """Compute the features (n, F) of examples, at most so many at once."""

        def of_part(part: Tensor) -> Tensor:
            with torch.no_grad():
                return self.together(networks, part)

        tasks = (partial(of_part, part) for part in images.split(most))
        return torch.cat(list(in_order(tasks, self.problem.device)))

    def together(self, networks: Sequence[Trained], images: Tensor) -> Tensor:
        """Compute the features of all networks, side by side and to scale."""
        parts = [
            self.of.evaluating.features(one.theta, images, dict(one.constants)) for one in networks
        ]
        scale = self.scale(len(networks), parts[0].shape[1])
        if self.offset:
            parts.append(images.new_full((len(images), 1), self.offset / scale))
        together = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        return together if scale == 1 else scale * together

    def pulled(self, networks: Sequence[Trained], images: Tensor, of_rows: Tensor) -> Tensor:
        """Return the gradient in images of a loss whose gradient in their features is known.

        The features are computed again, so that few examples' activations are in memory.
        """

        def of_part(part: Tensor, along: Tensor) -> Tensor:
            leaf = part.detach().requires_grad_()
            (grad,) = torch.autograd.grad(self.together(networks, leaf), leaf, along)
            return grad

        most = self.problem.micro_batch
        tasks: Iterator[partial[Tensor]] = (
            partial(of_part, part, along)
            for part, along in zip(images.split(most), of_rows.split(most), strict=True)
        )
        return torch.cat(list(in_order(tasks, self.problem.device)))

    def check(self, cache: Cache) -> None:
        require_images(self.problem, self.options.mirrored_copies)

    def with_copies(self, images: Tensor) -> Tensor:
        """Return images, and after them their mirrored copies if the method takes some."""
        return (
            torch.cat([images, images.flip(-1)]) if self.options.mirrored_copies == "on" else images
        )

    def from_copies(self, grad: Tensor, count: int) -> Tensor:
        """Return the gradient in images of that in them and their copies."""
        return grad[:count] + grad[count:].flip(-1) if len(grad) > count else grad
