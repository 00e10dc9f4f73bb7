"""Samplers of real batches: uniform, weighted, or a fixed number of each class."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from potstill.data.splits import Part, Split, sample
from potstill.errors import InputError


class RealSampler(Protocol):
    """A rule that draws the real examples of a batch."""

    def draw(self, split: Split, count: int, rng: torch.Generator) -> Tensor:
        """Draw indices (n,) of `count` examples without replacement, on the CPU.

        It draws all examples if there are fewer.
        """
        ...

    def among(self, rows: Tensor) -> "RealSampler":
        """Return the same sampler restricted to the examples `rows`, indices (n,) on the CPU."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Every example equally likely."""

    def draw(self, split: Split, count: int, rng: torch.Generator) -> Tensor:
        return sample(split, count, rng)

    def among(self, rows: Tensor) -> "Uniform":
        return self


UNIFORM = Uniform()


@dataclass(frozen=True)
class Weighted:
    """One example after another, each with a probability proportional to its weight.

    The `count` smallest of independent exponential times with the weights as their rates are just
    that (Efraimidis & Spirakis 2006), so that a draw takes one pass over the weights, whatever the
    count.

    Args:
        weights: (N,) at least 0, finite, on the CPU; examples of weight 0 are never drawn.
    """

    weights: Tensor

    def draw(self, split: Split, count: int, rng: torch.Generator) -> Tensor:
        rates = self.weights
        times = torch.empty(len(rates), dtype=torch.float64).exponential_(generator=rng) / rates
        count = min(count, int((rates > 0).sum()))
        return times.topk(count, largest=False).indices

    def among(self, rows: Tensor) -> "Weighted":
        return Weighted(self.weights[rows])


@dataclass(frozen=True)
class ClassWise:
    """Batches with a given number of each class, for methods that compare class by class.

    Args:
        split: the real data.
        sampler: how examples are drawn within a class.
    """

    split: Split
    sampler: RealSampler = UNIFORM
    members: dict[int, Tensor] = field(init=False)
    """Class -> indices of its examples, ascending; classes without examples have no entry."""

    def __post_init__(self) -> None:
        labels = self.split.labels
        members = {
            label: torch.nonzero(labels == label)[:, 0] for label in labels.unique().tolist()
        }
        object.__setattr__(self, "members", members)

    def draw(self, classes: Sequence[int], count: int, rng: torch.Generator) -> list[Tensor]:
        """Draw `count` examples of each of the classes, without replacement.

        Args:
            classes: the classes, in the order of the result.
            count: examples of each class; of a class that has fewer (of weight above 0), all.
            rng: every draw follows from it, one class after the other.
        Returns:
            For each class the indices of its examples in the split, (n,) with n <= count, on the
            CPU.
        """
        drawn = []
        for label in classes:
            rows = self.members[label]
            drawn.append(rows[self.sampler.among(rows).draw(Part(self.split, rows), count, rng)])
        return drawn

    def of_each(self, classes: Sequence[int], count: int, rng: torch.Generator) -> list[Tensor]:
        """Return `draw`, and check that no class is without an example.

        Raises:
            InputError: all examples of a class have weight 0.
        """
        drawn = self.draw(classes, count, rng)
        for label, own in zip(classes, drawn, strict=True):
            if not len(own):
                raise InputError(
                    f"weights must leave every class a real example, class {label} has none; raise "
                    "some of its weights"
                )
        return drawn


@dataclass(frozen=True)
class Balanced:
    """Equally many of every class; which classes have one more, where that is needed, is drawn.

    Args:
        within: how the examples of a class are drawn.
    """

    within: RealSampler = UNIFORM

    def draw(self, split: Split, count: int, rng: torch.Generator) -> Tensor:
        classes = ClassWise(split, self.within)
        known = list(classes.members)
        order = torch.randperm(len(known), generator=rng).tolist()
        each, over = divmod(count, len(known))
        drawn = [
            classes.draw([known[index]], each + (place < over), rng)[0]
            for place, index in enumerate(order)
        ]
        return torch.cat(drawn)

    def among(self, rows: Tensor) -> "Balanced":
        return Balanced(self.within.among(rows))


def plain_sampler(weights: Tensor | None) -> RealSampler:
    """Return the sampler by the user's weights, or the uniform one if there are none."""
    return UNIFORM if weights is None else Weighted(weights)


class Answering(Protocol):
    """A network that is trained."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return its logits."""
        ...

    def features(self, inputs: Tensor) -> Tensor:
        """Return what its last layer reads, (B, F), or its logits."""
        ...


class Sampling(Protocol):
    """How real batches are drawn in the course of a run; a row of `registry.REAL_SAMPLERS`.

    An instance is its options; what it learns in the run is its state, which a checkpoint holds.
    """

    def due(self, step: int) -> bool:
        """Return whether the state must be computed anew before this outer step."""
        ...

    def refresh(
        self,
        trained: Callable[[int], Answering],
        split: Split,
        seed: int,
        progress: Callable[[str, int, int], None] | None,
    ) -> dict[str, Tensor]:
        """Compute the state.

        Args:
            trained: seed -> a fresh network that trained on the set as it is now.
            split: the real training data.
            seed: of all draws.
            progress: takes (what, done, of how many).
        """
        ...

    def sampler(self, state: Mapping[str, Any], weights: Tensor | None) -> RealSampler:
        """Return the sampler for a state, which is empty before the first `refresh`.

        `weights` (N,) are the user's.
        """
        ...

    def words(self) -> str:
        """Return a description of how batches are drawn, for reports."""
        ...


@dataclass(frozen=True)
class Plain:
    """Every image equally likely, or by the user's weights."""

    def due(self, step: int) -> bool:
        return False

    def refresh(
        self,
        trained: Callable[[int], Answering],
        split: Split,
        seed: int,
        progress: Callable[[str, int, int], None] | None,
    ) -> dict[str, Tensor]:
        return {}

    def sampler(self, state: Mapping[str, Any], weights: Tensor | None) -> RealSampler:
        return plain_sampler(weights)

    def words(self) -> str:
        return ""


@dataclass(frozen=True)
class Even(Plain):
    """Equally many images of every class; within a class alike, or by the user's weights."""

    def sampler(self, state: Mapping[str, Any], weights: Tensor | None) -> RealSampler:
        return Balanced(plain_sampler(weights))

    def words(self) -> str:
        return "equally many of every class"
