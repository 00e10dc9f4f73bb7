"""One trajectory of an outer step: what decides its draws, and its loss on real data."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from potstill.data import augmentation
from potstill.engine.flat import FlatModel
from potstill.engine.losses import Batch, Differentiable
from potstill.engine.optimizers import State as Moments
from potstill.engine.unroll import Leaves, MetaGradient, Unrolled
from potstill.methods.base import Problem, Real


@dataclass(frozen=True)
class Replay:
    """The numbers that decide a trajectory's draws, beside the seed and the purpose.

    Args:
        step: the outer step.
        trajectory: its index; trajectory 0 draws what a run with one trajectory would.
    """

    step: int
    trajectory: int = 0

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers that a derived seed is made of."""
        return (self.step, self.trajectory) if self.trajectory else (self.step,)


@dataclass(frozen=True)
class Start:
    """Where a trajectory starts.

    Args:
        born: numbers of the network; its start follows from them.
        first: inner steps that it has taken.
        moments: the inner optimiser's state after them; None: the network is fresh.
    """

    born: Replay
    first: int = 0
    moments: Moments | None = None


@dataclass(frozen=True)
class Unroll:
    """A trajectory before it is taken.

    Args:
        replay: decides its draws.
        start: where it starts.
        burn_in: inner steps before the window.
        window: inner steps that are differentiated.
        place: of the network in a pool; -1 without one.
    """

    replay: Replay
    start: Start
    burn_in: int
    window: int
    place: int = -1


@dataclass(frozen=True)
class RealPart:
    """A part of a real batch.

    Args:
        positions: (B,) indices in the train split.
        drawn: how its images are augmented.
        start: index in the batch at which the part begins.
        weights: (B,) of its examples; None: all 1.
    """

    positions: Tensor
    drawn: augmentation.Draw
    start: int
    weights: Tensor | None = None


@dataclass(frozen=True)
class RealLoss:
    """The mean cross-entropy on a part of the real batch."""

    loss: Differentiable
    real: Real

    def gradient(
        self, theta: Tensor, leaves: Leaves, part: RealPart
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        images, labels = self.real.train.take(part.positions)
        targets = self.real.one_hot(labels).to(theta.dtype)
        if part.weights is not None:  # the cross-entropy is linear in its targets
            targets = targets * part.weights[:, None].to(targets)
        batch = Batch(augmentation.apply(images, part.drawn), targets)
        return *self.loss.gradient(theta, batch, part.start), {}


class Unrolling(Protocol):
    """A method as its trajectories see it."""

    problem: Problem
    options: Any

    def rng(self, purpose: str, replay: Replay, *more: int) -> torch.Generator:
        """Make a generator that follows from the seed, the purpose and the trajectory."""
        ...

    def loss(
        self,
        model: FlatModel,
        purpose: str,
        replay: Replay,
        micro_batch: int,
        *,
        inner: bool = False,
    ) -> Differentiable:
        """Return the mean cross-entropy of a network."""
        ...

    def synthetic_rows(self, replay: Replay, step: int) -> tuple[Tensor, augmentation.Draw]:
        """Draw the indices of an inner step's examples, and how they are augmented."""
        ...

    def real_rows(self, replay: Replay) -> tuple[Tensor, augmentation.Draw]:
        """Draw the indices of a trajectory's real batch, and how it is augmented."""
        ...

    def real_parts(self, replay: Replay, *, whole: bool) -> Iterator[tuple[RealPart, float]]:
        """Yield the micro-batches of a trajectory's real batch, each with its weight."""
        ...


@dataclass(frozen=True)
class Trajectory:
    """A trained network whose real loss can be differentiated on several real batches."""

    method: Unrolling
    unrolled: Unrolled
    objective: RealLoss
    whole: bool
    """Whether the network couples the examples of its batch."""

    def meta_gradient(self, replay: Replay) -> MetaGradient:
        """Differentiate the loss on the real batch of an outer step."""
        parts = list(self.method.real_parts(replay, whole=self.whole))
        points = min(self.method.options.loss_points, len(parts))
        steps = [step for segment in self.unrolled.segments for step in segment]
        dealt = [parts[point::points] for point in range(points)]
        early = {
            steps[len(steps) * number // points]: own for number, own in enumerate(dealt[1:], 1)
        }
        return self.unrolled.meta_gradient(self.objective, dealt[0], early=early)

    def of_samples(self, replay: Replay, samples: int, size: int, weights: Tensor) -> MetaGradient:
        """Differentiate a weighted sum of losses, each the mean over one sample of real images.

        A batch of all samples is drawn and augmented as in an outer step, and divided in order.
        Samples of weight 0 cost nothing.

        Args:
            replay: decides the draw of the batch.
            samples: number of samples.
            size: real images in each.
            weights: (samples,), on the CPU.
        """
        real, rng = self.method.problem.real, self.method.rng("real batch", replay)
        chosen = real.sampler.draw(real.train, samples * size, rng)
        drawn = augmentation.draw(real.augment, len(chosen), rng)
        rows = torch.nonzero(weights.repeat_interleave(size))[:, 0]
        micro = size if self.whole else real.micro_batch

        def parts() -> Iterator[tuple[RealPart, float]]:
            for these in rows.split(micro) if len(rows) else ():
                own = weights[these // size]
                part = RealPart(chosen[these], drawn.rows(these), int(these[0]), own)
                yield part, len(these) / size

        return self.unrolled.meta_gradient(self.objective, parts())
