"""Which real examples make up a batch: all alike, by weight, or so many of each class."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from potstill.data.splits import Part, Split, sample


class RealSampler(Protocol):
    """Which real examples make up a batch."""

    def draw(self, split: Split, count: int, rng: torch.Generator) -> Tensor:
        """Draw positions of `count` examples without replacement, on the CPU; of all, if there are
        fewer.
        """
        ...

    def among(self, rows: Tensor) -> "RealSampler":
        """Return the same sampler for a split of only these examples of the whole, positions (n,)
        on the CPU.
        """
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
        members = {
            label: torch.nonzero(labels == label)[:, 0] for label in labels.unique().tolist()
        }
        object.__setattr__(self, "members", members)

    def draw(self, classes: Sequence[int], count: int, rng: torch.Generator) -> list[Tensor]:
        """Draw `count` examples of each of the classes, without replacement.

        Args:
            classes: which, in the order of the answer.
            count: examples of each class; of a class that has fewer (of weight above 0), all.
            rng: every draw follows from it, one class after the other.
        Returns:
            For each class the positions of its examples in the split, (n,) with n <= count, on the
            CPU.
        """
        drawn = []
        for label in classes:
            rows = self.members[label]
            drawn.append(rows[self.sampler.among(rows).draw(Part(self.split, rows), count, rng)])
        return drawn


def plain_sampler(weights: Tensor | None) -> RealSampler:
    """Make the sampler by the weights that a user gave, if there are any."""
    return UNIFORM if weights is None else Weighted(weights)


class Sampling(Protocol):
    """How real batches are drawn in the course of a run; a row of `registry.REAL_SAMPLERS`.

    An instance is its options; what it learns in the run is its state, which a checkpoint holds.
    """

    def due(self, step: int) -> bool:
        """Tell whether the state is to be made anew before this outer step."""
        ...

    def refresh(
        self,
        trained: Callable[[int], Callable[[Tensor], Tensor]],
        split: Split,
        seed: int,
        progress: Callable[[str, int, int], None] | None,
    ) -> dict[str, Tensor]:
        """Make the state.

        Args:
            trained: seed -> (inputs -> logits) of a fresh network that trained on the set as it is
                now.
            split: the real training data.
            seed: of all draws.
            progress: takes (what, done, of how many).
        """
        ...

    def sampler(self, state: Mapping[str, Any], weights: Tensor | None) -> RealSampler:
        """Make the sampler at a state (empty before the first `refresh`).

        `weights` (N,) are those that the user gave.
        """
        ...

    def words(self) -> str:
        """Say it in a report."""
        ...


@dataclass(frozen=True)
class Plain:
    """Every image alike, or by the weights that the user gave."""

    def due(self, step: int) -> bool:
        return False

    def refresh(
        self,
        trained: Callable[[int], Callable[[Tensor], Tensor]],
        split: Split,
        seed: int,
        progress: Callable[[str, int, int], None] | None,
    ) -> dict[str, Tensor]:
        return {}

    def sampler(self, state: Mapping[str, Any], weights: Tensor | None) -> RealSampler:
        return plain_sampler(weights)

    def words(self) -> str:
        return ""
