"""Which real examples make up a batch: all alike, by weight, or so many of each class."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from potstill.data import Part, Split, sample


class RealSampler(Protocol):
    """Which real examples make up a batch."""

    def draw(self, split: Split, count: int, rng: torch.Generator) -> Tensor:
        """Draw positions of `count` examples without replacement, on the CPU; of all, if there are fewer."""
        ...

    def among(self, rows: Tensor) -> "RealSampler":
        """Return the same sampler for a split of only these examples of the whole, positions (n,) on the CPU."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Every example alike."""

    def draw(self, split: Split, count: int, rng: torch.Generator) -> Tensor:
        return sample(split, count, rng)

    def among(self, rows: Tensor) -> "Uniform":
        return self


UNIFORM = Uniform()


@dataclass(frozen=True)
class Weighted:
    """One after the other with a probability in proportion to its weight among those that are left.

    The `count` smallest of independent exponential times with the weights as their rates are just that
    (Efraimidis & Spirakis 2006), so that a draw takes one pass over the weights, whatever the count.

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
    """Batches that hold so many examples of each class, for methods that compare class with class.

    Args:
        split: the real data.
        sampler: how examples are drawn within a class.
    """

    split: Split
    sampler: RealSampler = UNIFORM
    members: dict[int, Tensor] = field(init=False)
    """Class -> positions of its examples, ascending; classes without examples are not in it."""

    def __post_init__(self) -> None:
        labels = self.split.labels
        members = {label: torch.nonzero(labels == label)[:, 0] for label in labels.unique().tolist()}
        object.__setattr__(self, "members", members)

    def draw(self, classes: Sequence[int], count: int, rng: torch.Generator) -> list[Tensor]:
        """Draw `count` examples of each of the classes, without replacement.

        Args:
            classes: which, in the order of the answer.
            count: examples of each class; of a class that has fewer (of weight above 0), all.
            rng: every draw follows from it, one class after the other.
        Returns:
            For each class the positions of its examples in the split, (n,) with n <= count, on the CPU.
        """
        drawn = []
        for label in classes:
            rows = self.members[label]
            drawn.append(rows[self.sampler.among(rows).draw(Part(self.split, rows), count, rng)])
        return drawn
