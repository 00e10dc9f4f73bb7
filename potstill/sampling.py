"""Which real examples make up a batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from potstill.data import Split, sample


class RealSampler(Protocol):
    """Which real examples make up a batch."""

    def draw(self, split: Split, count: int, rng: torch.Generator) -> Tensor:
        """Positions of `count` examples without replacement, on the CPU; of all, if there are fewer."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Every example alike."""

    def draw(self, split: Split, count: int, rng: torch.Generator) -> Tensor:
        return sample(split, count, rng)


UNIFORM = Uniform()


@dataclass(frozen=True)
class Weighted:
    """One after the other with a probability in proportion to its weight among those that are left.

    The `count` smallest of independent exponential times with the weights as their rates are just that (Efraimidis & Spirakis
    2006), so that a draw takes one pass over the weights, whatever the count.

    Args:
        weights: (N,) at least 0, finite, on the CPU; examples of weight 0 are never drawn.
    """

    weights: Tensor

    def draw(self, split: Split, count: int, rng: torch.Generator) -> Tensor:
        times = torch.empty(len(self.weights), dtype=torch.float64).exponential_(generator=rng) / self.weights
        count = min(count, int((self.weights > 0).sum()))
        return times.topk(count, largest=False).indices


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
            trained: seed -> (inputs -> logits) of a fresh network that trained on the set as it is now.
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
